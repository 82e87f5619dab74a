"""Greedy decoding with continuous batching: a row that is done makes room for a prompt that waits.

All rows of a batch write their keys and values into the same column of one buffer per layer, and each row has its own
mask and its own positions. So a prompt can join at any time: its keys and values are put into the columns before the
current one, as if it had been padded on the left from the start. Columns that no row needs any more are dropped when
the buffer is full. The buffers are allocated once, where a growing cache is copied for each token.

A prefix that prompts share (few-shot examples) is read once, however many batches they fill.

Shapes: B rows, C columns, F tokens of a prefix, N prompts read at once, S tokens of the longest of these without their
prefix, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from fitness.scoring.shared_prefix import obstacle

SHRINK_AT = 0.75  # drop finished rows when no prompt waits and at most this share is left, because copying takes time
REFILL_AT = 1.0  # let prompts in once the idle steps of finished rows add up to this many steps of the whole batch, ...
REFILL_SHARE = 0.5  # ... or once this share of the rows is free
SLACK = 8  # columns beyond those that rows need, and the share of new tokens: how seldom columns are dropped

Tokens = tuple[int, ...]
Done = Callable[[int, int], bool]
"""Appends a token to a prompt's answer; whether it is the last one."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: its number, its tokens, and how many of the first of these it shares with those of its prefix group."""

    number: int
    tokens: Tokens
    shared: int = 0


def greedy(
    model: Any, prompts: Sequence[Prompt], done: Done, *, rows: int, most_tokens: int, device: str | torch.device
) -> None:
    """Decode greedily.

    Parameters
    ----------
    model
        A causal language model whose masks and positions are the caller's.
    prompts
        At least one; those that share a prefix follow each other.
    done
        Takes the answers.
    rows
        Sequences per forward pass; >= 1.
    most_tokens
        Longest answer.

    Raises
    ------
    ValueError
        The model gave NaN.
    """
    batch = _Batch(model, prompts, min(rows, len(prompts)), most_tokens, device)
    while True:
        for row, prompt, token in batch.new_tokens():
            if done(prompt.number, token):
                batch.prompt_of[row] = None
        idle = batch.prompt_of.count(None)
        batch.idled += idle
        enough = batch.idled >= REFILL_AT * batch.rows or idle >= REFILL_SHARE * batch.rows
        if batch.waiting and idle and enough:
            batch.refill()
        elif idle == batch.rows:
            return
        else:
            if not batch.waiting and batch.rows - idle <= SHRINK_AT * batch.rows:
                batch.shrink()
            batch.step()


def last_only(model: Any) -> dict[str, int]:
    """Return the argument that makes a model compute the logits of the last token only, if it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in parameters_of(type(model).forward) else {}


@lru_cache(maxsize=8)
def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


def reads_apart(model: Any) -> bool:
    """Whether a common prefix may be read first, with padding between it and the rest.

    With a sliding window it may not: the window counts the padding.
    """
    layers = DynamicCache(config=model.config).layers
    return obstacle(model) is None and all(type(layer) is DynamicLayer for layer in layers)


def most_likely(logits_BV: torch.Tensor) -> torch.Tensor:
    """Return the index of the largest logit per row, int64[B]; raise ValueError if a logit is NaN."""
    value_B, token_B = logits_BV.max(dim=-1)
    if bool(value_B.isnan().any()):
        raise ValueError("the model produced NaN instead of logits: its weights are not usable")
    return token_B


def pad_left(prompts: Sequence[Tokens], device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts [N, S], padded on the left with 0, and their mask [N, S]: 1 for tokens, 0 for padding."""
    width = max(len(prompt) for prompt in prompts)
    input_NS = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_NS = torch.zeros_like(input_NS)
    for row, prompt in enumerate(prompts):
        input_NS[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_NS[row, width - len(prompt) :] = 1
    return input_NS.to(device), mask_NS.to(device)


class _Batch:
    """Rows that are decoded together, and the prompts that wait."""

    def __init__(
        self, model: Any, prompts: Sequence[Prompt], rows: int, most_tokens: int, device: str | torch.device
    ) -> None:
        self.model, self.rows, self.idled, self.device = model, rows, 0, device
        self.waiting = list(reversed(prompts))  # the next one last
        self.prompt_of: list[Prompt | None] = [None] * rows
        width = max(len(prompt.tokens) for prompt in prompts)
        capacity = width + most_tokens + max(SLACK, most_tokens // SLACK)
        self._columns = _Columns(capacity, begin=0, end=width)
        self._layers = [_Rows(self._columns, rows) for _ in DynamicCache(config=model.config).layers]
        self._token_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._position_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._seen_BC = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self._masked = True
        self._new: list[int] = []  # rows whose last token has not been looked at
        self._prefix: tuple[Tokens, list[DynamicLayer]] = ((), [])
        self._options = last_only(model)
        self.refill()

    def new_tokens(self) -> list[tuple[int, Prompt, int]]:
        """Return rows with their prompts and the tokens found by the last pass."""
        tokens = self._token_B.tolist()
        found = [(row, self.prompt_of[row], tokens[row]) for row in self._new]
        return [(row, prompt, token) for row, prompt, token in found if prompt is not None]

    def refill(self) -> None:
        """Let waiting prompts into the rows that are free; this finds their first tokens."""
        free = [row for row, prompt in enumerate(self.prompt_of) if prompt is None]
        self._new, self.idled = [], 0
        while free and self.waiting:
            prefix = _prefix_of(self.waiting[-1])
            count = 0
            while count < min(len(free), len(self.waiting)) and _prefix_of(self.waiting[-1 - count]) == prefix:
                count += 1
            self._read([self.waiting.pop() for _ in range(count)], free[:count], prefix)
            self._new += free[:count]
            free = free[count:]
        self._look_at_masks()

    def _read(self, prompts: Sequence[Prompt], rows: list[int], prefix: Tokens) -> None:
        """Read prompts behind their common prefix, and put their keys and values before the current column."""
        first = self._read_prefix(prefix) or [None] * len(self._layers)
        input_NS, own_NS = pad_left([prompt.tokens[len(prefix) :] for prompt in prompts], self.device)
        mask_NK = torch.cat([own_NS.new_ones(len(prompts), len(prefix)), own_NS], dim=1)
        position_NS = len(prefix) + (own_NS.cumsum(dim=1) - 1).clamp(min=0)
        joining = [_Joining(*pair, rows, len(prefix)) for pair in zip(self._layers, first, strict=True)]
        logits_NV = self._forward(input_NS, None if bool(own_NS.all()) else mask_NK, position_NS, joining)
        self._token_B[rows] = most_likely(logits_NV)
        self._position_B[rows] = position_NS[:, -1]
        self._seen_BC[rows] = 0
        self._seen_BC[rows, self._columns.end - mask_NK.shape[1] : self._columns.end] = mask_NK
        for row, prompt in zip(rows, prompts, strict=True):
            self.prompt_of[row] = prompt

    def _read_prefix(self, prefix: Tokens) -> list[DynamicLayer]:
        """Return keys and values of a prefix by layer; the last one is kept."""
        if not prefix:
            return []
        if prefix != self._prefix[0]:
            input_1F = torch.tensor([prefix], device=self.device)
            position_1F = torch.arange(len(prefix), device=self.device)[None]
            layers = [DynamicLayer() for _ in self._layers]
            self._forward(input_1F, None, position_1F, layers)
            self._prefix = prefix, layers
        return self._prefix[1]

    def _look_at_masks(self) -> None:
        """Find the first column that a row needs, and whether any is hidden from a row; free rows need none."""
        running = [row for row, prompt in enumerate(self.prompt_of) if prompt is not None]
        seen_C = self._seen_BC[running].amax(dim=0)
        self._columns.begin = int(seen_C.argmax())
        if len(running) < self.rows:
            self._seen_BC[[row for row, prompt in enumerate(self.prompt_of) if prompt is None]] = 1
        self._masked = not bool(self._seen_BC[:, self._columns.begin : self._columns.end].all())

    def step(self) -> None:
        """Find the next token of each row."""
        columns = self._columns
        if columns.end == columns.capacity:
            self._drop_columns()
        self._seen_BC[:, columns.end] = 1
        self._position_B = self._position_B + 1
        mask_BC = self._seen_BC[:, columns.begin : columns.end + 1] if self._masked else None
        logits_BV = self._forward(self._token_B[:, None], mask_BC, self._position_B[:, None], self._layers)
        columns.end += 1
        self._token_B = most_likely(logits_BV)
        self._new = list(range(self.rows))

    def _forward(
        self,
        input_NS: torch.Tensor,
        mask_NK: torch.Tensor | None,
        position_NS: torch.Tensor,
        layers: Sequence[DynamicLayer],
    ) -> torch.Tensor:
        """Return the logits [N, V] of the last tokens."""
        logits: torch.Tensor = self.model(
            input_ids=input_NS,
            attention_mask=mask_NK,
            position_ids=position_NS,
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
            **self._options,
        ).logits[:, -1]
        return logits

    def _drop_columns(self) -> None:
        """Move to the front what rows still need, with room for the longest prompt that waits."""
        self._look_at_masks()
        columns = self._columns
        first = min(columns.begin, columns.end - max((len(prompt.tokens) for prompt in self.waiting), default=0))
        for layer in self._layers:
            layer.drop(first)
        self._seen_BC = torch.cat([self._seen_BC[:, first:], torch.zeros_like(self._seen_BC[:, :first])], dim=1)
        columns.begin, columns.end = columns.begin - first, columns.end - first

    def shrink(self) -> None:
        """Drop the rows that are free."""
        left = [row for row, prompt in enumerate(self.prompt_of) if prompt is not None]
        for layer in self._layers:
            layer.keep(left)
        self._token_B, self._position_B = self._token_B[left], self._position_B[left]
        self._seen_BC = self._seen_BC[left]
        self.prompt_of, self.rows = [self.prompt_of[row] for row in left], len(left)
        self._look_at_masks()


def _prefix_of(prompt: Prompt) -> Tokens:
    return prompt.tokens[: prompt.shared]


@dataclass
class _Columns:
    """How many columns the buffers have, and which of them hold what rows need."""

    capacity: int
    begin: int
    end: int


class _Rows(DynamicLayer):  # type: ignore[misc]  # mypy does not follow transformers
    """Keys and values of all rows in one layer; each step fills the column `columns.end`."""

    def __init__(self, columns: _Columns, rows: int) -> None:
        super().__init__()
        self._columns, self._count = columns, rows
        self.is_initialized = False

    def get_seq_length(self) -> int:
        """Return the number of columns before the current one."""
        return self._columns.end - self._columns.begin

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a step's keys and values, [B, heads, 1, size]; return all that rows may see."""
        begin, end = self._columns.begin, self._columns.end
        self.keys[:, :, end : end + 1] = key_states
        self.values[:, :, end : end + 1] = value_states
        return self.keys[:, :, begin : end + 1], self.values[:, :, begin : end + 1]

    def put(self, rows: list[int], key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Store the keys and values of prompts, [N, heads, K, size], before the current column."""
        if not self.is_initialized:
            shape = self._count, key_states.shape[1], self._columns.capacity
            self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
            self.values = value_states.new_zeros(*shape, value_states.shape[-1])
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self._columns.end
        begin = end - key_states.shape[2]
        self.keys[rows, :, begin:end] = key_states
        self.values[rows, :, begin:end] = value_states

    def drop(self, first: int) -> None:
        """Move the columns from `first` on to the front."""
        end = self._columns.end
        for kept in (self.keys, self.values):
            kept[:, :, : end - first] = kept[:, :, first:end].clone()

    def keep(self, rows: list[int]) -> None:
        """Keep some rows only."""
        self.keys, self.values, self._count = self.keys[rows], self.values[rows], len(rows)


class _Joining(DynamicLayer):  # type: ignore[misc]
    """Prompts that are read to join the rows of one layer, behind the keys and values of their prefix."""

    def __init__(self, kept: _Rows, prefix: DynamicLayer | None, rows: list[int], length: int) -> None:
        super().__init__()
        self._kept, self._prefix, self._rows, self._length = kept, prefix, rows, length

    def get_seq_length(self) -> int:
        """Return the length of the prefix."""
        return self._length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the prompts' keys and values, [N, heads, S, size]; return them behind those of the prefix."""
        if self._prefix is not None:
            count = len(key_states)
            key_states = torch.cat([self._prefix.keys.expand(count, -1, -1, -1), key_states], dim=2)
            value_states = torch.cat([self._prefix.values.expand(count, -1, -1, -1), value_states], dim=2)
        self._kept.put(self._rows, key_states, value_states)
        return key_states, value_states
