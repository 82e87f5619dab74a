"""Whether a reference to a model is a path on this disk or an id of the Hugging Face hub: decided here alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name, and perhaps @revision


def local_or_hub(reference: str, folder: Path | None = None) -> Path | str:
    """Return the absolute path that a reference names, or the reference itself where it is a hub id.

    A hub id has the form ``org/name`` or ``org/name@revision``, does not begin with ``.``, ``/`` or ``~``, and is not
    the name of something on the disk. Everything else is a path, whether or not there is something at it.

    Parameters
    ----------
    reference
        One model or one adapter, not both.
    folder
        What a relative path is relative to; None: the working directory.
    """
    path = absolute(reference, folder)
    is_hub_id = _HUB_ID.fullmatch(reference) and not reference.startswith((".", "/", "~"))
    return reference if is_hub_id and not path.exists() else path


def named_twice(references: Iterable[str]) -> str | None:
    """Return a clause about the first model or file that is named twice; None: there is none."""
    seen: dict[Path | str, str] = {}
    for reference in references:
        place = local_or_hub(reference)
        if place in seen:
            same = seen[place] == reference
            return f"{reference} is named twice" if same else f"{seen[place]} and {reference} are the same"
        seen[place] = reference
    return None


def absolute(path: str, folder: Path | None = None) -> Path:
    """Return a path with ``~`` expanded and links followed, relative to `folder` or to the working directory."""
    try:
        return ((folder or Path()) / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError):  # the home of an unknown user, a null byte: nothing can be there
        return (folder or Path()).absolute() / path
