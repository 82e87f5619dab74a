"""Greedy decoding with continuous batching: a row that is done makes room for a prompt that waits.

All rows of a batch write their keys and values into the same column of one buffer per layer, and each row has its own
mask and its own positions. So a prompt can join at any time: its keys and values are put into the columns before the
current one, as if it had been padded on the left from the start. Columns that no row needs any more are dropped when
the buffer is full. The buffers are allocated once, where a growing cache is copied for each token.

Prompts are read by `fitness.scoring.reading`, as many as fit into a pass, and those without a row wait for one: so a
row that is done is taken at once, many answers are over before they need a row, and passes over prompts are few.

Shapes: B rows, C columns, K columns of a prompt, N prompts, R rows and S slots of a pass over prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from fitness.scoring.reading import Answer, Joining, Prompt, Read, Reader, Verdicts, most_likely, parameters_of

SHRINK_AT = 0.9  # free rows are dropped when no prompt is left and at most this share of the rows is taken
SLACK = 8  # columns beyond those that rows need, and the share of new tokens: how seldom columns are dropped

Done = Callable[[int, int], bool]
"""Appends a token to a prompt's answer; whether it is the last one."""


def greedy(
    model: Any,
    prompts: Sequence[Prompt],
    done: Done,
    *,
    rows: int,
    most_tokens: int,
    device: str | torch.device,
    verdicts: Verdicts | None = None,
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
    device
        Where the model is.
    verdicts
        What is known of kinds of models; see `Reader`.

    Raises
    ------
    ValueError
        The model gave NaN.
    """
    batch = _Batch(model, prompts, done, min(rows, len(prompts)), most_tokens, device, verdicts)
    while True:
        idle = batch.place()
        if idle and batch.waiting:
            batch.read()
        elif idle == batch.rows:
            return
        else:
            if batch.rows - idle <= SHRINK_AT * batch.rows:
                batch.shrink()
            batch.step()


def _last_only(model: Any) -> dict[str, int]:
    """Return the argument that makes a model compute the logits of the last token only, if it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in parameters_of(type(model).forward) else {}


class _Batch:
    """Rows that are decoded together, prompts that were read and have no row yet, and prompts that wait."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        done: Done,
        rows: int,
        most_tokens: int,
        device: str | torch.device,
        verdicts: Verdicts | None,
    ) -> None:
        self.model, self.rows, self.device = model, rows, device
        self.waiting = list(reversed(prompts))  # the next one last
        self._done = done
        self._answers: list[Answer | None] = [None] * rows
        self._read: list[Read] = []  # of the last pass, prompts without a row
        self._reader = Reader(model, rows, max(len(prompt.tokens) for prompt in prompts), device, verdicts)
        width = max(prompt.most for prompt in prompts)
        capacity = width + most_tokens + max(SLACK, most_tokens // SLACK)
        self._columns = _Columns(capacity, begin=0, end=width)
        self._layers = [_Rows(self._columns, rows) for _ in DynamicCache(config=model.config).layers]
        self._seen_BC = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self._masked = True
        self._options = _last_only(model)

    # --- prompts ---

    def read(self) -> None:
        """Read waiting prompts; this finds the first tokens of their answers."""
        read = self._reader.read(self.waiting)
        pairs = enumerate(zip(read.prompts, read.found, strict=True))
        left = [at for at, (prompt, new) in pairs if not any(self._done(prompt.number, token) for token in new)]
        self._read = [read.only(left)] if left else []

    def place(self) -> int:
        """Give free rows to prompts that were read; return how many rows stay free."""
        free = [row for row, answer in enumerate(self._answers) if answer is None]
        if not free or not self._read:
            return len(free)
        (read,) = self._read
        count = len(read.prompts)
        rows = free[:count]
        first = read.only(range(len(rows)))
        self._read = [read.only(range(len(rows), count))] if len(rows) < count else []
        into_N = torch.tensor(rows, device=self.device)
        place, mask_NK = first.columns(self.device)
        for kept, joining in zip(self._layers, read.layers, strict=True):
            kept.put(into_N, joining, place)
        end = self._columns.end
        self._seen_BC[into_N] = 0
        self._seen_BC[into_N, end - mask_NK.shape[1] : end] = mask_NK
        for row, answer in zip(rows, first.answers(), strict=True):
            self._answers[row] = answer
        self._look_at_masks()
        return len(free) - len(rows)

    def _look_at_masks(self) -> None:
        """Find the first column that a row needs, and whether any is hidden from a row; free rows need none."""
        running = [row for row, answer in enumerate(self._answers) if answer is not None]
        seen_C = self._seen_BC[running].amax(dim=0)
        self._columns.begin = int(seen_C.argmax())
        if len(running) < self.rows:
            self._seen_BC[[row for row, answer in enumerate(self._answers) if answer is None]] = 1
        self._masked = not bool(self._seen_BC[:, self._columns.begin : self._columns.end].all())

    # --- steps ---

    def step(self) -> None:
        """Find the next token of each row."""
        columns = self._columns
        if columns.end == columns.capacity:
            self._drop_columns()
        self._seen_BC[:, columns.end] = 1
        inputs = [(0, 0) if answer is None else (answer.token, answer.position) for answer in self._answers]
        input_2B1 = torch.tensor(inputs, device=self.device).T[..., None]
        logits_BV = self.model(
            input_ids=input_2B1[0],
            attention_mask=self._seen_BC[:, columns.begin : columns.end + 1] if self._masked else None,
            position_ids=input_2B1[1],
            past_key_values=Cache(layers=self._layers),
            use_cache=True,
            **self._options,
        ).logits[:, -1]
        columns.end += 1
        for row, token in enumerate(most_likely(logits_BV).tolist()):
            answer = self._answers[row]
            if answer is not None:
                over = self._done(answer.number, token)
                self._answers[row] = None if over else Answer(answer.number, token, answer.position + 1)

    def _drop_columns(self) -> None:
        """Move to the front what rows still need, with room for the longest prompt without a row."""
        self._look_at_masks()
        columns = self._columns
        longest = max((prompt.most for prompt in self.waiting), default=0)
        first = min(columns.begin, columns.end - max([longest, *(read.longest for read in self._read)]))
        for layer in self._layers:
            layer.drop(first)
        self._seen_BC = torch.cat([self._seen_BC[:, first:], torch.zeros_like(self._seen_BC[:, :first])], dim=1)
        columns.begin, columns.end = columns.begin - first, columns.end - first

    def shrink(self) -> None:
        """Drop the rows that are free: rows behind the number that is left move to free ones before it."""
        running = [row for row, answer in enumerate(self._answers) if answer is not None]
        self.rows = len(running)
        moved = [row for row in running if row >= self.rows]
        free = [row for row in range(self.rows) if self._answers[row] is None]
        from_N, into_N = (torch.tensor(rows, dtype=torch.long, device=self.device) for rows in (moved, free))
        for layer in self._layers:
            layer.move(from_N, into_N, self.rows)
        self._seen_BC[into_N] = self._seen_BC[from_N]
        for row, into in zip(moved, free, strict=True):
            self._answers[into] = self._answers[row]
        self._seen_BC, self._answers = self._seen_BC[: self.rows], self._answers[: self.rows]
        self._look_at_masks()


@dataclass
class _Columns:
    """How many columns the buffers have, and which of them hold what rows need."""

    capacity: int
    begin: int
    end: int


class _Rows(DynamicLayer):  # type: ignore[misc]  # mypy does not follow transformers
    """Keys and values of all rows in one layer, [B, C, heads, size]; each step fills the column `columns.end`."""

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
        self.keys[:, end] = key_states[:, :, 0]
        self.values[:, end] = value_states[:, :, 0]
        return self.keys[:, begin : end + 1].transpose(1, 2), self.values[:, begin : end + 1].transpose(1, 2)

    def put(self, into_N: torch.Tensor, read: Joining, place: torch.Tensor) -> None:
        """Copy keys and values of N prompts before the current column, and those of their prefix before these.

        `place` are the prompts' slots in all rows of the pass, int64[N * K].
        """
        if not self.is_initialized:
            shape = self._count, self._columns.capacity, read.keys.shape[1]
            self.keys = read.keys.new_zeros(*shape, read.keys.shape[-1])
            self.values = read.values.new_zeros(*shape, read.values.shape[-1])
            self.dtype, self.device, self.is_initialized = read.keys.dtype, read.keys.device, True
        into_N, place = into_N.to(read.keys.device), place.to(read.keys.device)  # a split model has several devices
        count, end = len(into_N), self._columns.end
        begin = end - len(place) // count
        first = begin - read.get_seq_length()
        for name in ("keys", "values"):
            kept, (rows, heads, slots, size) = getattr(self, name), getattr(read, name).shape
            own = getattr(read, name).transpose(1, 2).reshape(rows * slots, heads, size).index_select(0, place)
            kept[:, begin:end].index_copy_(0, into_N, own.unflatten(0, (count, -1)))
            if read.prefix is not None:
                prefix = getattr(read.prefix, name).transpose(1, 2)
                kept[:, first:begin].index_copy_(0, into_N, prefix.expand(count, -1, -1, -1))

    def drop(self, first: int) -> None:
        """Move the columns from `first` on to the front."""
        end = self._columns.end
        for kept in (self.keys, self.values):
            kept[:, : end - first] = kept[:, first:end].clone()

    def move(self, from_N: torch.Tensor, into_N: torch.Tensor, count: int) -> None:
        """Move some rows into others, and keep the first `count`."""
        begin, end = self._columns.begin, self._columns.end
        from_N, into_N = from_N.to(self.keys.device), into_N.to(self.keys.device)
        for kept in (self.keys, self.values):
            kept[into_N, begin:end] = kept[from_N, begin:end]
        self.keys, self.values, self._count = self.keys[:count], self.values[:count], count
