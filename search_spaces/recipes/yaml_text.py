"""YAML from untrusted files: bounded in size, nesting and number of values, and without repeated keys."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from search_spaces.recipes.errors import RecipeError

MAX_BYTES = 4_000_000  # a canonical recipe of 128 layers and 8 sources is about 200 kB
MAX_NESTING = 32  # the grammar needs 8; parsers recurse
MAX_VALUES = 200_000  # aliases counted where they are used

if TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:  # the compiled one, ten times as fast, where PyYAML was built with it
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Repeated:
    """A key that a mapping has twice: `line`, counted from 1, is that of the first, which the second replaces."""

    key: str
    line: int


def read_text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises
    ------
    RecipeError
        If it is not a file, cannot be read or is not text.
    """
    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: is {_other_than_a_file(path)}; name a recipe's YAML file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return data.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name a recipe's YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not text; name a recipe's YAML file in UTF-8") from None


def _other_than_a_file(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "the folder of an adapter, which a recipe names as MODEL+ADAPTER"
    if (path / "mergekit_config.yml").is_file():
        return f"the folder of a merged model, whose recipe is {path / 'mergekit_config.yml'}"
    if (path / "config.json").is_file():
        return "the folder of a model, which a recipe names"
    return "a folder" if path.is_dir() else "not a regular file"


def documents(text: str, origin: str, repeated: list[Repeated] | None = None) -> list[Any]:
    """Return the plain data of each YAML document in `text`, at least one; empty documents are left out.

    Parameters
    ----------
    text
        The text.
    origin
        What errors start with.
    repeated
        A list that takes up keys that a mapping has twice, of which the last counts, as for mergekit. None: they are
        errors.

    Raises
    ------
    RecipeError
        If the text is too large or is not YAML.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{origin}: is larger than {MAX_BYTES} bytes; name a recipe's YAML file")
    try:
        loaded = load_yaml_documents(text, repeated)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = origin if mark is None else f"{origin}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{place}: not valid YAML: {problem}; correct it there") from None
    except (ValueError, TypeError) as error:  # dates that do not exist, mappings as keys, nesting
        raise RecipeError(f"{origin}: {error}; write plain mappings, lists and numbers") from None
    return [data for data in loaded if data is not None] or [None]


class _Loader(_SafeLoader):
    """The safe loader, except that a key given twice is an error, or is taken up in `repeated` if that is a list."""

    repeated: list[Repeated] | None = None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                if self.repeated is None:
                    problem = f"the key '{key_node.value}' is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                self.repeated.append(Repeated(key_node.value, seen[key_node.value]))
            seen[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str) -> Any:
    """Return the plain data of a YAML text from an untrusted source.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, names a Python type, or repeats a key.
    ValueError
        If it is nested too deeply, has too many values, or an impossible one (a date that does not exist).
    """
    loaded = [data for data in load_yaml_documents(text) if data is not None]  # as after a last ---
    if len(loaded) > 1:
        raise ValueError(f"{len(loaded)} documents; write one, without ---")
    return loaded[0] if loaded else None


def load_yaml_documents(text: str, repeated: list[Repeated] | None = None) -> list[Any]:
    """Return the plain data of each document of a YAML text from an untrusted source; see `load_yaml`, `documents`."""
    _check_events(text)
    loader: Any = _Loader(text)
    loader.repeated = repeated
    loaded = []
    try:
        while loader.check_data():
            loaded.append(loader.get_data())
    finally:
        loader.dispose()
    check_amount(loaded)
    return loaded


def _check_events(text: str) -> None:
    """Raise on deep nesting or too many values, event by event, before anything is built."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        else:
            values += 1
        if depth > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} levels deep")
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")


def check_amount(data: Any) -> None:
    """Raise on too many values, those of aliases counted where they are used."""
    count, pending = 0, [data]
    while pending:
        value = pending.pop()
        count += 1
        if count > MAX_VALUES:
            raise RecipeError(f"more than {MAX_VALUES} values; write a smaller file")
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
