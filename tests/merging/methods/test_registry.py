"""Registration: a method is declared once, at its function; the table that recipes read is generated from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import torch

from evomerge.merging.methods import Flag, PerModel, Real, implementation, merge_method
from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.registry import IMPLEMENTATIONS
from evomerge.merging.methods.table import table, with_table
from evomerge.testing.merge_methods import merge_tensors
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS, TABLE
from search_spaces.registry import registering
from search_spaces.spaces.layer_coefficients import CoefficientConfig

Weight = Annotated[PerModel, Real(0.0, 1.0, 0.5, "Share of the model.")]


@pytest.fixture
def registration() -> Iterator[None]:
    """Registers for ``a-package`` and takes it back."""
    with pytest.raises(InterruptedError), registering("a-package"):
        yield
        raise InterruptedError


def test_the_table_is_fresh() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run python -m evomerge.merging.methods"


def test_the_page_is_fresh() -> None:
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m evomerge.merging.methods"
    with pytest.raises(ValueError, match="the page has no place for the table; put the lines <!-- methods -->"):
        with_table("# Methods")


def test_every_method_of_the_table_is_implemented() -> None:
    assert set(METHODS) == set(IMPLEMENTATIONS)
    for name, spec in METHODS.items():
        assert implementation(name).spec == spec


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'linear'"):
        implementation("liner")


@pytest.mark.usefixtures("registration")
def test_a_method_of_another_package_joins_recipes_spaces_and_the_engine() -> None:
    @merge_method("halfway", max_models=1)
    def halfway(
        block: Block,
        *,
        t: Annotated[float, Real(0.0, 1.0, 0.5, "How far.")],
        doubled: Annotated[bool, Flag(False, "Twice as far.")],
    ) -> None:
        """Move part of the way to the other model.

        In more words.
        """
        base_E, (delta_E,) = block.deltas()
        block.out.copy_(base_E).add_(delta_E, alpha=2 * t if doubled else t)

    spec = METHODS["halfway"]
    assert METHODS.origin("halfway") == IMPLEMENTATIONS.origin("halfway") == "a-package"
    assert METHODS.origin("ties") == IMPLEMENTATIONS.origin("ties") == "evomerge"
    assert spec.doc == "Move part of the way to the other model."
    assert [p.name for p in spec.parameters] == ["t", "doubled", "activation_informed"]
    assert spec.parameter("t").required
    assert spec.parameter("t").search == (0.0, 1.0, 0.5)
    recipe = mergekit_yaml.parse(
        "merge_method: halfway\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.25, doubled: true}\n"
    )
    assert recipe.spec is spec
    assert CoefficientConfig(method="halfway").spec is spec
    base, model = torch.zeros(3), torch.ones(3)
    assert torch.equal(merge_tensors("halfway", base, [model], t=0.25, doubled=True), torch.full((3,), 0.5))
    assert "halfway" not in table()


def test_what_a_package_registered_goes_if_it_fails() -> None:
    with pytest.raises(InterruptedError), registering("a-package"):

        @merge_method("gone")
        def gone(block: Block) -> None:
            """Nothing."""

        assert "gone" in METHODS
        raise InterruptedError
    assert "gone" not in METHODS
    assert "gone" not in IMPLEMENTATIONS


@pytest.mark.usefixtures("registration")
def test_a_taken_name_is_refused() -> None:
    def linear(block: Block, *, weight: Weight) -> None:
        """Another."""

    with pytest.raises(ValueError, match="merge method 'linear' is taken, evomerge registers it; use another name"):
        merge_method("linear")(linear)


def test_an_argument_that_declares_nothing_is_refused() -> None:
    def mine(block: Block, *, weight: PerModel) -> None:
        """Mine."""

    with pytest.raises(TypeError, match=r"mine: argument 'weight': .*write Annotated\[PerModel, Real\(\.\.\.\)\]"):
        merge_method("mine")(mine)


def test_a_flag_for_a_number_is_refused() -> None:
    def mine(block: Block, *, weight: Annotated[PerModel, Flag(True, "A share.")]) -> None:
        """Mine."""

    with pytest.raises(TypeError, match="its annotation does not declare a parameter"):
        merge_method("mine")(mine)


def test_positional_parameters_are_refused() -> None:
    def mine(block: Block, weight: Weight) -> None:
        """Mine."""

    with pytest.raises(TypeError, match=r"argument 'weight': it can be given by position; write a \* before it"):
        merge_method("mine")(mine)


@pytest.mark.parametrize("bounds", [(1.0, 0.0, 0.5), (0.0, 1.0, None), (0.0, 1.0, 2.0), (0.5, 0.5, 0.5)])
def test_an_impossible_range_is_refused(bounds: tuple[float, float, float | None]) -> None:
    def mine(block: Block, *, t: Annotated[float, Real(*bounds, "Part.")]) -> None:
        """Mine."""

    mine.__annotations__["t"] = Annotated[float, Real(*bounds, "Part.")]
    with pytest.raises(TypeError, match="give all three, low <= start <= high, low < high"):
        merge_method("mine")(mine)


def test_a_method_without_docstring_or_return_is_refused() -> None:
    def silent(block: Block) -> None: ...

    def unclear(block: Block):  # type: ignore[no-untyped-def]
        """Something."""

    with pytest.raises(TypeError, match="silent: its function has no docstring; say there what the method does"):
        merge_method("silent")(silent)
    with pytest.raises(TypeError, match="unclear: its function has no return annotation; write -> None"):
        merge_method("unclear")(unclear)


def test_a_parameter_without_a_description_is_refused() -> None:
    def mine(block: Block, *, t: Annotated[float, Real(0.0, 1.0, 0.5)]) -> None:
        """Mine."""

    with pytest.raises(TypeError, match="argument 't': it has no doc; say in one sentence what it means"):
        merge_method("mine")(mine)
