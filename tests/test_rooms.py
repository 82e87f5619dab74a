"""The structure of the code: rooms in an order, arrows one way, no cycle; lazy imports and those for types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_spaces", "fitness", "evomerge")

ORDER = (
    "search_spaces",
    "search_spaces.recipes",
    "search_spaces.spaces",
    "search_spaces.spaces.depth",
    "fitness",
    "fitness.sandbox",
    "fitness.tasks",
    "fitness.scoring",
    "fitness.vllm",
    "fitness.estimation",
    "fitness.config",
    "fitness.functions",
    "evomerge.own_packages",
    "evomerge.version",
    "evomerge.plugins",
    "evomerge.files",
    "evomerge.extras",
    "evomerge.merging",
    "evomerge.merging.methods",
    "evomerge.merging.well_known",
    "evomerge.merging.sources",
    "evomerge.merging.checks",
    "evomerge.merging.calibration",
    "evomerge.merging.engine",
    "evomerge.merging.derivatives",
    "evomerge.merging.output",
    "evomerge.merging.matching",
    "evomerge.strategies",
    "evomerge.runs",
    "evomerge.trackers",
    "evomerge.workers",
    "evomerge.config",
    "evomerge.search",
    "evomerge.demo",
    "evomerge.cli",
    "evomerge.__main__",
    "evomerge",
    "evomerge.testing",
)
"""Every room, lowest first: a module imports from its own room and from rooms before it.

`evomerge` itself is the door (`evomerge.search`): it offers what is in the rooms, and none of them imports it.
"""

CATALOGUES = ("evomerge.merging.methods", "evomerge.strategies", "evomerge.cli")
"""Rooms where one file is one entry, however many entries there are."""

MOST_FILES = 18
MOST_LINES = 600


def module_name(file: Path) -> str:
    """Return the dotted name of a file of the repository."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def room_of(module: str) -> str:
    """Return the room a module is in: the longest entry of `ORDER` that is the module or one of its packages."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(name for name in names if name in ORDER)


def imported(file: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports anywhere: at its top, in functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


@cache
def graph() -> dict[str, set[str]]:
    """Return for each module the modules of ours that it imports."""
    return {module: set(imported(file)) - {module} for module, file in FILES.items()}


def first_cycle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the modules of one cycle, or nothing."""
    done: set[str] = set()
    for start in arrows:
        path: list[str] = []
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            module, left = stack.pop()
            if left:
                done.add(path.pop())
            elif module in path:
                return [*path[path.index(module) :], module]
            elif module not in done:
                path.append(module)
                stack.append((module, True))
                stack += [(other, False) for other in sorted(arrows[module])]
    return []


def test_every_import_goes_to_the_same_room_or_a_lower_one() -> None:
    wrong = [
        f"{module} ({room_of(module)}) imports {other} ({room_of(other)})"
        for module, others in graph().items()
        for other in sorted(others)
        if ORDER.index(room_of(other)) > ORDER.index(room_of(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_lower_packages_import_neither_each_other_nor_the_search() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in sorted(others)
        if module.split(".")[0] != "evomerge" and other.split(".")[0] != module.split(".")[0]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_form_a_cycle() -> None:
    assert not first_cycle(graph())


def test_the_cycle_finder_finds_cycles() -> None:
    assert first_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert first_cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_nothing_is_imported_by_relative_names() -> None:
    """Relative imports would escape the tests above."""
    relative = [
        module
        for module, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


@pytest.mark.parametrize("room", sorted({str(file.parent.relative_to(ROOT)) for file in FILES.values()}))
def test_a_room_can_be_seen_at_a_glance(room: str) -> None:
    if room.replace("/", ".") not in CATALOGUES:
        assert len(list((ROOT / room).glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("room", sorted({file.parent for file in FILES.values()}), ids=str)
def test_a_room_says_what_it_is_for(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))


def test_no_file_is_longer_than_a_reader_bears() -> None:
    counts = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in FILES.items()}
    assert not {module: count for module, count in counts.items() if count > MOST_LINES}
