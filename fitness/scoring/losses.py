"""Differentiable losses of items, which a search by gradients minimises instead of scores.

- An item with choices: the cross-entropy of the right choice under the softmax over the choices' log-likelihoods, the
  numbers that scoring compares.
- Any other item with a right answer: the negative log-likelihood of the answer and its end, read in one pass (teacher
  forcing) instead of generated token by token, and divided by the number of tokens, so that long and short answers have
  the same weight.

Rows are padded on the right and read without a mask, because a causal model does not see later tokens.

Shapes: B rows, S slots, V vocabulary, N scored tokens, I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fitness.scoring.loglikelihood import Pair, model_input


@dataclass(frozen=True)
class LossItem:
    """The requests of one item's loss.

    Attributes
    ----------
    pairs
        (context, continuation) pairs of tokens: one per choice, or one for the right answer.
    right
        Position of the right choice; 0 for a single pair.
    weight
        Weight of the item's loss in the sum.
    """

    pairs: tuple[Pair, ...]
    right: int
    weight: float


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch.

    Attributes
    ----------
    total
        The weighted sum of its items' losses: a scalar with a graph.
    places
        Positions of its items among those of the plan.
    losses
        Their losses, in the same order, in nats.
    """

    total: Tensor
    places: tuple[int, ...]
    losses: tuple[float, ...]


class LossPlan:
    """Batches for a list of items.

    Parameters
    ----------
    items
        At least one.
    max_length
        Longest input in tokens; longer ones are cut at the left.
    batch_size
        Rows per forward pass; an item's choices stay together.
    pad
        Token that fills rows; any token will do.
    device
        Torch device of the model.
    """

    def __init__(
        self, items: Sequence[LossItem], *, max_length: int, batch_size: int, pad: int = 0, device: str = "cpu"
    ) -> None:
        self.max_length, self.pad, self.device = max_length, pad, device
        self._items = items
        self._batches: list[list[int]] = []  # positions among the items
        rows = batch_size + 1
        for at in sorted(range(len(items)), key=lambda at: _longest(items[at])):
            if rows + len(items[at].pairs) > batch_size:
                self._batches.append([])
                rows = 0
            self._batches[-1].append(at)
            rows += len(items[at].pairs)

    def losses(self, model: Any) -> Iterator[BatchLoss]:
        """Yield the loss of each batch; the sum of their totals is the loss of all items.

        Raises
        ------
        TaskError
            A choice or answer is longer than `max_length`.
        ValueError
            A loss is not finite.
        """
        for batch in self._batches:
            items = [self._items[at] for at in batch]
            loss_I = self._of_items(self._answers(model, items), items)
            if not torch.isfinite(loss_I).all():
                raise ValueError("the loss of the model is not a finite number: its weights are not usable")
            weight_I = loss_I.new_tensor([item.weight for item in items])
            yield BatchLoss((weight_I * loss_I).sum(), tuple(batch), tuple(loss_I.detach().tolist()))

    def _answers(self, model: Any, batch: Sequence[LossItem]) -> Tensor:
        """Return the log-likelihood of every pair of a batch, float32[B], with a graph."""
        rows = [pair for item in batch for pair in item.pairs]
        inputs = [model_input(pair, self.max_length) for pair in rows]
        width = max(map(len, inputs))
        token_BS = torch.tensor(
            [[*tokens, *[self.pad] * (width - len(tokens))] for tokens in inputs], device=self.device
        )
        # Logits only for slots whose next token is scored, because the vocabulary is large.
        row_N = [at for at, (_, answer) in enumerate(rows) for _ in answer]
        slot_N = [
            len(tokens) - len(answer) + place
            for tokens, (_, answer) in zip(inputs, rows, strict=True)
            for place in range(len(answer))
        ]
        target_N = torch.tensor([token for _, answer in rows for token in answer], device=self.device)
        first = min(slot_N)
        output = model(input_ids=token_BS, use_cache=False, logits_to_keep=width - first)
        logits_NV = output.logits[row_N, [slot - first for slot in slot_N]]
        logp_N = torch.log_softmax(logits_NV.float(), dim=-1).gather(1, target_N[:, None])[:, 0]
        index_N = torch.tensor(row_N, device=self.device)
        return torch.zeros(len(rows), device=self.device).index_add(0, index_N, logp_N)

    @staticmethod
    def _of_items(total_B: Tensor, batch: Sequence[LossItem]) -> Tensor:
        """Return the loss of every item of a batch, float32[I]."""
        losses = []
        for item, own in zip(batch, torch.split(total_B, [len(item.pairs) for item in batch]), strict=True):
            several = len(item.pairs) > 1
            losses.append(-torch.log_softmax(own, 0)[item.right] if several else -own[0] / len(item.pairs[0][1]))
        return torch.stack(losses)


def _longest(item: LossItem) -> int:
    return max(len(context) + len(answer) for context, answer in item.pairs)
