"""Log-likelihoods of continuations, reading as few tokens and computing as few logits as possible.

Planned once per item set, run once per candidate:

- Requests with equal input tokens share one row (choices of one token after the same question), and so do requests
  whose input is a prefix of another's, because a causal model sees the same tokens there.
- Shared prefixes are read once: the choices of a question, and questions about one passage, are packed into a row with
  a tree mask; few-shot examples at the start of many rows are read once, and all rows use their keys and values
  (`prefix_tree`, `shared_prefix`).
- Rows are sorted by length and padded on the right. Rows without branches need no mask, because padding comes after
  all tokens whose logits are read.

Whether a model reads packed rows correctly is decided in two steps. `shared_prefix.obstacle` rules out models that are
known not to. Then the first model of each kind (class, config, data type) answers some requests a second time in plain
rows: those of the rows with the most slots and with the longest sequences, with and without a prefix. If a
log-likelihood differs by more than rounding, or the packed pass fails, all models of that kind use plain rows.

Shapes: B rows, S slots, P slots read, N scored tokens, R requests, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fitness.results import TaskError
from fitness.scoring.prefix_tree import Group, Row, Tokens, owners, separate, share
from fitness.scoring.products import fast_products
from fitness.scoring.quantized import is_quantized
from fitness.scoring.shared_prefix import Packed, kind_of, obstacle, read_prefix, read_rows

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of the context and of the continuation

MASK_SIZE = 1 << 25  # elements of one batch's mask; 128 MB in float32
TOLERANCE = {torch.float32: (5e-5, 1e-6), torch.float64: (5e-5, 1e-6)}  # absolute and relative, in nats
HALF_TOLERANCE = (0.5, 0.05)  # a wrong mask changes a choice by nats, rounding to bfloat16 by tenths of a nat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    packed: Packed
    row_P: torch.Tensor
    slot_P: torch.Tensor
    place_N: torch.Tensor  # index into P
    token_N: torch.Tensor
    request_N: torch.Tensor  # index into `requests`
    requests: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Sum:
    """Per request: the summed log-likelihood, and the number of tokens that are not the most likely ones."""

    total_R: npt.NDArray[np.float64]
    misses_R: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, size: int) -> _Sum:
        return cls(np.zeros(size), np.zeros(size, np.int64))


class LoglikelihoodPlan:
    """Batches for a list of requests.

    Parameters
    ----------
    pairs
        R (context, continuation) pairs of tokens, both non-empty.
    max_length
        Longest input in tokens; longer ones are cut at the left.
    batch_size
        Rows per forward pass.

    Attributes
    ----------
    rows
        Number of rows if each sequence has its own.
    tokens
        Number of tokens read if prefixes are shared, without padding.
    plain_because
        Why the last run did not share prefixes; None if it did, or if there are none.

    Raises
    ------
    TaskError
        A continuation is longer than `max_length`.
    """

    def __init__(self, pairs: Sequence[Pair], *, max_length: int, batch_size: int, device: str) -> None:
        self.size = len(pairs)
        self.plain_because: str | None = None
        self._pairs, self._batch_size, self._device = pairs, batch_size, device
        self._inputs = [model_input(pair, max_length) for pair in pairs]
        owner = owners(self._inputs)
        self._requests_of: dict[Tokens, list[int]] = {}
        for request, tokens in enumerate(self._inputs):
            self._requests_of.setdefault(owner[tokens], []).append(request)
        self.rows = len(self._requests_of)
        self._shared = share({tokens: self._first_read(tokens) for tokens in self._requests_of})
        self._shares = any(group.prefix or any(row.branches for row in group.rows) for group in self._shared)
        self.tokens = sum(len(group.prefix) + sum(len(row.tokens) for row in group.rows) for group in self._shared)
        self._verdicts: dict[Any, str | None] = {}  # kind of model to `plain_because`
        _ = self._shared_batches if self._shares else self._plain_batches  # before the first candidate

    @torch.inference_mode()
    def run(self, model: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], float]:
        """Score all requests with a causal language model.

        Returns
        -------
        loglikelihood
            float64[R], natural logarithm, summed over the continuation. As in lm-eval, log-softmax is computed in the
            data type of the model's logits.
        greedy
            bool[R], whether each token of the continuation is the most likely one.
        seconds
            Time in the model until its answers are on the CPU.

        Raises
        ------
        ValueError
            The model gave NaN.
        """
        start = time.perf_counter()
        with fast_products(model):
            found = self._sharing(model) if self._shares else None
            if found is None:
                found = self._score(model, self._plain_batches)
        seconds = time.perf_counter() - start
        _refuse_nan(found.total_R)
        return found.total_R, found.misses_R == 0, seconds

    # --- sharing prefixes, and the check that it is correct ---

    def _sharing(self, model: Any) -> _Sum | None:
        """Scores by shared prefixes; None if the model does not support them."""
        kind = kind_of(model)
        known = kind in self._verdicts
        self.plain_because = self._verdicts[kind] if known else obstacle(model)
        found = None
        if self.plain_because is None:
            found = self._score(model, self._shared_batches) if known else self._checked(model)
        if not known:
            self._verdicts[kind] = self.plain_because
            if self.plain_because:
                logger.info("prefixes are not shared for %s: %s", type(model).__name__, self.plain_because)
        return found

    def _checked(self, model: Any) -> _Sum | None:
        """Scores by shared prefixes, compared with plain rows, for the first model of a kind; sets `plain_because`."""
        sample = self._sample()
        plain = self._score(model, self._batches(separate(sample)))
        asked = np.array([request for tokens in sample for request in self._requests_of[tokens]])
        _refuse_nan(plain.total_R[asked])  # before the verdict, so that the next model of the kind is checked
        try:
            found = self._score(model, self._shared_batches)
        except Exception as error:  # a model's own code may fail on such masks and caches
            self.plain_because = f"it fails on packed rows ({type(error).__name__})"
            return None
        absolute, relative = tolerance(model)
        if np.allclose(found.total_R[asked], plain.total_R[asked], atol=absolute, rtol=relative):
            return found
        self.plain_because = "log-likelihoods from packed rows differ from those from plain rows"
        return None

    def _sample(self) -> list[Tokens]:
        """Sequences to check sharing with: those of the rows with the most slots and the longest sequences."""
        rows = [row for group in self._shared if not group.prefix for row in group.rows if row.branches]
        behind = [row for group in self._shared if group.prefix for row in group.rows]
        chosen: dict[Tokens, None] = {}
        for candidates in (rows, behind):
            for size in (_slots, _longest):
                if candidates:
                    chosen.update(dict.fromkeys(max(candidates, key=size).paths))
        return list(chosen)

    # --- batches ---

    @cached_property
    def _shared_batches(self) -> list[tuple[Tokens, list[_Batch]]]:
        return self._batches(self._shared)

    @cached_property
    def _plain_batches(self) -> list[tuple[Tokens, list[_Batch]]]:
        return self._batches(separate(list(self._requests_of)))

    def _batches(self, groups: Iterable[Group]) -> list[tuple[Tokens, list[_Batch]]]:
        """For each group its prefix and its batches."""
        return [
            (group.prefix, [self._batch(rows, len(group.prefix)) for rows in self._split(group)]) for group in groups
        ]

    def _split(self, group: Group) -> list[Sequence[Row]]:
        """A group's rows in batches, sorted by length; rows without a mask come in separate batches."""
        prefix = len(group.prefix)
        plain = [row for row in group.rows if not (prefix or row.branches)]
        masked = [row for row in group.rows if prefix or row.branches]
        found: list[Sequence[Row]] = []
        for rows in (plain, masked):
            ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens))
            while ordered:
                width = len(ordered[0].tokens)
                fitting = self._batch_size if rows is plain else MASK_SIZE // (width * (prefix + width))
                count = max(1, min(self._batch_size, fitting))
                found.append(ordered[:count])
                ordered = ordered[count:]
        return found

    def _first_read(self, tokens: Tokens) -> int:
        return min(self._span(request)[0] for request in self._requests_of[tokens])

    def _span(self, request: int) -> tuple[int, int]:
        """The first position whose logits a request needs, and the position after the last."""
        end = len(self._inputs[request])
        return end - len(self._pairs[request][1]), end

    def _batch(self, rows: Sequence[Row], prefix: int) -> _Batch:
        places: dict[tuple[int, int], int] = {}
        place_N: list[int] = []
        token_N: list[int] = []
        request_N: list[int] = []
        requests: list[int] = []
        for at, row in enumerate(rows):
            for tokens, path in row.paths.items():
                for request in self._requests_of[tokens]:
                    slots = path[slice(*(position - prefix for position in self._span(request)))]
                    place_N += [places.setdefault((at, slot), len(places)) for slot in slots]
                    token_N += self._pairs[request][1]
                    request_N += [len(requests)] * len(slots)
                    requests.append(request)
        place = torch.tensor(list(places), device=self._device)
        return _Batch(
            packed=Packed.of(rows, prefix, self._device),
            row_P=place[:, 0],
            slot_P=place[:, 1],
            place_N=torch.tensor(place_N, device=self._device),
            token_N=torch.tensor(token_N, device=self._device),
            request_N=torch.tensor(request_N, device=self._device),
            requests=np.array(requests, np.int64),
        )

    def _score(self, model: Any, groups: Iterable[tuple[Tokens, list[_Batch]]]) -> _Sum:
        found = _Sum.empty(self.size)
        for prefix, batches in groups:
            cache = read_prefix(model, prefix, self._device) if prefix else None
            for batch in batches:
                logits_PV = read_rows(model, batch.packed, batch.row_P, batch.slot_P, cache)
                found.total_R[batch.requests], found.misses_R[batch.requests] = _sums(logits_PV, batch)
        return found


def _refuse_nan(loglikelihood: npt.NDArray[np.float64]) -> None:
    if np.isnan(loglikelihood).any():
        raise ValueError("the model produced NaN instead of log-likelihoods: its weights are not usable")


def tolerance(model: Any) -> tuple[float, float]:
    """Return by how much log-likelihoods may differ with the rows in which they are computed: absolute, relative."""
    return HALF_TOLERANCE if is_quantized(model) else TOLERANCE.get(model.dtype, HALF_TOLERANCE)


def _slots(row: Row) -> int:
    return len(row.tokens)


def _longest(row: Row) -> int:
    return max(row.position)


def model_input(pair: Pair, max_length: int) -> Tokens:
    """Return the tokens that the model reads: all but the last, cut at the left.

    Raises
    ------
    TaskError
        If the continuation is longer than `max_length`.
    """
    context, continuation = pair
    if len(continuation) > max_length:
        raise TaskError(
            f"a choice or answer has {len(continuation)} tokens and the model reads {max_length}: "
            "raise fitness.max_length or use a task with shorter ones"
        )
    return (context + continuation)[-(max_length + 1) :][:-1]


def _sums(logits_PV: torch.Tensor, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods and misses of a batch's requests, in the batch's order."""
    logp_PV = torch.log_softmax(logits_PV, dim=-1)
    best_P = logp_PV.argmax(dim=-1)
    logp_N = logp_PV[batch.place_N, batch.token_N]
    count = len(batch.requests)
    total = torch.zeros(count, dtype=torch.float32, device=logp_N.device)
    total.index_add_(0, batch.request_N, logp_N.float())
    misses = torch.zeros(count, dtype=torch.long, device=logp_N.device)
    misses.index_add_(0, batch.request_N, (best_P[batch.place_N] != batch.token_N).long())
    rounded = total.to(logp_N.dtype)  # once, like tensor.sum()
    return rounded.double().cpu().numpy(), misses.cpu().numpy()
