"""Log-likelihoods of continuations, with as few forward passes and logits as possible.

Planned once per item set, run once per candidate:

- Requests whose input tokens agree share one row (choices of one token after the same question), and so do
  requests whose input is the beginning of another's: a causal model sees the same tokens there.
- Rows are sorted by length and padded on the right, without an attention mask: padding comes after everything
  that is read.
- The output projection runs on the positions that are read only. A hook on it cuts the hidden states, so that
  whatever an architecture does to its logits afterwards (scaling, soft caps) still happens.

Shapes: B rows, S tokens, P positions read, N scored tokens, R requests, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fitness.evaluation import TaskError

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of the context and of the continuation


@dataclass(frozen=True)
class _Batch:
    input_BS: torch.Tensor
    row_P: torch.Tensor
    column_P: torch.Tensor
    position_N: torch.Tensor  # index into P
    token_N: torch.Tensor
    request_N: torch.Tensor  # index into `requests`
    requests: npt.NDArray[np.int64]


class LoglikelihoodPlan:
    """Batches for a list of requests.

    Parameters
    ----------
    pairs
        R (context, continuation) pairs of tokens, both non-empty.
    max_length
        Longest input in tokens; longer ones lose their beginning.
    batch_size
        Rows per forward pass.

    Raises
    ------
    TaskError
        A continuation alone is longer than `max_length`.
    """

    def __init__(self, pairs: Sequence[Pair], *, max_length: int, batch_size: int, device: str) -> None:
        self.size = len(pairs)
        inputs = [_input(pair, max_length) for pair in pairs]
        owner = _owners(inputs)
        rows: dict[tuple[int, ...], list[int]] = {}
        for request, tokens in enumerate(inputs):
            rows.setdefault(owner[tokens], []).append(request)
        ordered = sorted(rows, key=lambda row: (-len(row), row))
        self._batches = [
            _batch(ordered[at : at + batch_size], rows, inputs, pairs, device)
            for at in range(0, len(ordered), batch_size)
        ]
        self.rows = len(ordered)

    @torch.inference_mode()
    def run(self, model: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], float]:
        """Score all requests with a causal language model.

        Returns
        -------
        loglikelihood
            float64[R], natural logarithm, summed over the continuation. As in lm-eval, log-softmax is taken
            in the data type of the model's logits.
        greedy
            bool[R], whether each token of the continuation is the most likely one.
        seconds
            Time in the model, until its answers are on the CPU.

        Raises
        ------
        ValueError
            The model gave NaN.
        """
        loglikelihood_R = np.zeros(self.size)
        greedy_R = np.zeros(self.size, np.bool_)
        start = time.perf_counter()
        for batch in self._batches:
            total, misses = _score(model, batch)
            loglikelihood_R[batch.requests] = total
            greedy_R[batch.requests] = misses == 0
        seconds = time.perf_counter() - start
        if np.isnan(loglikelihood_R).any():
            raise ValueError("the model produced NaN instead of log-likelihoods: its weights are not usable")
        return loglikelihood_R, greedy_R, seconds


def _input(pair: Pair, max_length: int) -> tuple[int, ...]:
    """What the model reads: all but the last token, cut from the left."""
    context, continuation = pair
    if len(continuation) > max_length:
        raise TaskError(
            f"a choice has {len(continuation)} tokens and the model reads {max_length}: "
            "raise fitness.max_length or use a task with shorter choices"
        )
    return (context + continuation)[-(max_length + 1) :][:-1]


def _owners(inputs: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Each input to the longest input that begins with it; in sorted order, candidates follow directly."""
    ordered = sorted(set(inputs))
    owner = {tokens: tokens for tokens in ordered}
    for tokens, longer in zip(reversed(ordered[:-1]), reversed(ordered[1:]), strict=True):
        if longer[: len(tokens)] == tokens:
            owner[tokens] = owner[longer]
    return owner


def _batch(
    rows: Sequence[tuple[int, ...]],
    requests_of: dict[tuple[int, ...], list[int]],
    inputs: Sequence[tuple[int, ...]],
    pairs: Sequence[Pair],
    device: str,
) -> _Batch:
    positions: dict[tuple[int, int], int] = {}
    position_N: list[int] = []
    token_N: list[int] = []
    request_N: list[int] = []
    requests: list[int] = []
    for row, tokens in enumerate(rows):
        for request in requests_of[tokens]:
            continuation = pairs[request][1]
            first = len(inputs[request]) - len(continuation)
            for offset, token in enumerate(continuation):
                position_N.append(positions.setdefault((row, first + offset), len(positions)))
                token_N.append(token)
                request_N.append(len(requests))
            requests.append(request)
    input_BS = torch.zeros(len(rows), max(len(tokens) for tokens in rows), dtype=torch.long)
    for row, tokens in enumerate(rows):
        input_BS[row, : len(tokens)] = torch.tensor(tokens)
    place = torch.tensor(list(positions))
    return _Batch(
        input_BS=input_BS.to(device),
        row_P=place[:, 0].to(device),
        column_P=place[:, 1].to(device),
        position_N=torch.tensor(position_N, device=device),
        token_N=torch.tensor(token_N, device=device),
        request_N=torch.tensor(request_N, device=device),
        requests=np.array(requests, np.int64),
    )


def _score(model: Any, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    """Per request of the batch: summed log-likelihood, and how many tokens are not the most likely ones."""
    logp_PV = torch.log_softmax(_logits(model, batch), dim=-1)
    best_P = logp_PV.argmax(dim=-1)
    logp_N = logp_PV[batch.position_N, batch.token_N]
    count = len(batch.requests)
    total = torch.zeros(count, dtype=torch.float32, device=logp_N.device)
    total.index_add_(0, batch.request_N, logp_N.float())
    misses = torch.zeros(count, dtype=torch.long, device=logp_N.device)
    misses.index_add_(0, batch.request_N, (best_P[batch.position_N] != batch.token_N).long())
    rounded = total.to(logp_N.dtype)  # once, like tensor.sum()
    return rounded.double().cpu().numpy(), misses.cpu().numpy()


def _logits(model: Any, batch: _Batch) -> torch.Tensor:
    """Logits [P, V] at the positions that are read."""
    shape = batch.input_BS.shape
    cut = False

    def keep_read_positions(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal cut
        if not args or args[0].shape[:2] != shape:
            return None
        cut = True
        return (args[0][batch.row_P, batch.column_P].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(keep_read_positions)
    try:
        logits: torch.Tensor = model(input_ids=batch.input_BS, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if cut else logits[batch.row_P, batch.column_P]
