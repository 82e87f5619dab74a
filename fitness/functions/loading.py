"""Finding a function of a user's own, and the code that it runs, before it runs."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeAlias

from fitness.config import FitnessConfig
from fitness.results import TaskError
from fitness.tasks.code import LARGEST_FILE, CodeCheck, TaskCode, allow, files_behind, functions_in, same_folder
from fitness.tasks.messages import one_line

MOST_ITEMS = 1_000_000
SPLITS = ("train", "validation", "test")
SEARCHED = "validation"
"""The split of a list of items that names none."""
LARGEST_ITEMS = 1_000_000_000
"""Bytes of a file of items."""

GIVEN = "<given>"
"""In place of a name: the items were given by a Python program."""

Items: TypeAlias = Mapping[str, tuple[Any, ...]]
"""Split to its items, each made of what JSON can hold."""


@dataclass(frozen=True)
class FitnessFunction:
    """A function that scores models, ready to be called; it can be sent to other processes.

    Attributes
    ----------
    name
        What messages call it.
    call
        Called with a model and its tokenizer, and with a list of items where there are some.
    items
        What it scores one by one; None: a model as a whole.
    code
        Hashes of the files that it depends on, by name; of its own compiled code where it has no file.
    """

    name: str
    call: Callable[..., Any]
    items: Items | None
    code: Mapping[str, str]

    def __post_init__(self) -> None:
        given = ["model", "tokenizer", *(["items"] if self.items is not None else [])]
        try:
            inspect.signature(self.call).bind(*given, **({"batch_size": 1} if self.takes_batch_size else {}))
        except TypeError:
            raise TaskError(f"{self.name}: it must take ({', '.join(given)}); change its parameters") from None
        except ValueError:
            pass  # a function without a signature, such as a built-in one

    @property
    def takes_batch_size(self) -> bool:
        """Whether it has a parameter `batch_size`, and so follows where memory is short."""
        try:
            return "batch_size" in inspect.signature(self.call).parameters
        except ValueError:
            return False

    @classmethod
    def of(cls, call: Callable[..., Any], items: Any = None) -> FitnessFunction:
        """Return the function that a program has given, with its items as in the search file, or None.

        Raises
        ------
        TaskError
            If it cannot be called, or the items cannot be used.
        """
        if not callable(call):
            raise TaskError(f"evaluate: give a function of a model and its tokenizer (got {call!r})")
        name = getattr(call, "__qualname__", type(call).__qualname__)
        return cls(
            name, call, None if items is None else checked_items(items, f"items of {name}"), _code_of(call, name)
        )


def reference_to(call: Callable[..., Any]) -> str:
    """Return how a search file names a function that a program has given; it need not be found again."""
    name = getattr(call, "__qualname__", type(call).__qualname__)
    module = getattr(call, "__module__", None) or "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    place = file if module != "__main__" and file is not None and Path(file).is_file() else module
    return f"{place}:{name}"


def load_function(config: FitnessConfig, check: CodeCheck = allow) -> FitnessFunction:
    """Return the function and the items that a search file names.

    Parameters
    ----------
    config
        Of kind python.
    check
        Called with the code before any of it runs; what it raises is passed on.

    Raises
    ------
    TaskError
        If there is no such function, or its module, or the items cannot be used.
    """
    assert config.function is not None
    place, name = _parsed(config.function, "function")
    code = _hashes(place, "function")
    items = config.function_items
    if items == GIVEN:
        raise TaskError(_GIVEN.format(key="function_items", name="they", verb="were"))
    if items is None or items.endswith(".jsonl"):
        others: dict[str, str] = {}
        where = None
    else:
        where = _parsed(items, "function_items") if ":" in items else (place, items)
        others = _hashes(where[0], "function_items") if where[0] != place else {}
    places = dict.fromkeys([place, *([where[0]] if where else [])])
    check(code_of_function(config.function, code | others, tuple(places)))
    call = _attribute(_module(place, "function"), name, place, "function")
    if not callable(call):
        raise TaskError(f"fitness.function: {name} in {place} is not a function; name one")
    found = None
    if where is not None:
        key = "function_items"
        listed = _attribute(_module(where[0], key), where[1], where[0], key)
        found = checked_items(listed, f"fitness.{key}")
    elif items is not None:
        found = checked_items(_lines(Path(items)), "fitness.function_items")
    return FitnessFunction(f"{Path(place).name}:{name}", call, found, code | others)


def code_of_function(reference: str, code: Mapping[str, str], places: tuple[str, ...]) -> TaskCode:
    """Return the code of a function, for the decision whether it may run.

    Parameters
    ----------
    reference
        As in the search file; the place of its file does not matter.
    code
        Hashes by file.
    places
        Files and modules, for messages.
    """
    text = json.dumps([reference.rpartition("/")[2], sorted(code.items())])
    return TaskCode("fitness.function", places, hashlib.sha256(text.encode()).hexdigest())


# --- items ---


def checked_items(items: Any, called: str) -> Items:
    """Return items by split, from a list, a mapping of lists, or a function that returns one.

    Raises
    ------
    TaskError
        If there are none or too many, or one of them is not made of what JSON can hold.
    """
    if callable(items):
        try:
            with same_folder():
                items = items()
        except Exception as error:  # the user's code can raise anything
            raise TaskError(f"{called}: the function that returns them raised {one_line(error)}; fix it") from error
    by_split = items if isinstance(items, Mapping) else {SEARCHED: items}
    for split, listed in by_split.items():
        if split not in SPLITS:
            raise TaskError(f"{called}: {split!r} is not a split; write {', '.join(SPLITS)}")
        if isinstance(listed, str | bytes) or not isinstance(listed, Sequence):
            raise TaskError(f"{called}: give a list, or a mapping from splits to lists (got {type(listed).__name__})")
        if not 1 <= len(listed) <= MOST_ITEMS:
            raise TaskError(f"{called}: {len(listed):,} of split {split}; give 1 to {MOST_ITEMS:,}")
        for position, item in enumerate(listed):
            try:
                json.dumps(item)
            except (TypeError, ValueError, RecursionError) as error:
                said = one_line(error)
                raise TaskError(
                    f"{called}: item {position} of split {split} is not made of texts, numbers, lists and mappings "
                    f"({said}); write it as these"
                ) from None
    if SEARCHED not in by_split:
        raise TaskError(f"{called}: there is no split {SEARCHED}, which the search uses; add it")
    return {split: tuple(listed) for split, listed in by_split.items()}


def _lines(file: Path) -> list[Any]:
    """Return the values in a file with one JSON value per line."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_ITEMS:
            raise TaskError(
                f"fitness.function_items: {file} is not a file of at most {LARGEST_ITEMS:,} bytes; name a .jsonl file"
            )
        # not splitlines(), which also ends a line at characters that JSON's texts may contain, such as U+2028
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"fitness.function_items: {file} cannot be read ({getattr(error, 'strerror', None) or one_line(error)}); "
            "write it in UTF-8"
        ) from None
    values = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"fitness.function_items: {file}:{number} is not JSON ({one_line(error)}); correct it"
                ) from None
    return values


# --- code ---


def _parsed(reference: str, key: str) -> tuple[str, str]:
    """Return the file or module, and the name in it."""
    place, colon, name = reference.rpartition(":")
    if not (colon and place and name and all(part.isidentifier() for part in name.split("."))):
        if "<" in name:  # a lambda or an inner function that a program has given
            raise TaskError(_GIVEN.format(key=key, name=reference, verb="was"))
        raise TaskError(f"fitness.{key}: {reference!r}; write FILE.py:NAME or module:NAME")
    return place, name


_GIVEN = (
    "fitness.{key}: {name} {verb} given by a Python program; continue there with evomerge.resume(RUN, evaluate=...)"
)


def _hashes(place: str, key: str) -> dict[str, str]:
    """Return the hashes of a file, or of an importable module, and of the files that it depends on; nothing runs."""
    if place == "__main__":
        raise TaskError(_GIVEN.format(key=key, name=place, verb="was"))
    file = Path(place) if place.endswith(".py") else _file_of_module(place, key)
    if file is None:
        return {place: "built in"}
    if not file.is_file() or file.stat().st_size > LARGEST_FILE:
        raise TaskError(
            f"fitness.{key}: {file} is not a Python file; correct the path, which is relative to the search file"
        )
    return files_behind(file)


def _file_of_module(name: str, key: str) -> Path | None:
    """Return a module's file without importing its package; None for one that has no file."""
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise TaskError(f"fitness.{key}: there is no module {name}; write FILE.py:NAME, relative to the search file")
    for folder in spec.submodule_search_locations or () if inner else ():
        place = Path(folder).joinpath(*inner)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return Path(spec.origin) if spec.origin is not None and spec.has_location and not inner else None


def _module(place: str, key: str) -> ModuleType:
    """Import a file or a module; a file's own folder is searched for what it imports."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        name = f"evomerge_function_{hashlib.sha256(place.encode()).hexdigest()[:12]}_{Path(place).stem}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        folder = str(Path(place).parent)
        if folder not in sys.path:
            sys.path.append(folder)  # for what it imports, also later
        sys.modules[name] = module
        try:
            with same_folder():
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except Exception as error:  # the user's code can raise anything
        raise TaskError(f"fitness.{key}: {place} cannot be imported ({one_line(error)}); fix it") from error


def _attribute(module: ModuleType, name: str, place: str, key: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise TaskError(f"fitness.{key}: {place} has no {part}; correct the name after the colon")
        value = getattr(value, part)
    return value


def _code_of(call: Callable[..., Any], name: str) -> dict[str, str]:
    """Return hashes of the files behind a function that a program has given, or else of its compiled code."""
    found: dict[str, str] = {}
    for function in functions_in(call):
        target = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
        try:
            file = inspect.getsourcefile(inspect.unwrap(target))
        except (TypeError, OSError):
            file = None
        if file is not None and Path(file).is_file():
            found |= files_behind(Path(file))
        else:
            found[name] = _digest(getattr(target, "__code__", None))
    return found


def _digest(code: CodeType | None) -> str:
    return hashlib.sha256("\0".join(_words(code)).encode()).hexdigest() if code is not None else "built in"


def _words(code: CodeType) -> Iterator[str]:
    """Yield what a compiled function does, without where it was written."""
    yield code.co_code.hex()
    yield " ".join(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)
        else:
            yield repr(constant)
