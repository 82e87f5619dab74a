"""Differentiable losses of items, which a gradient search minimises instead of scores.

- An item with choices: the cross-entropy of the right choice under the softmax over the choices' log-likelihoods, the
  numbers that scoring compares.
- Any other item with a right answer: the negative log-likelihood of the answer and its end, read in one pass (teacher
  forcing) instead of generated token by token, and divided by the number of tokens, so that long and short answers have
  the same weight.

Without right answers, `entropy` (AdaMerging, Yang et al. 2024, arXiv 2310.02575) is that of the softmax over the
choices, or the mean one of the predictions of each token of the model's own answer.

Rows are padded on the right and read without a mask, because a causal model does not see later tokens.

Shapes: B rows, S slots, V vocabulary, N scored tokens, I items.
"""

from __future__ import annotations

import math
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
    id
        Names the item in errors.
    """

    pairs: tuple[Pair, ...]
    right: int
    weight: float
    id: str = ""


class LossError(ValueError):
    """A loss that is not a finite number; the message names the item."""


@dataclass(frozen=True)
class BatchShape:
    """The size of a batch: rows, tokens of the longest, slots with logits, and scored tokens of all rows together."""

    rows: int
    width: int
    kept: int
    scored: int


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
    entropy
        Whether the loss is the entropy, which needs no right answers.
    """

    def __init__(
        self,
        items: Sequence[LossItem],
        *,
        max_length: int,
        batch_size: int,
        pad: int = 0,
        device: str = "cpu",
        entropy: bool = False,
    ) -> None:
        self.max_length, self.pad, self.device, self.entropy = max_length, pad, device, entropy
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
        LossError
            A loss is not finite.
        """
        for batch in self._batches:
            items = [self._items[at] for at in batch]
            loss_I = self._of_items(model, items)
            for item, loss in zip(items, loss_I.detach().tolist(), strict=True):
                if not math.isfinite(loss):
                    raise LossError(f"the loss of item {item.id} is {loss}: the merged weights are not usable")
            weight_I = loss_I.new_tensor([item.weight for item in items])
            yield BatchLoss((weight_I * loss_I).sum(), tuple(batch), tuple(loss_I.detach().tolist()))

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """The size of every batch."""
        return tuple(self._shape([self._items[at] for at in batch]) for batch in self._batches)

    def _shape(self, batch: Sequence[LossItem]) -> BatchShape:
        rows = [pair for item in batch for pair in item.pairs]
        inputs = [min(self.max_length, len(context) + len(answer) - 1) for context, answer in rows]
        answers = [len(answer) for _, answer in rows]
        first = min(length - answer for length, answer in zip(inputs, answers, strict=True))
        return BatchShape(len(rows), max(inputs), max(inputs) - max(0, first), sum(answers))

    def _of_items(self, model: Any, batch: Sequence[LossItem]) -> Tensor:
        """Return the loss of every item of a batch, float32[I]."""
        rows = [pair for item in batch for pair in item.pairs]
        logp_NV, row_N, target_N = self._predictions(model, rows)
        value_N = logp_NV.gather(1, target_N[:, None])[:, 0]
        total_B = torch.zeros(len(rows), device=self.device).index_add(0, row_N, value_N)
        spread_B = total_B
        if self.entropy and any(len(item.pairs) == 1 for item in batch):
            entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
            spread_B = torch.zeros_like(total_B).index_add(0, row_N, entropy_N)
        counts = [len(item.pairs) for item in batch]
        return torch.stack(
            [
                self._of_item(item, total, spread)
                for item, total, spread in zip(
                    batch, torch.split(total_B, counts), torch.split(spread_B, counts), strict=True
                )
            ]
        )

    def _of_item(self, item: LossItem, total: Tensor, spread: Tensor) -> Tensor:
        """Return the loss of an item from its pairs' log-likelihoods, and the summed entropy of each."""
        if len(item.pairs) == 1:
            return (spread if self.entropy else -total)[0] / len(item.pairs[0][1])
        logp = torch.log_softmax(total, 0)
        return -(logp.exp() * logp).sum() if self.entropy else -logp[item.right]

    def _predictions(self, model: Any, rows: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities float32[N, V] where a token is scored, the rows of these slots, and the tokens."""
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
        return torch.log_softmax(logits_NV.float(), dim=-1), torch.tensor(row_N, device=self.device), target_N


def _longest(item: LossItem) -> int:
    return max(len(context) + len(answer) for context, answer in item.pairs)
