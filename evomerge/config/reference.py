"""The reference of all keys, docs/reference.md, made from the schema: `python -m evomerge.config.reference`."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge.config.schema import Hint, Section, alternatives, bare, choices, hint_of, kind_of, sections
from evomerge.config.search_file import SearchConfig
from evomerge.plugins import load_plugins

HEAD = """\
# All keys of a search file

This page is made from the schema by `python -m evomerge.config.reference > docs/reference.md`. Unknown keys are errors
that name the nearest valid one. On the command line `--set space.weight.high=2` overrides a key, and
`--space.weight.high=2` is the same.

Short forms: `strategy: m2n2`, `space: mixture` and `workers: ray` name a kind and keep its defaults; `budget: 200` is
`{evaluations: 200}`; `tasks: [a, b]` is `[{task: a}, {task: b}]`; `subset: 20` is `{items: 20}`; `engine: vllm` is
`{kind: vllm}`; `weight: [0, 1]`, and any other range, is `{low: 0, high: 1}`; `workers: 4` is four workers of Ray, and
`workers: 1` this process.
"""

BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "min_length": "{} or more",
    "le": "at most {}",
    "lt": "below {}",
    "max_length": "{} or fewer",
}
"""Bounds of a field as pydantic names them, and in words."""


def reference() -> str:
    """Return the page, in Markdown: a table per section of the search file."""
    return "\n\n".join([HEAD.rstrip(), *_tables()]) + "\n"


def _tables() -> Iterator[str]:
    top = {name: sections(hint_of(field)) for name, field in SearchConfig.model_fields.items()}
    yield "## The top level\n\n" + _table(SearchConfig, skip=[name for name, found in top.items() if found])
    described: set[Section] = set()
    for name, found in top.items():
        yield from _described(name, found, described)


def _described(place: str, found: Sequence[Section], described: set[Section]) -> Iterator[str]:
    """Describe the sections of a place and those inside them, each once: under the first of the keys that share it."""
    new = [section for section in found if section not in described]
    described.update(new)
    for section in new:
        kind = kind_of(section)
        yield f"## `{place}`" + (f", `kind: {kind}`" if kind else "") + "\n\n" + _table(section)
        for name, field in section.model_fields.items():
            yield from _described(f"{place}.{name}", sections(hint_of(field)), described)


def _table(section: Section, skip: typing.Container[str] = ()) -> str:
    rows = []
    for name, field in section.model_fields.items():
        if name not in skip and (name != "kind" or kind_of(section) is None):
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            rows.append(f"| `{name}` | {_type(hint_of(field))}{_range(field)} | {_default(field)} | {meaning} |")
    summary = " ".join((section.__doc__ or "").split())
    head = ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([summary, *head, *rows] if rows else [summary])


def _range(field: FieldInfo) -> str:
    """Return the numbers, or the lengths of a list, that a key takes; empty if it takes all."""
    given = {name: value for one in field.metadata for name, value in _limits(one).items()}
    words = [bound.format(f"{given[name]:,}") for name, bound in BOUNDS.items() if name in given]
    return f", {' and '.join(words)}" if words else ""


def _limits(annotation: object) -> dict[str, float]:
    return {name: value for name in BOUNDS if isinstance(value := getattr(annotation, name, None), int | float)}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(hint: Hint) -> str:
    """Return a type as a user of YAML would say it."""
    names = ["" if choices(member) else _name(bare(member)) for member in alternatives(hint)]
    words = ", ".join(f"`{word}`" for word in choices(hint))
    return " or ".join(dict.fromkeys(name for name in [*names, words] if name))


def _name(plain: Hint) -> str:
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])}"
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(plain, str(plain))


if __name__ == "__main__":
    load_plugins()
    print(reference(), end="")
