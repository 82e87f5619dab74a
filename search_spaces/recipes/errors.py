"""The error that a wrong recipe or search space raises, and the hint at its end."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RecipeError(ValueError):
    """A recipe or search space that cannot be used; one line that says what to type instead."""


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """Return the tail of an error about an unknown name: the nearest valid one, and all of them when few."""
    choices = sorted(valid)
    nearest = get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return "use one of " + ", ".join(choices)
