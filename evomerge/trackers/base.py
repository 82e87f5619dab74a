"""Trackers: what follows a search for the user, such as an experiment tracker. Other packages add theirs.

A search file names trackers by their `kind`; a tracker that raises is dropped with one warning and the search
continues without it. A resumed run continues in the same records: a tracker says how many evaluations it holds, and is
told those that it missed, such as the last ones before the process was killed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from evomerge.files.messages import one_line
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Event, Told
from search_spaces.kinds import register_kind
from search_spaces.registry import Registry

log = logging.getLogger("evomerge")


class Tracker(Protocol):
    """Follows one session of a search."""

    def start(self, run: Path, config: Mapping[str, Any]) -> int | None:
        """Begin: the session of this run directory starts.

        Parameters
        ----------
        run
            The run directory. A resumed run starts again, with the same directory.
        config
            The contents of its search file, every `auto` resolved.

        Returns
        -------
        int or None
            How many evaluations the tracker holds from earlier sessions; it is told the other recorded ones before new
            ones. None: it wants only new ones.
        """

    def told(self, history: RunHistory, told: Told) -> None:
        """Follow one evaluation: of candidate `told.candidate`, already part of `history`, and its last one."""

    def end(self, result: Result | None) -> None:
        """Finish: the session has ended, with this result; None if the search is stopped before it has one."""


class TrackerConfig(Protocol):
    """An entry of the search file's `trackers`: its settings, and how its tracker is made.

    It may have a method `check` without arguments, which raises `ValueError` where the tracker cannot work, such as for
    a missing package: that is an error before the search begins.
    """

    @property
    def kind(self) -> str:
        """The name that a search file gives it."""

    def build(self) -> Tracker:
        """Return a new tracker."""


TRACKERS: Registry[type[BaseModel]] = Registry("tracker")
"""The config class of every tracker that a search file can name."""

ConfigClass = TypeVar("ConfigClass", bound=type[BaseModel])


def name_in_run(name: str, suffix: str = "") -> str:
    """Return a tracker's name for its file or folder in the run directory.

    Raises
    ------
    ValueError
        If it could lead elsewhere, or does not end in the suffix.
    """
    stem = name.removesuffix(suffix)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", stem) or stem + suffix != name:
        end = f" that ends in {suffix}" if suffix else ""
        raise ValueError(f"{name!r} is not a file name; write letters, digits, - and _{end}")
    return name


def register_tracker(config: ConfigClass) -> ConfigClass:
    """Register a tracker under its config's `kind`; see `TrackerConfig` for what the config has.

    Raises
    ------
    ValueError
        If the name is taken, or the class has no kind or no `build`.
    """
    return register_kind(TRACKERS, config, needs=("build",))


def check_trackers(configs: Iterable[TrackerConfig]) -> None:
    """Refuse trackers that cannot work on this machine, as far as their kinds can tell; raises what they raise."""
    for config in configs:
        check: Callable[[], None] | None = getattr(config, "check", None)
        if check is not None:
            check()


@dataclass
class _Member:
    """A tracker of a group, and how many evaluations it holds; None: it wants only new ones."""

    kind: str
    tracker: Tracker
    held: int | None = None


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
        self._members: list[_Member] = []
        for config in configs:
            self._guard(config.kind, partial(self._add, config))

    def start(self, run: Path, config: Mapping[str, Any], events: Iterable[Event] = ()) -> None:
        """Start all trackers, and tell them the recorded evaluations that they do not hold.

        Parameters
        ----------
        run, config
            See `Tracker.start`.
        events
            What the run has recorded, in order; not read unless a tracker wants recorded evaluations.
        """

        def start(member: _Member) -> None:
            member.held = member.tracker.start(run, config)

        self._each(start)
        if all(member.held is None for member in self._members):
            return
        history = RunHistory()
        for event in events:
            history.add(event)
            if isinstance(event, Told):
                self._each(partial(self._catch_up, history, event))

    def told(self, history: RunHistory, told: Told) -> None:
        """Let all trackers follow an evaluation."""
        self._each(lambda member: member.tracker.told(history, told))

    def end(self, result: Result | None) -> None:
        """Let all trackers finish; None: the search is stopped."""
        self._each(lambda member: member.tracker.end(result))

    def _add(self, config: TrackerConfig) -> None:
        self._members.append(_Member(config.kind, config.build()))

    @staticmethod
    def _catch_up(history: RunHistory, told: Told, member: _Member) -> None:
        if member.held is not None and len(history.told) > member.held:
            member.tracker.told(history, told)

    def _each(self, call: Callable[[_Member], None]) -> None:
        self._members = [member for member in self._members if self._guard(member.kind, partial(call, member))]

    def _guard(self, kind: str, call: Callable[[], None]) -> bool:
        """Call a tracker; return whether it raised nothing."""
        try:
            call()
            return True
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever it, its server or its network raises: the search matters more
            text = f"tracker {kind}: {one_line(error)}; the search continues without it"
            log.warning("%s", text)
            self._warn(text)
            return False
