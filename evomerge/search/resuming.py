"""What a resumed run is compared with: sources, items and settings must be those that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.runs.environment import Environment
from evomerge.runs.run import Run, RunError
from fitness.tasks.identity import difference

_START_NEW = "start a new run"


def check_unchanged(run: Run, now: Environment) -> None:
    """Refuse to continue with other sources, items or settings, whose scores would not compare.

    Parameters
    ----------
    run
        The run to continue.
    now
        What `Problem.environment` says now.

    Raises
    ------
    RunError
        If something has changed since the run began; the message names it.
    """
    recorded = run.environment()
    current = now.model_dump(mode="json")["config"]  # tuples become lists, as in the file
    for name, found in now.sources.items():
        file = other_file(recorded.sources.get(name, {}), found)
        if file is not None:
            raise RunError(
                f"models.{name}: it has changed since the run began ({file}); put the old files back, or {_START_NEW}"
            )
        file = other_file(recorded.tokenizers.get(name, {}), now.tokenizers[name])
        if file is not None:
            raise RunError(
                f"models.{name}: its {file} has changed since the run began, so texts or their ends would; put the old "
                f"file back, or {_START_NEW}"
            )
    for key, value in current.items():
        path = _other_key(_given(recorded.config.get(key)), _given(value), key)
        if path is not None:
            raise RunError(
                f"{run.path / 'config.yaml'}: {key} was edited since the run began ({path}), and only the budget, the "
                f"workers, the trackers, the table and places of files may be; put it back, or {_START_NEW}"
            )
    said = difference(recorded.items, now.items)
    if said is not None:
        raise RunError(f"fitness.tasks: {said} since the run began; put it back, or {_START_NEW}")
    if recorded.chat_template != now.chat_template:
        raise RunError(f"fitness: the chat template has changed since the run began; put it back, or {_START_NEW}")
    check_compute_dtype(recorded, now)


def check_compute_dtype(recorded: Environment, now: Environment) -> None:
    """Refuse forward passes in another data type; RunError if it is known on both sides and differs."""
    if "auto" in (recorded.compute_dtype, now.compute_dtype) or recorded.compute_dtype == now.compute_dtype:
        return
    raise RunError(
        f"workers: forward passes computed in {recorded.compute_dtype} and would in {now.compute_dtype} now, which "
        f"gives other scores; write workers.compute_dtype: {recorded.compute_dtype}, or {_START_NEW}"
    )


def other_file(recorded: Mapping[str, object], found: Mapping[str, object]) -> str | None:
    """Return the first file that is not as it was recorded; None if all are."""
    return next((name for name in (*recorded, *found) if recorded.get(name) != found.get(name)), None)


def _other_key(before: Any, now: Any, path: str) -> str | None:
    """Return the path of the first setting that differs; None if none does."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (_other_key(before.get(key), now.get(key), f"{path}.{key}") for key in (*before, *now))
        return next((found for found in inner if found is not None), None)
    return None if before == now else path


def upgrades(recorded: Environment, now: Environment) -> list[str]:
    """Return a sentence for each package whose version has changed since the run began."""
    before = {"evomerge": recorded.evomerge} | recorded.packages
    after = {"evomerge": now.evomerge} | now.packages
    return [
        f"{name} {version} when the run began, {after.get(name, 'none')} now: new scores may differ in their last "
        "digits"
        for name, version in before.items()
        if after.get(name) != version
    ]


def _given(value: Any) -> Any:
    """Leave out what is not set: a setting that was added to evomerge after the run began counts as not set."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return value
