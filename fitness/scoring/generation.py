"""Greedy generation, planned once per item set and run once per candidate.

`model.generate` is general, and slow for tiny models: it spends much of its time on bookkeeping and continues until the
last sequence of the batch is done. `fitness.scoring.decoding` keeps its batch full instead, and a row's text is decoded
only if the last token could complete a stop string. Where a model or a task needs more (processed logits, another kind
of cache, no position ids), `model.generate` is used.

A text ends before the first stop string, at an end-of-sequence token, or after the task's maximum number of tokens.
lm-eval's `HFLM` gives the same with batches of one. In larger batches, HFLM continues after an end-of-sequence token
that the model's generation config does not name, so that a text depends on the other texts of its batch.

Where only the score counts, and only a text that equals a right one scores (`RightTexts`), a text also
ends as soon as it can become none of these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMixin, LogitsProcessor

from fitness.scoring.decoding import greedy
from fitness.scoring.ends import Ends, by_setting, end_tokens, greedy_settings, room_for_prompt
from fitness.scoring.prefix_tree import PASS_COST, PREFIX_COST, Tokens, common_beginning
from fitness.scoring.products import fast_products
from fitness.scoring.reading import Prompt, Verdicts, most_likely, pad_left, parameters_of, reads_apart
from fitness.tasks.lm_eval_rules import RightTexts

# Settings of a generation config that do not change greedy decoding. With any other, `model.generate` is used.
HARMLESS = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "epsilon_cutoff", "eta_cutoff",
    "max_length", "max_new_tokens", "min_p", "num_beams", "output_attentions", "output_hidden_states",
    "pad_token_id", "return_dict_in_generate", "temperature", "top_h", "top_k", "top_p",
    "transformers_version", "typical_p", "use_cache",
}  # fmt: skip
LENGTHS = 4
"""Prompts are sorted into so many lengths."""
PREFIX_KEY = 16
"""Prompts that begin with the same so many tokens are looked at for a longer common prefix."""


@dataclass(frozen=True)
class _Group:
    """Prompts with the same settings: those with a common prefix together, longest first."""

    prompts: tuple[Prompt, ...]
    requests: tuple[int, ...]  # by the prompts' numbers
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
    right
        For each request the texts of which one has to be answered for a score above 0; None where others may score.
        Empty: none is known.

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
        right: Sequence[RightTexts | None] = (),
    ) -> None:
        self.size = len(prompts)
        self.tokenizer = tokenizer
        self.batch_size, self.device = batch_size, device
        self._right = tuple(right)
        self._verdicts: Verdicts = {}
        self._groups: list[_Group] = []
        for requests in by_setting(settings):
            count, stop, extra = greedy_settings(settings[requests[0]], tokenizer)
            room = room_for_prompt(count, max_length)
            drafts = [self._draft(request)[: count - 1] for request in requests]
            cut = [prompts[request][-room:] for request in requests]
            asked = _ordered(
                [
                    Prompt(number, tokens, draft=draft)
                    for number, (tokens, draft) in enumerate(zip(cut, drafts, strict=True))
                ]
            )
            self._groups.append(_Group(asked, tuple(requests), count, stop, extra))

    def _draft(self, request: int) -> tuple[int, ...]:
        """Return the tokens of a right answer, if one is known."""
        right = self._right[request] if self._right else None
        return tuple(self.tokenizer(right.texts[0], add_special_tokens=False).input_ids) if right else ()

    @torch.inference_mode()
    def run(self, model: Any, *, whole: bool = True) -> tuple[list[str], float, list[int]]:
        """Generate all texts.

        Parameters
        ----------
        model
            The model.
        whole
            Whether every text is wanted to its end; if not, a text may end where it can only be wrong.

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
        for group in self._groups:
            right = [] if whole or not self._right else [self._right[request] for request in group.requests]
            eos = end_tokens(model, self.tokenizer)
            ends = Ends(self.tokenizer, len(group.requests), group.max_new_tokens, group.stop, eos, right)
            with fast_products(model):
                self._answer(model, group, ends)
            for number, request in enumerate(group.requests):
                texts[request], is_truncated = ends.text(number)
                if is_truncated:
                    truncated.append(request)
        return texts, time.perf_counter() - start, truncated

    def _answer(self, model: Any, group: _Group, ends: Ends) -> None:
        if _loop_applies(model, group):
            self._decode(model, group, ends)
            return
        for at in range(0, len(group.prompts), self.batch_size):
            _generate(model, group, group.prompts[at : at + self.batch_size], ends, self.device)

    def _decode(self, model: Any, group: _Group, ends: Ends) -> None:
        prompts = group.prompts
        if not reads_apart(model):
            prompts = tuple(sorted(prompts, key=_longest_first))
        greedy(
            model,
            prompts,
            ends.done,
            rows=self.batch_size,
            most_tokens=group.max_new_tokens,
            device=self.device,
            verdicts=self._verdicts,
        )


def _longest_first(prompt: Prompt) -> tuple[int, Tokens]:
    return -len(prompt.tokens), prompt.tokens


def _by_length(prompts: Sequence[Prompt]) -> Callable[[Prompt], tuple[int, Tokens]]:
    """Return a key that sorts the longest first, and those of about the same length by their tokens."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    return lambda prompt: (-(LENGTHS * len(prompt.tokens) // longest), prompt.tokens)


def _ordered(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Return prompts with what each shares with others, in the order in which they are read."""
    alike: dict[Tokens, list[Prompt]] = {}
    for prompt in prompts:
        alike.setdefault(prompt.tokens[:PREFIX_KEY], []).append(prompt)
    found: dict[int, list[Prompt]] = {}
    for number, members in enumerate(alike.values()):
        shared = _beginning([prompt.tokens for prompt in members])
        found.setdefault(number if shared else -1, []).extend(replace(prompt, shared=shared) for prompt in members)
    groups = [sorted(members, key=_by_length(members)) for members in found.values()]
    return tuple(prompt for members in sorted(groups, key=lambda group: _longest_first(group[0])) for prompt in members)


def _loop_applies(model: Any, group: _Group) -> bool:
    """Whether `greedy` gives the same as `model.generate`."""
    return not group.extra and _plain_settings(model.generation_config) and _plain_model(model)


def _plain_settings(config: Any) -> bool:
    return set(config.to_diff_dict()) <= HARMLESS and (config.num_beams or 1) == 1


def _plain_model(model: Any) -> bool:
    return (
        not model.config.is_encoder_decoder
        and {"position_ids", "attention_mask", "past_key_values"} <= parameters_of(type(model).forward)
        and type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
        and {type(layer) for layer in DynamicCache(config=model.config).layers}
        <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def _beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many first tokens to read once for all prompts; each prompt keeps at least one more token."""
    first, last = min(prompts), max(prompts)  # in sorted order, all others are between them
    shared = min(common_beginning(first, last), min(len(prompt) for prompt in prompts) - 1)
    tokens = sum(len(prompt) for prompt in prompts)
    cost = PASS_COST + tokens - shared * (len(prompts) - 1)
    return shared if cost <= PREFIX_COST * tokens else 0


def _generate(model: Any, group: _Group, prompts: Sequence[Prompt], ends: Ends, device: str) -> None:
    """Decode greedily by `model.generate`."""
    tokenizer = ends.tokenizer
    input_NS, mask_NS = pad_left([prompt.tokens for prompt in prompts], device)
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
    model.generate(
        input_ids=input_NS,
        attention_mask=mask_NS,
        max_length=input_NS.shape[1] + group.max_new_tokens,
        pad_token_id=next(token for token in candidates if token is not None),
        do_sample=False,
        use_cache=True,
        stopping_criteria=[_StopRows(ends, prompts)],
        logits_processor=[_RefuseNaN()],
        **group.extra,
    )


class _StopRows(StoppingCriteria):  # type: ignore[misc]  # mypy does not follow transformers
    """Makes `model.generate` stop each row separately."""

    def __init__(self, ends: Ends, prompts: Sequence[Prompt]) -> None:
        self._ends, self._prompts = ends, prompts
        self._done = [False] * len(prompts)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self._done[row] = self._done[row] or self._ends.done(self._prompts[row].number, token)
        return torch.tensor(self._done, device=input_ids.device)


class _RefuseNaN(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        most_likely(scores)
        return scores
