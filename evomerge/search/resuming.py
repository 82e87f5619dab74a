"""What a resumed run is compared with: sources, items and settings must be those that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evomerge.runs.run import Run, RunError

_START_NEW = "start a new run"


def check_unchanged(run: Run, environment: Mapping[str, Any]) -> None:
    """Refuse to continue with other sources, items or settings, whose scores would not compare.

    Parameters
    ----------
    run
        The run to continue.
    environment
        What `Problem.environment` says now.

    Raises
    ------
    RunError
        If something has changed since the run began; the message names it.
    """
    recorded = run.environment()
    current = json.loads(json.dumps(environment))  # tuples become lists, as in the file
    for name, files in current["sources"].items():
        if recorded["sources"].get(name) != files:
            raise RunError(
                f"models.{name}: it has changed since the run began; put the old files back, or {_START_NEW}"
            )
    for key, value in current["config"].items():
        if _given(recorded["config"].get(key)) != _given(value):
            raise RunError(
                f"{run.path / 'config.yaml'}: {key} was edited since the run began, and only the budget, the workers, "
                f"the trackers and places of files may be; put it back, or {_START_NEW}"
            )
    if recorded["items"] != current["items"]:
        raise RunError(
            f"fitness.tasks: a task's items have changed since the run began; put them back, or {_START_NEW}"
        )


def upgrades(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each package whose version has changed since the run began."""
    before = {"evomerge": recorded["evomerge"]} | recorded["packages"]
    now = {"evomerge": current["evomerge"]} | current["packages"]
    return [
        f"{name} {version} when the run began, {now.get(name, 'none')} now: new scores may differ in their last digits"
        for name, version in before.items()
        if now.get(name) != version
    ]


def _given(value: Any) -> Any:
    """Leave out what is not set: a setting that was added to evomerge after the run began counts as not set."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return value
