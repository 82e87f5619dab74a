"""Whose task code may run: that of a search file's author, and not that of a run directory, which is data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.config.errors import ConfigError
from evomerge.files.approvals import approve, is_approved
from fitness.tasks.code import CodeCheck, TaskCode

CODE_KEYS = ("fitness.include_path", "fitness.function")
"""Keys that name code."""
MOST_PLACES = 3
"""Places of code that an error names."""


def trusted(code: TaskCode) -> None:
    """Let a task run its code, and remember that: a run of it can be resumed on this machine."""
    if code.digest is not None:
        approve(code.digest)


def check_for(run: Path, trust: bool, overrides: Sequence[str] = ()) -> CodeCheck:
    """Return the check of the tasks of a run directory.

    Parameters
    ----------
    run
        The run directory.
    trust
        Whether the user trusts its tasks.
    overrides
        Changes to its config: the user who names the folder of the tasks, or the function, trusts them.
    """
    named = any(change.partition("=")[0].startswith(CODE_KEYS) for change in overrides)
    return trusted if trust or named else known_only(run)


def known_only(run: Path) -> CodeCheck:
    """Return a check of the tasks that a run directory names: their code must have been trusted on this machine.

    The check raises `ConfigError` for other code, before it runs.
    """

    def check(code: TaskCode) -> None:
        if code.digest is None or not is_approved(code.digest):
            places = ", ".join((*code.places[:MOST_PLACES], *["..."] * (len(code.places) > MOST_PLACES)))
            raise ConfigError(
                f"{run / 'config.yaml'}: fitness.tasks: {code.task} runs Python code that no search on this machine "
                f"has run ({places}); read it, and add --trust-tasks if you trust it"
            )

    return check
