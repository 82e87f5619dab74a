"""Greedy generation, planned once per item set and run once per candidate.

`model.generate` is general, and slow for tiny models: it spends much of its time on bookkeeping and continues until the
last sequence of the batch is done. The loop below keeps a key-value cache, reads the common prefix of a batch's prompts
(few-shot examples) once, drops finished rows, and decodes a row's text only if the last token could complete a stop
string. Where a model or a task needs more (processed logits, another kind of cache, no position ids),
`model.generate` is used.

A text ends before the first stop string, at an end-of-sequence token, or after the task's maximum number of tokens.
lm-eval's `HFLM` gives the same with batches of one. In larger batches, HFLM continues after an end-of-sequence token
that the model's generation config does not name, so that a text depends on the other texts of its batch.

Shapes: B rows, S tokens, F tokens of a common prefix, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMixin, LogitsProcessor

from fitness.scoring.ends import Ends, by_setting, end_tokens, greedy_settings, room_for_prompt
from fitness.scoring.prefix_tree import PASS_COST, PREFIX_COST, common_beginning
from fitness.scoring.shared_prefix import obstacle

# Settings of a generation config that do not change greedy decoding. With any other, `model.generate` is used.
HARMLESS = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "epsilon_cutoff", "eta_cutoff",
    "max_length", "max_new_tokens", "min_p", "num_beams", "output_attentions", "output_hidden_states",
    "pad_token_id", "return_dict_in_generate", "temperature", "top_h", "top_k", "top_p",
    "transformers_version", "typical_p", "use_cache",
}  # fmt: skip
SHRINK_AT = 0.75  # drop finished rows when at most this share is left, because copying the cache takes time


@dataclass(frozen=True)
class _Batch:
    input_BS: torch.Tensor  # prompts, padded on the left with 0
    mask_BS: torch.Tensor  # 1 for tokens, 0 for padding
    beginning: int  # F: length of the common prefix of all prompts if reading it once saves time; else 0
    requests: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    extra: Mapping[str, Any]


class GenerationPlan:
    """Batches for a list of texts to generate.

    Parameters
    ----------
    prompts
        R prompts as tokens.
    settings
        The tasks' R `generation_kwargs`.
    max_length
        Longest prompt plus answer, in tokens; longer prompts are cut at the left.
    batch_size
        Rows per forward pass.

    Raises
    ------
    TaskError
        The answer leaves no room for a prompt.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        device: str,
    ) -> None:
        self.size = len(prompts)
        self.tokenizer = tokenizer
        self._batches: list[_Batch] = []
        for requests in by_setting(settings):
            count, stop, extra = greedy_settings(settings[requests[0]], tokenizer)
            room = room_for_prompt(count, max_length)
            ordered = sorted(requests, key=lambda r: (-len(prompts[r]), prompts[r]))
            for at in range(0, len(ordered), batch_size):
                part = tuple(ordered[at : at + batch_size])
                cut = [prompts[r][-room:] for r in part]
                input_BS, mask_BS = _pad_left(cut, device)
                self._batches.append(_Batch(input_BS, mask_BS, _beginning(cut), part, count, stop, extra))

    @torch.inference_mode()
    def run(self, model: Any) -> tuple[list[str], float, list[int]]:
        """Generate all texts.

        Returns
        -------
        texts
            R texts without prompt and stop strings.
        seconds
            Time spent generating.
        truncated
            The requests whose text ended at the limit of new tokens, and neither at a stop string nor at an
            end-of-sequence token.

        Raises
        ------
        ValueError
            The model gave NaN.
        """
        texts = [""] * self.size
        truncated = []
        start = time.perf_counter()
        for batch in self._batches:
            eos = end_tokens(model, self.tokenizer)
            ends = Ends(self.tokenizer, len(batch.requests), batch.max_new_tokens, batch.stop, eos)
            decode = _greedy if _loop_applies(model, batch) else _generate
            decode(model, batch, ends)
            for row, request in enumerate(batch.requests):
                texts[request], is_truncated = ends.text(row)
                if is_truncated:
                    truncated.append(request)
        return texts, time.perf_counter() - start, truncated


def _loop_applies(model: Any, batch: _Batch) -> bool:
    """Whether the loop below gives the same as `model.generate`."""
    return not batch.extra and _plain_settings(model.generation_config) and _plain_model(model)


def _plain_settings(config: Any) -> bool:
    return set(config.to_diff_dict()) <= HARMLESS and (config.num_beams or 1) == 1


def _plain_model(model: Any) -> bool:
    return (
        not model.config.is_encoder_decoder
        and {"position_ids", "attention_mask", "past_key_values"} <= _forward_parameters(model)
        and type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
        and {type(layer) for layer in _new_cache(model).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def _forward_parameters(model: Any) -> frozenset[str]:
    return _parameters(type(model).forward)


@lru_cache(maxsize=8)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _new_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def _pad_left(prompts: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts [B, S], padded on the left with 0, and their mask [B, S]."""
    width = max(len(prompt) for prompt in prompts)
    input_BS = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BS = torch.zeros_like(input_BS)
    for row, prompt in enumerate(prompts):
        input_BS[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BS[row, width - len(prompt) :] = 1
    return input_BS.to(device), mask_BS.to(device)


def _beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many first tokens to read once for all prompts; each prompt keeps at least one more token."""
    first, last = min(prompts), max(prompts)  # in sorted order, all others lie between them
    shared = min(common_beginning(first, last), min(len(prompt) for prompt in prompts) - 1)
    tokens = sum(len(prompt) for prompt in prompts)
    cost = PASS_COST + tokens - shared * (len(prompts) - 1)
    return shared if cost <= PREFIX_COST * tokens else 0


def _reads_apart(model: Any, cache: DynamicCache) -> bool:
    """Whether the common prefix may be read first, with padding between it and the rest.

    With a sliding-window cache it may not: the window counts the padding.
    """
    return obstacle(model) is None and all(type(layer) is DynamicLayer for layer in cache.layers)


def _read_beginning(model: Any, batch: _Batch, cache: DynamicCache) -> None:
    """Put keys and values of the common prefix into the cache, for each row."""
    longest = int(batch.mask_BS.sum(dim=1).argmax())  # has no padding
    common_1F = batch.input_BS[longest : longest + 1, : batch.beginning]
    position_1F = torch.arange(batch.beginning, device=common_1F.device)[None]
    model(input_ids=common_1F, position_ids=position_1F, past_key_values=cache, use_cache=True, **_last_only(model))
    cache.batch_repeat_interleave(len(batch.requests))


def _mask_without_beginning(batch: _Batch) -> torch.Tensor:
    """Return the mask [B, S] of the common prefix, followed by the input without its first F columns.

    In a row with p places of padding, the first p of these columns repeat tokens of the prefix; they are masked.
    """
    width = batch.input_BS.shape[1]
    padding_B1 = width - batch.mask_BS.sum(dim=1, keepdim=True)
    own_BS = torch.arange(width - batch.beginning, device=padding_B1.device) >= padding_B1
    return torch.cat([torch.ones_like(batch.mask_BS[:, : batch.beginning]), own_BS.to(batch.mask_BS.dtype)], dim=1)


def _last_only(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in _forward_parameters(model) else {}


def _greedy(model: Any, batch: _Batch, ends: Ends) -> None:
    """Decode greedily with a key-value cache; finished rows leave the batch."""
    input_BS, mask_BS = batch.input_BS, batch.mask_BS
    options = _last_only(model)
    cache, width = _new_cache(model), input_BS.shape[1]
    position = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
    if batch.beginning and _reads_apart(model, cache):
        _read_beginning(model, batch, cache)
        input_BS, position = input_BS[:, batch.beginning :], position[:, batch.beginning :]
        mask_BS = _mask_without_beginning(batch)
    ones = mask_BS.new_ones(len(batch.requests), batch.max_new_tokens)
    mask = None if bool(mask_BS.all()) else torch.cat([mask_BS, ones], dim=1)
    alive = list(range(len(batch.requests)))  # the cache's rows
    pending = set(alive)
    for step in range(batch.max_new_tokens):
        logits = model(
            input_ids=input_BS,
            attention_mask=None if mask is None else mask[:, : width + step],
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            **options,
        ).logits[:, -1]
        token_B = _most_likely(logits)
        for row, token in zip(alive, token_B.tolist(), strict=True):
            if row in pending and ends.done(row, token):
                pending.remove(row)
        if not pending:
            break
        position = position[:, -1:] + 1
        if len(pending) <= SHRINK_AT * len(alive):
            left = torch.tensor([at for at, row in enumerate(alive) if row in pending])
            left = left.to(input_BS.device)
            cache.batch_select_indices(left)
            token_B, position = token_B[left], position[left]
            mask = None if mask is None else mask[left]
            alive = [row for row in alive if row in pending]
        input_BS = token_B[:, None]


def _most_likely(logits_BV: torch.Tensor) -> torch.Tensor:
    """Return the index of the largest logit per row, int64[B]; raise ValueError if a logit is NaN."""
    value_B, token_B = logits_BV.max(dim=-1)
    if bool(value_B.isnan().any()):
        raise ValueError("the model produced NaN instead of logits: its weights are not usable")
    return token_B


def _generate(model: Any, batch: _Batch, ends: Ends) -> None:
    """Decode greedily by `model.generate`."""
    tokenizer = ends.tokenizer
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
    model.generate(
        input_ids=batch.input_BS,
        attention_mask=batch.mask_BS,
        max_length=batch.input_BS.shape[1] + batch.max_new_tokens,
        pad_token_id=next(token for token in candidates if token is not None),
        do_sample=False,
        use_cache=True,
        stopping_criteria=[_StopRows(ends)],
        logits_processor=[_RefuseNaN()],
        **batch.extra,
    )


class _StopRows(StoppingCriteria):  # type: ignore[misc]  # mypy does not follow transformers
    """Makes `model.generate` stop each row separately."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._done = [False] * len(ends.rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self._done[row] = self._done[row] or self._ends.done(row, token)
        return torch.tensor(self._done, device=input_ids.device)


class _RefuseNaN(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        _most_likely(scores)
        return scores
