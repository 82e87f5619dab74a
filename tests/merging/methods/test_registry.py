"""Registration: the signature and the table of methods must agree."""

from __future__ import annotations

import pytest

from evomerge.merging.methods import implementation, merge_method
from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.registry import PerModel
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS


def test_every_method_of_the_table_is_implemented() -> None:
    for name, spec in METHODS.items():
        assert implementation(name).spec is spec


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'linear'"):
        implementation("liner")


def test_missing_parameter_is_an_error_at_import() -> None:
    def linear(block: Block, *, weight: PerModel) -> None: ...

    with pytest.raises(TypeError, match=r"linear: keyword-only arguments.*normalize.*make them equal"):
        merge_method("linear")(linear)


def test_shared_instead_of_per_model_is_an_error() -> None:
    def linear(block: Block, *, weight: float, normalize: bool) -> None: ...

    with pytest.raises(TypeError, match=r"make them equal"):
        merge_method("linear")(linear)


def test_positional_parameters_are_an_error() -> None:
    def linear(block: Block, weight: PerModel, normalize: bool) -> None: ...

    with pytest.raises(TypeError, match=r"make them equal"):
        merge_method("linear")(linear)
