"""The code that a task's files run, found before any of it runs, and the files that its functions depend on."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from fitness.results import TaskError
from fitness.tasks.messages import one_line

_LM_EVAL = find_spec("lm_eval")
_ORIGIN = None if _LM_EVAL is None else _LM_EVAL.origin
INSTALLED = Path(os.devnull, "lm_eval") if _ORIGIN is None else Path(_ORIGIN).resolve().parent
"""lm-eval's own folder: its tasks are installed code. Where lm-eval is not installed it holds no file."""
LARGEST_FILE = 2_000_000
"""Bytes of a task file that is read; lm-eval's longest has a quarter of that."""
MOST_FILES = 500
"""Python files beside a task's code that belong to it."""

_FUNCTION = "!function"


@dataclass(frozen=True)
class TaskCode:
    """Python code that loading and scoring a task would run.

    Attributes
    ----------
    task
        The task's name.
    places
        Files, functions of installed packages, and metrics of the `evaluate` library.
    digest
        SHA-256 of the task's YAML files and of all Python files in the folders that its code comes from; None where
        these are too many to tell.
    """

    task: str
    places: tuple[str, ...]
    digest: str | None


@contextmanager
def same_folder() -> Iterator[None]:
    """Return to the working folder after other people's code has run: paths of a run are relative to it."""
    try:
        before = os.getcwd()
    except FileNotFoundError:  # it was removed, and there is nothing to return to
        yield
        return
    try:
        yield
    finally:
        os.chdir(before)


CodeCheck: TypeAlias = Callable[[TaskCode], None]
"""Called with each task's code before it runs; raises to prevent that."""


def allow(code: TaskCode) -> None:
    """Let every task run its code: the user has named the task files."""


def code_of(task: str, file: Path | None) -> TaskCode | None:
    """Return what a task would run, from its YAML file and those that it includes; None if it runs nothing.

    Raises
    ------
    TaskError
        If a file cannot be read.
    """
    if file is None or _installed(file):
        return None
    found = _Files(task, file)
    return TaskCode(task, tuple(dict.fromkeys(found.places)), found.digest()) if found.places else None


def check_regular(task: str, file: Path) -> None:
    """Refuse a task file that is none: reading a pipe or a device may never end.

    Raises
    ------
    TaskError
        If it is missing, not a regular file, or too large.
    """
    if not file.is_file():
        raise TaskError(f"task {task!r}: {file} is not a file; name a YAML file", task=task)
    if file.stat().st_size > LARGEST_FILE:
        raise TaskError(f"task {task!r}: {file} is larger than {LARGEST_FILE:,} bytes; is it a task file?", task=task)


class _Files:
    """The files of one task: YAML read, Python listed."""

    def __init__(self, task: str, file: Path) -> None:
        self._task = task
        self._hashed: dict[str, bytes] = {}
        self._folders: dict[Path, None] = {}
        self.places: list[str] = []
        merged = self._read(file.resolve(), ())
        if merged.get("process_results") is None:  # else its own code makes the metrics
            self.places += [f"metric {name}" for name in _foreign_metrics(merged.get("metric_list"))]

    def digest(self) -> str | None:
        python = list(_python_files(self._folders))
        if len(python) > MOST_FILES:
            return None
        hashed = hashlib.sha256()
        contents = self._hashed | {name: path.read_bytes() for name, path in python}
        for name, content in contents.items():
            hashed.update(f"{name}\0{len(content)}\0".encode())
            hashed.update(content)
        return hashed.hexdigest()

    def _read(self, file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        """Return what a YAML file and those that it includes say, as lm-eval merges them."""
        check_regular(self._task, file)
        if file in above:
            raise TaskError(f"task {self._task!r}: {file} includes itself; remove that include", task=self._task)
        content = file.read_bytes()
        try:
            said = yaml.load(content, Loader=self._loader(file.parent))
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise TaskError(
                f"task {self._task!r}: {file} is not valid YAML ({one_line(error)}); correct it", task=self._task
            ) from None
        if not isinstance(said, dict):
            raise TaskError(f"task {self._task!r}: {file} has no keys; correct it", task=self._task)
        self._hashed[f"{len(self._hashed)}.yaml"] = content
        included = said.pop("include", ())
        merged: dict[str, Any] = {}
        for other in included if isinstance(included, list) else [included] if included else []:
            place = (file.parent / str(other)).resolve()
            if not _installed(place):
                merged |= self._read(place, (*above, file))
        return merged | said

    def _loader(self, folder: Path) -> type[yaml.SafeLoader]:
        """Return a loader that notes functions and runs none."""

        class Loader(yaml.SafeLoader):
            pass

        def function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
            name = str(loader.construct_scalar(node))  # type: ignore[arg-type]
            self._note(name, folder)
            return f"{_FUNCTION} {name}"

        Loader.add_constructor(_FUNCTION, function)
        return Loader

    def _note(self, name: str, folder: Path) -> None:
        """Note a function as lm-eval finds it: in a Python file beside the YAML file, else in an installed module."""
        module = name.rpartition(".")[0]
        file = (folder / f"{module.replace('.', '/')}.py").resolve()
        if file.is_file():
            self.places.append(str(file))
            self._folders[file.parent] = None
        else:
            self.places.append(name)


def _python_files(folders: Mapping[Path, None]) -> Iterator[tuple[str, Path]]:
    """Yield the Python files in and below some folders with names that do not depend on where the folders are."""
    found = 0
    for number, folder in enumerate(folders):
        for place, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith((".", "__pycache__")))
            for name in sorted(names):
                path = Path(place, name)
                if name.endswith(".py") and path.is_file():
                    yield f"{number}/{path.relative_to(folder)}", path
                    found += 1
            if found > MOST_FILES:
                return


def _foreign_metrics(metrics: Any) -> list[str]:
    """Return the metrics that lm-eval would load as scripts of the `evaluate` library."""
    from lm_eval.api import metrics as _registered  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    named = [each for each in metrics if isinstance(each, dict)] if isinstance(metrics, list) else []
    scripts = {str(each.get("metric")): each.get("hf_evaluate") is True for each in named}
    return [
        name
        for name, script in scripts.items()
        if script or not (name in metric_registry or name.startswith(_FUNCTION))
    ]


def _installed(file: Path) -> bool:
    return file.resolve().is_relative_to(INSTALLED)


# --- the files behind functions that have been loaded ---

MOST_BEHIND = 500
"""Files of one task that are read; more belong to a package, whose version is recorded."""
LONGEST_NAME = 300
"""Characters of a file's name that a function may hold."""

_PACKAGES = (
    *(Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "purelib", "platlib")),
    # this package and those beside it, which an editable install leaves in a folder of the user
    *(Path(__file__).resolve().parents[2] / name for name in ("evomerge", "fitness", "search_spaces")),
)


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
        file = file_of(function)
        if file is not None:
            _follow(file, file.parent, found)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in found.items()}


def files_behind(file: Path) -> dict[str, str]:
    """Return the hash of a Python file and of each file that it depends on, as `file_hashes`; nothing is imported."""
    found: dict[Path, str] = {}
    _follow(file.resolve(), file.resolve().parent, found)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in found.items()}


def file_of(function: Callable[..., Any]) -> Path | None:
    """Return the file that defines a function; None for functions of installed packages, except lm-eval's tasks."""
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
    if file in found or len(found) >= MOST_BEHIND:
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
