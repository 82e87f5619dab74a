"""Merge methods, strategies, spaces, estimators, worker kinds and trackers from other installed packages.

A package names modules in the entry-point group `evomerge.plugins`. Importing such a module registers what it has; the
registrations check what they are given. One that fails is reported in a line and leaves nothing behind.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from search_spaces.registry import registering

log = logging.getLogger("evomerge")

GROUP = "evomerge.plugins"


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed package.

    Attributes
    ----------
    package
        Name of the distribution.
    version
        Its version.
    entry
        The entry point as the package declares it: ``name = module``.
    error
        Why it was not loaded, on one line; None if it was.
    """

    package: str
    version: str
    entry: str
    error: str | None = None

    def __str__(self) -> str:
        """Return the line that reports the plug-in, or its failure."""
        return f"{self.package} {self.version} ({self.entry})" + (f": not loaded, {self.error}" if self.error else "")


@cache
def load_plugins() -> tuple[Plugin, ...]:
    """Import the plug-ins of all installed packages, once per process, in the order of their names.

    A plug-in that cannot be imported, declares a name that is taken or breaks a rule of its kind is logged in one line
    as an error; nothing it registered remains, and the others are loaded all the same.

    Returns
    -------
    tuple of Plugin
        All entry points of the group, failed ones included.
    """
    found = sorted(entry_points(group=GROUP), key=lambda entry: (_package(entry), entry.name))
    return tuple(_load(entry) for entry in found)


def _load(entry: EntryPoint) -> Plugin:
    from fitness.estimation.registry import registering as registering_estimators  # where there is a plug-in

    package = _package(entry)
    error = None
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))  # a command's output may be JSON, or a recipe
            stack.enter_context(registering(package))
            stack.enter_context(registering_estimators(package))
            entry.load()
    except (Exception, SystemExit) as cause:  # whatever the module raises
        error = " ".join(f"{type(cause).__name__}: {cause}".split())
    plugin = Plugin(package, entry.dist.version if entry.dist else "", f"{entry.name} = {entry.value}", error)
    if error is not None:
        log.error("plug-in %s", plugin)
    return plugin


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"
