"""Reading prompts: their first tokens, their keys and values, and the part of their drafts that the model agrees with.

A prefix that prompts share (few-shot examples) is read once, however many batches they fill, and prompts of one pass
that begin alike are packed into rows (`prefix_tree`).

A prompt may come with a draft, such as the right answer. Its first tokens are read with the prompt, and those count
that the model would choose, too: the answer is the same, in fewer passes (Leviathan et al., "Fast Inference from
Transformers via Speculative Decoding", 2023, for greedy choices). How many are read depends on how many were right so
far.

Whether a model reads packed rows correctly is measured: the first pass of a kind of model is compared with one in plain
rows, which all models of that kind use if a log-likelihood differs by more than rounding.

Shapes: K columns of a prompt, N prompts, P slots that are looked at, R rows and S slots of a pass, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from fitness.scoring.loglikelihood import tolerance
from fitness.scoring.prefix_tree import PASS_COST, Path, Row, Tokens, rows_behind
from fitness.scoring.shared_prefix import Packed, kind_of, obstacle, read_prefix, read_rows
from fitness.scoring.shortage import no_memory

MOST_DRAFTED = 32  # tokens of a draft
MOST_READ = 2  # prompts of a pass, as a multiple of the rows
MORE = 1.15  # prompts that are looked at for a pass, as a multiple of those that the last one read
Verdicts = dict[tuple[object, ...], bool]
"""By kind of model, whether it reads packed rows as it reads plain ones."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes
    ----------
    number
        Its number.
    tokens
        Its tokens.
    shared
        How many of the first of these it shares with those of its prefix group.
    draft
        Tokens that may follow it; wrong ones only cost time.
    """

    number: int
    tokens: Tokens
    shared: int = 0
    draft: Tokens = ()

    @property
    def most(self) -> int:
        """Number of tokens with the draft."""
        return len(self.tokens) + len(self.draft)


@dataclass(frozen=True)
class Answer:
    """An answer that continues: its last token, which the model has not read, and that token's position."""

    number: int
    token: int
    position: int


@dataclass(frozen=True)
class Read:
    """Prompts that were read in one pass.

    Attributes
    ----------
    prompts
        N prompts.
    found
        The first tokens of their answers: the model has read all of these but the last.
    paths
        Row and slots of each prompt and of what it has read of the answer.
    layers
        Keys and values of the pass.
    prefix
        Number of tokens before the slots.
    """

    prompts: Sequence[Prompt]
    found: Sequence[Sequence[int]]
    paths: Sequence[Path]
    layers: Sequence[Joining]
    prefix: int

    def only(self, chosen: Sequence[int]) -> Read:
        """Return some of the prompts."""
        return replace(
            self,
            prompts=[self.prompts[at] for at in chosen],
            found=[self.found[at] for at in chosen],
            paths=[self.paths[at] for at in chosen],
        )

    def answers(self) -> list[Answer]:
        """Return the answers that continue."""
        pairs = zip(self.prompts, self.found, strict=True)
        return [Answer(prompt.number, new[-1], len(prompt.tokens) + len(new) - 1) for prompt, new in pairs]

    @property
    def longest(self) -> int:
        """Columns of the longest prompt."""
        return self.prefix + max((len(path) for _, path in self.paths), default=0)

    def columns(self, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places [N * S] of keys and values, padded on the left, and the mask [N, K] with the prefix."""
        slot_NS, own_NS = pad_left([path for _, path in self.paths], device)
        row_N1 = torch.tensor([[row] for row, _ in self.paths], device=device)
        place = (row_N1 * self.layers[0].keys.shape[2] + slot_NS).flatten()
        return place, torch.cat([own_NS.new_ones(len(own_NS), self.prefix), own_NS], dim=1)


class Reader:
    """Reads prompts.

    Parameters
    ----------
    model
        The model.
    rows
        Rows per forward pass.
    longest
        Tokens of the longest prompt.
    device
        Where the model is.
    verdicts
        What is known of kinds of models; what is found out is added.
    """

    def __init__(
        self, model: Any, rows: int, longest: int, device: str | torch.device, verdicts: Verdicts | None = None
    ) -> None:
        self._model, self._rows, self._longest, self._device = model, rows, longest, device
        self._verdicts = {} if verdicts is None else verdicts
        self._shares = self._verdicts.get(kind_of(model)) if reads_apart(model) else False
        self._layers = len(DynamicCache(config=model.config).layers)
        self._prefix: tuple[Tokens, Cache | None] = ((), None)
        self._compared = self._right = 0  # tokens of drafts
        self._taken = rows  # prompts of the last pass

    def read(self, waiting: list[Prompt]) -> Read:
        """Read as many prompts as fit: the last ones of `waiting`, as far as they share a prefix.

        Rows, and slots with the prefix, are at most those of a batch of the longest prompts. The first tokens of all
        answers are found.
        """
        shares = self._shares is not False
        prefix = _prefix_of(waiting[-1]) if shares else ()
        drafted = self._drafted() if shares else 0
        last = itertools.islice(reversed(waiting), self._most())
        prompts = list(itertools.takewhile(lambda one: not shares or _prefix_of(one) == prefix, last))
        drafts = [prompt.draft[:drafted] for prompt in prompts]
        room = self._rows * (self._longest + drafted)
        rows, paths = self._packed(prefix, prompts, drafts, room if shares else 0)
        widths = itertools.accumulate((len(prefix) + len(row.tokens) for row in rows[: self._rows]), max)
        count = sum(number * width <= room for number, width in enumerate(widths, start=1))
        left = [prompt for prompt, (row, _) in zip(prompts, paths, strict=True) if row >= count]
        waiting[len(waiting) - len(prompts) :] = reversed(left)
        taken = [at for at, (row, _) in enumerate(paths) if row < count]
        prompts, drafts = [prompts[at] for at in taken], [drafts[at] for at in taken]
        rows, paths = rows[:count], [paths[at] for at in taken]
        self._taken = len(prompts)
        if self._shares is None and (prefix or any(row.branches for row in rows)):
            return self._checked(prefix, prompts, drafts, rows, paths)
        return self._pass(prefix, prompts, drafts, rows, paths)[0]

    def _most(self) -> int:
        """Return how many prompts to look at: somewhat more than probably fit, so that all rows are full."""
        if not self._shares:
            return self._rows
        return min(MOST_READ * self._rows, max(self._rows, math.ceil(MORE * self._taken)))

    def _packed(
        self, prefix: Tokens, prompts: Sequence[Prompt], drafts: Sequence[Tokens], room: int
    ) -> tuple[list[Row], list[Path]]:
        sequences = [prompt.tokens + draft for prompt, draft in zip(prompts, drafts, strict=True)]
        return rows_behind(len(prefix), sequences, widest=room - len(prefix))

    def _drafted(self) -> int:
        """Return how many tokens of a draft to read: as many as probably save more than they cost.

        A right token saves its share of a step, in which each row has one.
        """
        chance = (self._right + 1) / (self._compared + 2)
        worth, count = (self._rows + PASS_COST) / self._rows, 0
        while count < MOST_DRAFTED and chance ** (count + 1) * worth >= 1:
            count += 1
        return count

    def _checked(
        self,
        prefix: Tokens,
        prompts: Sequence[Prompt],
        drafts: Sequence[Tokens],
        rows: Sequence[Row],
        paths: Sequence[Path],
    ) -> Read:
        """Read prompts packed and in plain rows, and keep in mind whether it comes to the same."""
        alone: list[Tokens] = [()] * len(prompts)
        plain, expected_NV = self._pass((), prompts, alone, *self._packed((), prompts, alone, 0))
        try:
            read, logits_NV = self._pass(prefix, prompts, drafts, rows, paths)
        except Exception as error:  # a model's own code may fail on such masks and caches
            if no_memory(error):
                raise
            self._shares = False
        else:
            value_N, token_N = logits_NV.float().log_softmax(dim=-1).max(dim=-1)
            expected_N = expected_NV.float().log_softmax(dim=-1).gather(1, token_N[:, None])[:, 0]
            absolute, relative = tolerance(self._model)
            self._shares = torch.allclose(value_N, expected_N, atol=absolute, rtol=relative)
        self._verdicts[kind_of(self._model)] = self._shares
        return read if self._shares else plain

    def _pass(
        self,
        prefix: Tokens,
        prompts: Sequence[Prompt],
        drafts: Sequence[Tokens],
        rows: Sequence[Row],
        paths: Sequence[Path],
    ) -> tuple[Read, torch.Tensor]:
        """Read prompts; return the logits [N, V] behind them, too."""
        if prefix != self._prefix[0]:
            self._prefix = prefix, read_prefix(self._model, prefix, self._device) if prefix else None
        shared = self._prefix[1]
        layers = [Joining(layer) for layer in (shared.layers if shared else [None] * self._layers)]
        looked_at = [path[len(path) - len(draft) - 1 :] for (_, path), draft in zip(paths, drafts, strict=True)]
        row_P = torch.tensor(
            [row for (row, _), slots in zip(paths, looked_at, strict=True) for _ in slots], device=self._device
        )
        slot_P = torch.tensor([slot for slots in looked_at for slot in slots], device=self._device)
        packed = Packed.of(rows, len(prefix), self._device)
        logits_PV = read_rows(self._model, packed, row_P, slot_P, Cache(layers=layers))
        best = iter(most_likely(logits_PV).tolist())
        found, kept = [], []
        for prompt, draft, (row, path) in zip(prompts, drafts, paths, strict=True):
            new = self._compare(prompt.draft, list(itertools.islice(best, len(draft) + 1)))
            found.append(new)
            kept.append((row, path[: len(path) - len(draft) + len(new) - 1]))
        first_N = torch.tensor([0, *itertools.accumulate(map(len, looked_at))][:-1], device=self._device)
        return Read(prompts, found, kept, layers, len(prefix)), logits_PV[first_N]

    def _compare(self, draft: Sequence[int], best: Sequence[int]) -> list[int]:
        """Return the most likely tokens up to the first that is not the draft's, and count how often drafts agree."""
        pairs = zip(draft, best, strict=False)
        same = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(draft), len(best)))
        self._right, self._compared = self._right + same, self._compared + min(same + 1, len(draft), len(best))
        return list(best[: same + 1])


def _prefix_of(prompt: Prompt) -> Tokens:
    return prompt.tokens[: prompt.shared]


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


def most_likely(logits_V: torch.Tensor) -> torch.Tensor:
    """Return the index of the largest logit, int64[...] of logits [..., V]; raise ValueError if a logit is NaN."""
    value, token = logits_V.max(dim=-1)
    if bool(value.isnan().any()):
        raise ValueError("the model produced NaN instead of logits: its weights are not usable")
    return token


def pad_left(prompts: Sequence[Tokens], device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts [N, S], padded on the left with 0, and their mask [N, S]: 1 for tokens, 0 for padding."""
    width = max(len(prompt) for prompt in prompts)
    input_NS = torch.tensor([(0,) * (width - len(prompt)) + tuple(prompt) for prompt in prompts])
    length_N = torch.tensor([len(prompt) for prompt in prompts])
    mask_NS = (torch.arange(width) >= width - length_N[:, None]).long()
    return input_NS.to(device), mask_NS.to(device)


class Joining(DynamicLayer):  # type: ignore[misc]
    """Keys and values of prompts that are read together in one layer, behind those of their prefix."""

    def __init__(self, prefix: DynamicLayer | None) -> None:
        super().__init__()
        self.prefix = prefix

    def get_seq_length(self) -> int:
        """Return the length of the prefix."""
        return 0 if self.prefix is None else int(self.prefix.keys.shape[2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the prompts' keys and values, [R, heads, S, size]; return them behind those of the prefix."""
        self.keys, self.values = key_states, value_states
        return (key_states, value_states) if self.prefix is None else self.prefix.update(key_states, value_states)
