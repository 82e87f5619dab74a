"""Line numbers for errors about a YAML document that has been read already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

_NULL = "tag:yaml.org,2002:null"
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


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and the value of an entry; those of a mapping may come from another one merged into it."""
    if isinstance(node, yaml.SequenceNode):
        index = int(key) if str(key).isdigit() else -1
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
