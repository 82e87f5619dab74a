"""Divergence of a merged model's predictions from each expert's on a text: losses without tasks or right answers.

With p the expert's distribution of the next token and q the merged model's, the loss of a window of text is the mean
over its tokens of the Jensen-Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2 (DivMerge), or of KL(p ‖ q)
(Expert Merging).

Of p the 256 likeliest tokens are kept, all others count as one: a bound from below, exact for small vocabularies, that
needs 1/100 of the memory.

Shapes: W windows, S tokens of a window, V vocabulary, K tokens kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fitness.overlap import check_apart
from fitness.results import TaskError
from fitness.scoring.losses import BatchLoss, BatchShape, LossError

KEPT = 256
SMALLEST = 1e-9  # probability of all other tokens together, to take the logarithm of


@dataclass(frozen=True)
class Likeliest:
    """An expert's predictions for one window: log-probabilities float32[S − 1, K] of the tokens int64[S − 1, K]."""

    logp: Tensor
    token: Tensor


class TextWindows:
    """Windows of experts' texts; one is an item called ``EXPERT/text/NUMBER``.

    Parameters
    ----------
    files
        A UTF-8 text file for each expert, by name.
    tokenizer
        The models' transformers tokenizer.
    window
        Tokens of a window; what is left at the end of a text is not read.

    Raises
    ------
    TaskError
        If a text cannot be read, or holds less than one window.
    """

    def __init__(self, files: Mapping[str, str], tokenizer: Any, window: int) -> None:
        self.contents = {path: _read(Path(path)) for path in dict.fromkeys(files.values())}
        self._tokens: dict[str, tuple[int, ...]] = {}
        for expert, path in files.items():
            ids = tokenizer(self.contents[path], add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) < window:
                raise TaskError(
                    f"strategy.loss.text: {path} has {len(ids)} tokens, less than one window of {window}; write more "
                    "text, or a smaller strategy.loss.window"
                )
            for number in range(len(ids) // window):
                self._tokens[f"{expert}/text/{number}"] = tuple(ids[number * window : (number + 1) * window])

    @property
    def items(self) -> tuple[str, ...]:
        """All windows, by expert."""
        return tuple(self._tokens)

    def check_apart(self, questions: Mapping[str, str]) -> None:
        """Check that no text holds a question that is held out.

        Parameters
        ----------
        questions
            Item ids and questions.

        Raises
        ------
        TaskError
            If one does.
        """
        check_apart("strategy.loss.text", self.contents, questions)

    def of_expert(self, items: Sequence[str]) -> dict[str, list[str]]:
        """Return the windows among `items` that belong to each expert."""
        found: dict[str, list[str]] = {}
        for item in items:
            found.setdefault(item.rsplit("/", 2)[0], []).append(item)
        return found

    def tokens(self, items: Sequence[str], device: str) -> Tensor:
        """Return the tokens of windows, int64[W, S]."""
        return torch.tensor([self._tokens[item] for item in items], device=device)

    def predictions(self, model: Any, items: Sequence[str], batch_size: int, device: str) -> dict[str, Likeliest]:
        """Return an expert's predictions for windows."""
        found: dict[str, Likeliest] = {}
        with torch.no_grad():
            for start in range(0, len(items), batch_size):
                batch = items[start : start + batch_size]
                logp_WSV = _predictions(model, self.tokens(batch, device))
                logp_WSK, token_WSK = logp_WSV.topk(min(KEPT, logp_WSV.shape[-1]), dim=-1)
                found |= {item: Likeliest(logp_WSK[at], token_WSK[at]) for at, item in enumerate(batch)}
        return found


class DivergencePlan:
    """The losses of some windows, in batches.

    Parameters
    ----------
    windows, items
        Which windows of which texts.
    predictions
        The experts', for every one of `items`.
    weights
        Weight of each item's loss in the sum.
    kind
        Which divergence.
    batch_size, device
        Windows per pass, and the model's torch device.
    """

    def __init__(
        self,
        windows: TextWindows,
        items: Sequence[str],
        predictions: Mapping[str, Likeliest],
        weights: Mapping[str, float],
        kind: Literal["js", "kl"],
        *,
        batch_size: int,
        device: str,
    ) -> None:
        self._windows, self._items, self._predictions, self._weights = windows, items, predictions, weights
        self._kind, self._batch_size, self._device = kind, batch_size, device

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """The size of every batch."""
        rows = min(self._batch_size, len(self._items))
        width = self._windows.tokens(self._items[:1], "cpu").shape[1]
        return (BatchShape(rows, width, width, rows * width),)

    def losses(self, model: Any) -> Iterator[BatchLoss]:
        """Yield the loss of each batch; the sum of their totals is the loss of all windows.

        Raises
        ------
        LossError
            A loss is not finite.
        """
        for start in range(0, len(self._items), self._batch_size):
            batch = self._items[start : start + self._batch_size]
            logq_WSV = _predictions(model, self._windows.tokens(batch, self._device))
            loss_W = torch.stack(
                [
                    self._divergence(logq_SV, self._predictions[item])
                    for logq_SV, item in zip(logq_WSV, batch, strict=True)
                ]
            )
            for item, loss in zip(batch, loss_W.tolist(), strict=True):
                if not loss < float("inf"):
                    raise LossError(f"the loss of item {item} is {loss}: the merged weights are not usable")
            weight_W = loss_W.new_tensor([self._weights[item] for item in batch])
            places = tuple(range(start, start + len(batch)))
            yield BatchLoss((weight_W * loss_W).sum(), places, tuple(loss_W.detach().tolist()))

    def _divergence(self, logq_SV: Tensor, expert: Likeliest) -> Tensor:
        """Return the mean divergence over the tokens of a window."""
        logq_SK = logq_SV.gather(-1, expert.token)
        logp, logq = _with_the_rest(expert.logp), _with_the_rest(logq_SK)
        if self._kind == "kl":
            return (logp.exp() * (logp - logq)).sum(-1).mean()
        p, q = logp.exp(), logq.exp()
        logm = ((p + q) / 2).clamp(min=SMALLEST).log()
        return ((p * (logp - logm)).sum(-1) + (q * (logq - logm)).sum(-1)).mean() / 2


def _with_the_rest(logp_SK: Tensor) -> Tensor:
    """Return log-probabilities with that of all other tokens together behind them, [S, K + 1]."""
    rest_S = (1 - logp_SK.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST)
    return torch.cat([logp_SK, rest_S.log()], -1)


def _predictions(model: Any, token_WS: Tensor) -> Tensor:
    """Return the log-probabilities of the next token after all tokens but the last, float32[W, S − 1, V]."""
    logits = model(input_ids=token_WS, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(
            f"strategy.loss.text: {path} cannot be read ({error.strerror or error}); name a text file"
        ) from None
    except UnicodeDecodeError:
        raise TaskError(f"strategy.loss.text: {path} is not UTF-8; save it as such") from None
