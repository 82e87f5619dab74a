"""What to type after a search, as its last lines and its report say it: each command works as it is printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from fitness.functions.loading import GIVEN


def merge_command(recipe: str, config: Mapping[str, Any]) -> str:
    """Return what merges a recipe of a run with this search file, which may allow what a merge otherwise refuses."""
    allowed = " --allow-unrelated" if config.get("allow_unrelated") is True else ""
    return f"evomerge merge {quote(recipe)} merged{allowed}"


def commands(run: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a user does with a finished run.

    Parameters
    ----------
    run
        The run directory.
    config
        Its search file as plain data; empty where that cannot be read.
    """
    name = quote(str(run))
    found = [f"evomerge export {name} -o recipe.yaml", merge_command("recipe.yaml", config)]
    if _can_be_asked_again(config.get("fitness")):
        found.append(f"evomerge evaluate merged --like {name}")
    return tuple(found)


def _can_be_asked_again(fitness: Any) -> bool:
    """Return whether the command line can ask another model the held-out items: there are some, and it finds them."""
    if not isinstance(fitness, dict) or fitness.get("kind") != "python":
        return True
    function, items = str(fitness.get("function")), fitness.get("function_items")
    return items not in (None, GIVEN) and "<" not in function and not function.startswith("__main__:")
