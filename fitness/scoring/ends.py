"""Where generated texts end: at a stop string, at an end-of-sequence token, or at the task's number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from fitness.results import TaskError
from fitness.tasks.lm_eval_rules import RightTexts, cut_at_stop, generation_settings

SAMPLING = {"do_sample", "temperature", "top_k", "top_p", "min_p"}  # no effect on greedy decoding
TEXTS_KEPT = 20_000  # token sequences whose text is kept
REWRITING = ("WordPiece", "CTC")  # decoders of tokenizers that change text when more follows


class Ends:
    """Collects the rows' tokens and detects when a row is done.

    Parameters
    ----------
    tokenizer
        Of the texts.
    rows
        Number of rows.
    limit
        Most tokens of a row.
    stop
        Stop strings.
    eos
        End-of-sequence tokens.
    right
        For each row the only texts that score, or None; a row that can become none of them is done. Empty: no row ends
        for that.

    Attributes
    ----------
    rows
        Each row's tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        limit: int,
        stop: tuple[str, ...],
        eos: frozenset[int],
        right: Sequence[RightTexts | None] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.eos = eos
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self._stop = stop
        self._may_complete = _completing_tokens(tokenizer, stop)
        self._text_of = _texts(tokenizer)
        self._right = right if right and _grows_by_its_end(tokenizer) else [None] * rows

    def done(self, row: int, token: int) -> bool:
        """Append a row's next token; True if it is the last one."""
        tokens = self.rows[row]
        tokens.append(token)
        if token in self.eos or len(tokens) >= self.limit:
            return True
        right = self._right[row]
        if right is None and not self._may_complete(token):
            return False
        text = self._text_of(tuple(tokens))
        if any(stop in text for stop in self._stop):
            return True
        return right is not None and not right.may_become(text, self._stop)

    def text(self, row: int) -> tuple[str, bool]:
        """Return a row's text up to its stop string, and whether it ended at the limit and nowhere else."""
        tokens = self.rows[row]
        text = self._text_of(tuple(tokens))
        stopped = tokens[-1] in self.eos or any(stop in text for stop in self._stop)
        return cut_at_stop(text, self._stop), len(tokens) >= self.limit and not stopped


def _grows_by_its_end(tokenizer: Any) -> bool:
    """Whether more tokens never change the text of the first ones, except its last character if that is incomplete."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return not getattr(tokenizer, "clean_up_tokenization_spaces", False) and type(decoder).__name__ not in REWRITING


@lru_cache(maxsize=8)
def _texts(tokenizer: Any) -> Callable[[tuple[int, ...]], str]:
    """Return a function from tokens to text that knows the last ones: candidates give many of the same answers."""
    return lru_cache(TEXTS_KEPT)(partial(tokenizer.decode, skip_special_tokens=True))


@lru_cache(maxsize=32)
def _completing_tokens(tokenizer: Any, stop: tuple[str, ...]) -> Any:
    """Return a quick test whether a token may complete a stop string: its text has the last character of one.

    A wrong "no" only costs tokens: the text is cut at the stop string afterwards.
    """
    last = {text[-1] for text in stop}
    known: dict[int, bool] = {}

    def may_complete(token: int) -> bool:
        if token not in known:
            text = tokenizer.decode([token], skip_special_tokens=False)
            known[token] = bool(last.intersection(text)) or not text.isascii() or " " in last
        return known[token]

    return may_complete


def by_setting(settings: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the requests with equal `generation_kwargs`, by number."""
    groups: dict[str, list[int]] = {}
    for request, setting in enumerate(settings):
        groups.setdefault(repr(sorted(setting.items())), []).append(request)
    return list(groups.values())


def greedy_settings(setting: Mapping[str, Any], tokenizer: Any) -> tuple[int, tuple[str, ...], dict[str, Any]]:
    """Return the number of new tokens, the stop strings, and further settings for `model.generate`.

    Raises
    ------
    TaskError
        The task does not decode greedily.
    """
    eos = tokenizer.eos_token_id
    end = None if eos is None else tokenizer.decode(eos, skip_special_tokens=False)
    count, stop, given = generation_settings(setting, end)
    extra = {name: value for name, value in given.items() if name not in SAMPLING}
    if given.get("do_sample") or extra.get("num_beams", 1) > 1 or "max_length" in extra:
        raise TaskError(
            "a task samples, uses beam search or sets max_length: set do_sample: false, num_beams: 1 and "
            "max_gen_toks in its generation_kwargs"
        )
    return count, stop, extra


def room_for_prompt(count: int, max_length: int) -> int:
    """Return how many tokens of a prompt are read where `count` new ones follow; TaskError if there is no room."""
    room = max_length - count
    if room <= 0:
        raise TaskError(
            f"the task generates up to {count} tokens and the model reads {max_length} in all: "
            "lower max_gen_toks in the task's generation_kwargs or raise fitness.max_length"
        )
    return room


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a text: those of the model's generation config, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)
