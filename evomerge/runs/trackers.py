"""Trackers: what follows a search for the user, such as an experiment tracker. Other packages add theirs.

A search file names trackers by their `kind`; a tracker that raises is dropped with one warning and the search
continues without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from evomerge.files.messages import one_line
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Told
from search_spaces.registry import Registry, register_kind

log = logging.getLogger("evomerge")


class Tracker(Protocol):
    """Follows one session of a search."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Begin: the session of this run directory starts.

        Parameters
        ----------
        run
            The run directory. A resumed run starts again, with the same directory.
        config
            The contents of its search file, every `auto` resolved.
        """

    def told(self, history: RunHistory, told: Told) -> None:
        """Follow one evaluation: of candidate `told.candidate`, already part of `history`."""

    def end(self, result: Result) -> None:
        """Finish: the search has ended, with this result. Not called for a search that is stopped."""


class TrackerConfig(Protocol):
    """An entry of the search file's `trackers`: its settings, and how its tracker is made."""

    @property
    def kind(self) -> str:
        """The name that a search file gives it."""

    def build(self) -> Tracker:
        """Return a new tracker."""


TRACKERS: Registry[type[BaseModel]] = Registry("tracker")
"""The config class of every tracker that a search file can name."""

ConfigClass = TypeVar("ConfigClass", bound=type[BaseModel])


def register_tracker(config: ConfigClass) -> ConfigClass:
    """Register a tracker under its config's `kind`; see `TrackerConfig` for what the config has.

    Raises
    ------
    ValueError
        If the name is taken, or the class has no kind or no `build`.
    """
    return register_kind(TRACKERS, config, needs=("build",))


class TrackerGroup:
    """All trackers of a search; one that raises is dropped.

    Parameters
    ----------
    configs
        The search file's trackers.
    warn
        Called with one sentence when a tracker is dropped; it is logged as well.
    """

    def __init__(self, configs: Sequence[TrackerConfig], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._trackers: list[tuple[str, Tracker]] = []
        for config in configs:
            self._guard(config.kind, partial(self._add, config))

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Start all trackers."""
        self._each(lambda tracker: tracker.start(run, config))

    def told(self, history: RunHistory, told: Told) -> None:
        """Let all trackers follow an evaluation."""
        self._each(lambda tracker: tracker.told(history, told))

    def end(self, result: Result) -> None:
        """Let all trackers finish."""
        self._each(lambda tracker: tracker.end(result))

    def _add(self, config: TrackerConfig) -> None:
        self._trackers.append((config.kind, config.build()))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        self._trackers = [
            (kind, tracker) for kind, tracker in self._trackers if self._guard(kind, partial(call, tracker))
        ]

    def _guard(self, kind: str, call: Callable[[], None]) -> bool:
        """Call a tracker; return whether it raised nothing."""
        try:
            call()
            return True
        except Exception as error:  # whatever a tracker, its server or its network raises: the search matters more
            text = f"tracker {kind}: {one_line(error)}; the search continues without it"
            log.warning("%s", text)
            self._warn(text)
            return False
