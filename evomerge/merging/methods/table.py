"""The table of our own merge methods, generated from their declarations so that recipes are read without torch.

``python -m evomerge.merging.methods`` writes it; a test compares it with the declarations.
"""

from __future__ import annotations

import json
from typing import Any

from evomerge.merging.methods.registry import IMPLEMENTATIONS
from search_spaces.recipes.method_spec import as_data


def table() -> str:
    """Return the table as JSON: our own methods, by name."""
    own = sorted(name for name in IMPLEMENTATIONS if IMPLEMENTATIONS.origin(name) == "evomerge")
    return "[\n" + ",\n".join(_entry(as_data(IMPLEMENTATIONS[name].spec)) for name in own) + "\n]\n"


def _entry(data: dict[str, Any]) -> str:
    """Return a method as JSON, with a line for each parameter."""
    parameters = [_line(parameter) for parameter in data.pop("parameters")]
    listed = "".join(f"\n  {parameter}," for parameter in parameters).removesuffix(",")
    return f'{_line(data)[:-1]}, "parameters": [{listed}]}}'


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)
