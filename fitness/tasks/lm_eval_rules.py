"""Rules of lm-eval's Hugging Face model and metrics that scoring follows: its scores agree with them item for item."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# lm-eval is imported where a rule is applied: a search with a fitness function of its own needs none of it.


def longest_input(config: Any, tokenizer: Any) -> int:
    """Return the longest sequence in tokens that a model's config, or else its tokenizer, allows."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(config, tokenizer))


def generation_settings(setting: Mapping[str, Any], end: str | None) -> tuple[int, tuple[str, ...], dict[str, Any]]:
    """Return what a task's `generation_kwargs` mean: the number of new tokens, the stop strings, all other settings.

    Parameters
    ----------
    setting
        The task's `generation_kwargs`.
    end
        Text of the end-of-sequence token, which is a stop string too; None: there is none.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    given: dict[str, Any] = dict(normalize_gen_kwargs(dict(setting)))
    stop = handle_stop_sequences(given.pop("until", None), eos=end)
    count = int(given.pop("max_gen_toks"))
    return count, tuple(text for text in stop if text), given


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Return a generated text up to the first stop string."""
    from lm_eval.models.utils import postprocess_generated_text

    return str(postprocess_generated_text(text, list(stop), None))


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the global generators as `simple_evaluate` does before it loads tasks, and put their states back afterwards.

    Tasks whose documents are drawn or shuffled by `random` (GPQA) are then the same in each process.
    """
    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@dataclass(frozen=True)
class RightTexts:
    """The only texts that `exact_match` gives an item a score for.

    Attributes
    ----------
    texts
        The texts.
    ignore_case, ignore_punctuation, ignore_numbers
        What does not count, as in the task's YAML.
    """

    texts: tuple[str, ...]
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False

    def may_become(self, text: str, stop: tuple[str, ...]) -> bool:
        """Whether a generated text can still become one of these: it begins one, or the stop string behind one.

        Its last character may be incomplete, and then does not count.
        """
        given = text.rstrip("\ufffd")
        if self._begins_one(given):
            return True
        longest = min(len(given), max(map(len, stop), default=1) - 1)
        begun = (size for size in range(1, longest + 1) if any(each.startswith(given[-size:]) for each in stop))
        return any(self._begins_one(given[:-size]) for size in begun)

    def _begins_one(self, text: str) -> bool:
        compared = self._compared(text)
        return any(each.startswith(compared) for each in self._right)

    @cached_property
    def _right(self) -> tuple[str, ...]:
        return tuple(self._compared(text) for text in self.texts)

    def _compared(self, text: str) -> str:
        ignored = string.punctuation * self.ignore_punctuation + string.digits * self.ignore_numbers
        kept = text.translate(str.maketrans("", "", ignored)) if ignored else text
        return kept.casefold() if self.ignore_case else kept  # unlike lower, casefold looks at each character alone
