"""Rules of lm-eval's Hugging Face model that scoring follows, so that scores agree with it item for item."""

from __future__ import annotations

from collections.abc import Mapping
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
