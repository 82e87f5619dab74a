"""Tokenizers whose files the tokenizers package reads as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that change nothing of what is in tokenizer.json."""
NOT_OF_THE_VOCABULARY = ("chat_template", "padding_side", "truncation_side", "model_max_length")


def end_token_id(folder: Path) -> int | None:
    """Return the id of the end-of-sequence token, after reading the whole tokenizer; None if it is not well-known."""
    try:
        states = tuple((folder / name).stat() for name in (FILE, SETTINGS))
    except OSError:
        return None
    return _end_token_id(folder, tuple((state.st_mtime_ns, state.st_size) for state in states))


def have_one_vocabulary(first: Sequence[Path], second: Sequence[Path]) -> bool:
    """Whether two tokenizers' files are the same except for templates and settings that name no token."""
    own, others = ({path.name: path for path in files if _counts(path)} for files in (first, second))
    return own.keys() == others.keys() and all(_alike(own[name], others[name]) for name in own)


def _counts(path: Path) -> bool:
    return not path.name.startswith("chat_template")


def _alike(first: Path, second: Path) -> bool:
    if first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes():
        return True
    return first.name == SETTINGS and _vocabulary_of(first) == _vocabulary_of(second) != {}


def _vocabulary_of(path: Path) -> dict[str, Any]:
    return {key: value for key, value in _mapping(path).items() if key not in NOT_OF_THE_VOCABULARY}


@lru_cache(maxsize=4)
def _end_token_id(folder: Path, _: object) -> int | None:
    settings, special = _mapping(folder / SETTINGS), _mapping(folder / SPECIAL)
    token = _text(settings.get("eos_token"))
    if settings.get("tokenizer_class") not in CLASSES or "auto_map" in settings or token is None:
        return None
    if _text(special.get("eos_token", token)) != token:
        return None
    from tokenizers import Tokenizer

    try:
        found: int | None = Tokenizer.from_file(str(folder / FILE)).token_to_id(token)
    except Exception:  # the package raises plain exceptions; transformers says what is wrong
        return None
    return found


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
