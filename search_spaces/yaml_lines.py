"""Places in a YAML text that has been read already: lines for errors, and numbers that are not what they look like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

_NULL = "tag:yaml.org,2002:null"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MAY_BE_MISREAD = re.compile(r"\b0_*[0-7]|\d:[0-5]")
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def line_of(text: str, keys: Sequence[str | int], document: int = 0) -> int | None:
    """Return the line, counted from 1, on which a key path stands.

    Parameters
    ----------
    text
        YAML, known to be of moderate size and nesting.
    keys
        Mapping keys and list positions from the top. Where the document ends before the path does, the line is that of
        the last part that is there.
    document
        Which of the documents in `text`, empty ones not counted.

    Returns
    -------
    int or None
        None if the document holds nothing of the path, or is not YAML.
    """
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=_SafeLoader) if node.tag != _NULL]
    except yaml.YAMLError:
        return None
    node = nodes[document] if document < len(nodes) else None
    line = None
    for key in keys:
        found = _child(node, key)
        if found is None:
            break
        line, node = found
    return line


class MisreadNumber(NamedTuple):
    """A number that YAML 1.1 reads otherwise than it looks: 010 in base 8, 1:30 in base 60."""

    keys: tuple[str | int, ...]
    line: int
    text: str
    value: float

    def __str__(self) -> str:
        """Return what it is, and what to write."""
        read, decimal = self.value, "" if ":" in self.text else f" or {int(self.text.replace('_', ''))}"
        return f"YAML reads {self.text} as {read}; write {read}{decimal}, or '{self.text}' in quotes if it is text"


def misread_numbers(text: str) -> Iterator[MisreadNumber]:
    """Yield the numbers in a text that has been read, which are not in quotes and not what they look like."""
    if _MAY_BE_MISREAD.search(text):
        for node in yaml.compose_all(text, Loader=_SafeLoader):
            yield from _misread(node, ())


def _misread(node: yaml.Node | None, keys: tuple[str | int, ...]) -> Iterator[MisreadNumber]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            yield from _misread(value, (*keys, str(key_node.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _misread(value, (*keys, index))
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and not node.style:
        value = yaml.safe_load(node.value)
        plain = node.value.replace("_", "")
        if ":" in plain or (re.fullmatch(r"[-+]?0[0-7]+", plain) and int(plain) != value):
            yield MisreadNumber(keys, node.start_mark.line + 1, node.value, value)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and the value of an entry; those of a mapping may come from another one merged into it."""
    if isinstance(node, yaml.SequenceNode):
        index = int(key) if str(key).isdecimal() else -1
        if not 0 <= index < len(node.value):
            return None
        return node.value[index].start_mark.line + 1, node.value[index]
    if not isinstance(node, yaml.MappingNode):
        return None
    merged: list[yaml.Node] = []
    for key_node, value in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        elif key_node.value == str(key):
            return key_node.start_mark.line + 1, value
    return next((found for other in merged if (found := _child(other, key)) is not None), None)
