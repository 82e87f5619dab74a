"""The config reference of the README, made from the schema: `python -m evomerge.reference`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge.config.search_file import SearchConfig
from search_spaces.registry import config_classes


def reference() -> str:
    """Return a Markdown table per section of the search file."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    top = {name: config_classes(field) for name, field in SearchConfig.model_fields.items()}
    yield _table("the top level", SearchConfig, skip=[name for name, models in top.items() if models])
    described: set[type[BaseModel]] = set()
    for name, models in top.items():
        for model in models:
            yield from _section(name, model, described)


def _section(place: str, model: type[BaseModel], described: set[type[BaseModel]]) -> Iterator[str]:
    """Describe a section and those in it, each once: under the first of the keys that share it."""
    if model in described:
        return
    described.add(model)
    nested = {name: config_classes(field) for name, field in model.model_fields.items()}
    kind = model.model_fields.get("kind")
    yield _table(f"`{place}`" + (f", `kind: {kind.default}`" if kind else ""), model)
    for name, models in nested.items():
        for inner in models:
            yield from _section(f"{place}.{name}", inner, described)


def _table(title: str, model: type[BaseModel], skip: typing.Container[str] = ()) -> str:
    lines = [f"**{title}**", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip and name != "kind":
            meaning = " ".join((field.description or "").split())
            lines.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(annotation: Any) -> str:
    """Return a type as a user of YAML would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, str(annotation))


if __name__ == "__main__":
    print(reference())
