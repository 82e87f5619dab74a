"""`evomerge plugins`: everything that a search file can name, and which package it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from evomerge.cli.printing import console, grid
from evomerge.plugins import load_plugins

REGISTRIES = {
    "merge method": "search_spaces.recipes.methods:METHODS",
    "space": "search_spaces.spaces.registry:SPACES",
    "strategy": "evomerge.strategies.registry:STRATEGIES",
    "estimator": "fitness.estimation.registry:ESTIMATORS",
    "worker kind": "evomerge.workers.registry:WORKERS",
    "tracker": "evomerge.trackers.base:TRACKERS",
}
"""Where the names of each kind are registered."""


def plugins(as_json: bool) -> None:
    """Print all names by kind, with the package that registers each; plug-ins that failed are logged as they load."""
    failures = [{"package": p.package, "entry": p.entry, "error": p.error} for p in load_plugins() if p.error]
    names = list(_names())
    if as_json:
        print(json.dumps({"names": names, "failures": failures}, indent=1))
        return
    out = console()
    rows = [[row["kind"], row["name"], row["package"]] for row in names]
    out.print(grid(["kind", "name", "package"], rows, words=True))


def _names() -> Iterator[dict[str, Any]]:
    import_module("evomerge.config.search_file")  # registers ours
    for kind, place in REGISTRIES.items():
        module, _, attribute = place.partition(":")
        registry = getattr(import_module(module), attribute)
        for name in sorted(registry):
            yield {"kind": kind, "name": name, "package": registry.origin(name)}
