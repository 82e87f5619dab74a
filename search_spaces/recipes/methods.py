"""The merge methods that a recipe can name, and the parameters each takes: data only, no arithmetic.

A method is declared once, at the function that computes it (see ``evomerge.merging.methods``). The table of our own
methods, ``methods_table.json``, is generated from there by ``python -m evomerge.merging.methods``, so that recipes are
validated, hashed and searched without torch. Other packages' methods join when they are declared.

Names, defaults and scopes are those of mergekit 0.1.5 where it has the method: its recipes read here without change.
"""

from __future__ import annotations

import json
from pathlib import Path

from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.method_spec import BaseRole, MethodSpec, Parameter, from_data
from search_spaces.registry import Registry, registering

__all__ = ["METHODS", "TABLE", "BaseRole", "MethodSpec", "Parameter", "method_spec"]

TABLE = Path(__file__).with_name("methods_table.json")
"""The generated table of our own methods."""

METHODS: Registry[MethodSpec] = Registry("merge method")
"""Every method that a recipe can name."""


def _register_own_methods() -> None:
    with registering("evomerge"):  # even where another package's import is the first to need them
        for data in json.loads(TABLE.read_text(encoding="utf-8")):
            METHODS.register(data["name"], from_data(data), __name__)


def method_spec(name: str) -> MethodSpec:
    """Return the specification of the merge method called `name`.

    Raises
    ------
    RecipeError
        If there is no such method; the text names the nearest.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise RecipeError(f"merge_method '{name}' is unknown; {did_you_mean(name, METHODS)}") from None


_register_own_methods()
