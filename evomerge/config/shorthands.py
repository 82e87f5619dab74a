"""Short forms in the search file: one word or number in place of a section."""

from __future__ import annotations

from datetime import date
from typing import Any

MAIN_KEYS = {
    ("budget",): "evaluations",
    ("space",): "kind",
    ("strategy",): "kind",
    ("fitness", "subset"): "items",
    ("fitness", "engine"): "kind",
}
"""Which key a lone value sets, by the section's place."""
DEFAULT_KINDS = {"space": "layer_coefficients", "strategy": "cma_es", "workers": "inline"}
"""The kind of a section that names none."""


def expand(values: Any) -> Any:
    """Return the values of a search file with every short form written out; other values are unchanged.

    `strategy: m2n2`, `space: mixture`, `tasks: [a, b]`, `subset: 20`, `budget: 200`, `workers: 4`.
    """
    if not isinstance(values, dict):
        return values
    expanded = dict(values)
    for name in ("budget", "space", "strategy"):
        if name in expanded:
            expanded[name] = _section(expanded[name], MAIN_KEYS[name,])
    if "workers" in expanded:
        expanded["workers"] = _workers(expanded["workers"])
    for name, kind in DEFAULT_KINDS.items():
        if isinstance(expanded.get(name), dict):
            expanded[name] = {"kind": kind} | expanded[name]
    if isinstance(expanded.get("fitness"), dict):
        expanded["fitness"] = _fitness(expanded["fitness"])
    return expanded


def _section(value: Any, key: str) -> Any:
    return {key: value} if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _workers(value: Any) -> Any:
    """One worker is this process; several are Ray's."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"kind": "inline"} if value == 1 else {"kind": "ray", "count": value}
    return _section(value, "kind")


def _fitness(fitness: dict[str, Any]) -> dict[str, Any]:
    expanded = dict(fitness)
    for name in ("subset", "engine"):
        if name in expanded:
            expanded[name] = _section(expanded[name], MAIN_KEYS["fitness", name])
    tasks = expanded.get("tasks")
    if isinstance(tasks, str):
        tasks = [tasks]
    if isinstance(tasks, list):
        named = (str, int, float, date)  # what YAML reads of a name without quotes
        expanded["tasks"] = [{"task": task} if isinstance(task, named) else task for task in tasks]
    return expanded
