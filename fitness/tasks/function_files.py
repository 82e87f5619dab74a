"""The files behind a task's Python functions: their modules, what these import, and the data that they name."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fitness.tasks.code import INSTALLED

MOST_FILES = 500
"""Files of one task that are read; more belong to a package, whose version is recorded."""
LONGEST_NAME = 300

_PACKAGES = tuple(Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "purelib", "platlib"))


def functions_in(value: Any) -> Iterator[Callable[..., Any]]:
    """Yield the functions inside a task's settings, at any depth."""
    if isinstance(value, functools.partial):
        yield from functions_in([value.func, value.args, value.keywords])
    elif isinstance(value, Mapping):
        yield from functions_in(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from functions_in(inner)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from functions_in([getattr(value, each.name) for each in fields(value)])
    elif callable(value):
        yield value


def file_hashes(functions: Iterable[Callable[..., Any]]) -> dict[str, str]:
    """Return the hash of each file that some functions depend on, by a name that does not hold the files' place.

    A file belongs to a function if it defines the function, if a module that belongs to it imports the file from beside
    itself or from a folder of the user, or if such a module names it, as in ``Path(__file__).parent / "table.json"``.
    Files of installed packages are left out, because packages have versions; lm-eval's tasks are not.
    """
    found: dict[Path, str] = {}
    for function in functions:
        file = _file_of(function)
        if file is not None:
            _follow(file, file.parent, found)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in found.items()}


def _file_of(function: Callable[..., Any]) -> Path | None:
    target = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        file = inspect.getsourcefile(inspect.unwrap(target))
    except (TypeError, OSError):
        return None  # built in
    return None if file is None or _is_installed(Path(file)) else Path(file).resolve()


def _is_installed(file: Path) -> bool:
    place = file.resolve()
    if place.is_relative_to(INSTALLED):
        return not place.is_relative_to(INSTALLED / "tasks")
    return place.is_relative_to(INSTALLED.parent) or any(place.is_relative_to(folder) for folder in _PACKAGES)


def _follow(file: Path, root: Path, found: dict[Path, str]) -> None:
    """Add a file and all that it depends on, named relative to `root` where they are below it."""
    if file in found or len(found) >= MOST_FILES:
        return
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    found[file] = name if name not in found.values() else f"{name} ({len(found)})"
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        for other in (*_imported(node, file.parent), *_named(node, file.parent)):
            _follow(other, root, found)


def _imported(node: ast.AST, folder: Path) -> Iterator[Path]:
    """Yield the files that an import statement means: beside the module, else loaded from a folder of the user."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        for _ in range(node.level - 1):
            folder = folder.parent
        start = node.module or ""
        names = [start, *(f"{start}.{alias.name}".lstrip(".") for alias in node.names)]
    else:
        return
    for name in filter(None, names):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:length])
            beside = [each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()]
            loaded = getattr(sys.modules.get(".".join(parts[:length])), "__file__", None)
            if not beside and loaded is not None and Path(loaded).is_file() and not _is_installed(Path(loaded)):
                beside = [Path(loaded)]
            yield from (each.resolve() for each in beside)


def _named(node: ast.AST, folder: Path) -> Iterator[Path]:
    """Yield the file beside the module that a text, a path or the arguments of a call name."""
    if isinstance(node, ast.Constant):
        texts: list[str] = _texts(node)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        texts = _texts(node)
    elif isinstance(node, ast.Call):
        texts = [text for argument in node.args for text in _texts(argument)]
    else:
        return
    name = "/".join(texts)
    if name and len(name) <= LONGEST_NAME and name.isprintable():
        try:
            place = folder / name
            if place.is_file():
                yield place.resolve()
        except OSError:
            return


def _texts(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*_texts(node.left), *_texts(node.right)]
    return []
