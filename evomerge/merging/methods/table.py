"""The table of our own merge methods, generated from their declarations so that recipes are read without torch.

``python -m evomerge.merging.methods`` writes it; a test compares it with the declarations.
"""

from __future__ import annotations

import json
from typing import Any

from evomerge.merging.methods.registry import IMPLEMENTATIONS
from search_spaces.recipes.method_spec import MethodSpec, as_data

START, END = "<!-- methods -->\n", "<!-- /methods -->\n"
"""Lines around the table in ``docs/methods.md``."""


def table() -> str:
    """Return the table as JSON: our own methods, by name."""
    return "[\n" + ",\n".join(_entry(as_data(spec)) for spec in _own_specs()) + "\n]\n"


def _own_specs() -> list[MethodSpec]:
    names = sorted(name for name in IMPLEMENTATIONS if IMPLEMENTATIONS.origin(name) == "evomerge")
    return [IMPLEMENTATIONS[name].spec for name in names]


def _entry(data: dict[str, Any]) -> str:
    """Return a method as JSON, with a line for each parameter."""
    parameters = [_line(parameter) for parameter in data.pop("parameters")]
    listed = "".join(f"\n  {parameter}," for parameter in parameters).removesuffix(",")
    return f'{_line(data)[:-1]}, "parameters": [{listed}]}}'


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def page_table() -> str:
    """Return the table of `docs/methods.md`: what each of our methods does, and what a search looks for."""
    lines = ["| method | what it does | base | searched |", "|---|---|---|---|"]
    for spec in _own_specs():
        searched = [f"`{parameter.name}`" for parameter in spec.parameters if parameter.search and not parameter.after]
        name = f"`{spec.name}`" if spec.in_mergekit else f"`{spec.name}` *"
        lines.append(f"| {name} | {spec.doc} | {spec.base} | {', '.join(searched)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return the page with its table, between the two lines that mark it, made again."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(
            f"the page has no place for the table; put the lines {START.strip()} and {END.strip()} into it"
        )
    return before + start + page_table() + end + after
