"""Fisher-weighted averaging: the suite, the formula, properties; what it is refused without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients, merge_tensors
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.layer_coefficients import CoefficientConfig

Merge = Callable[..., Tensor]
RECIPE = {"merge_method": "fisher", "models": [{"model": "a"}, {"model": "b"}]}


class TestFisher(MergeMethodSuite):
    method = "fisher"
    parameters = coefficients(weight=[0.4, 0.7, 0.2])
    others = coefficients(weight=1.0, floor=0.5)
    one_model = coefficients(weight=1.0)


def test_formula(merge: Merge, tensors: Any) -> None:
    """Bare tensors are merged as if the information were the square of each value."""
    models = tensors(3)
    weight, floor = [0.2, 0.9, 0.4], 0.3
    shares = [w * m.square().bfloat16().float().clamp(min=floor) for w, m in zip(weight, models, strict=True)]
    total = torch.stack(shares).sum(0)
    expected = torch.stack([share * m for share, m in zip(shares, models, strict=True)]).sum(0) / total
    torch.testing.assert_close(merge("fisher", None, models, weight=weight, floor=floor), expected)


@given(
    seed=st.integers(0, 99),
    weight=st.lists(st.floats(0, 2, width=16), min_size=2, max_size=4).filter(lambda values: max(values) > 0.01),
    scale=st.floats(0.1, 10),
)
def test_the_result_lies_between_the_models_and_only_ratios_of_weights_count(
    seed: int, weight: list[float], scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    models = [torch.randn(31, generator=generator) for _ in weight]
    found = merge_tensors("fisher", None, models, weight=weight)
    taken = torch.stack([model for model, w in zip(models, weight, strict=True) if w > 0])
    assert bool((found >= taken.min(0).values - 1e-4).all())
    assert bool((found <= taken.max(0).values + 1e-4).all())
    again = merge_tensors("fisher", None, models, weight=[w * scale for w in weight])
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4)


def test_without_differences_in_information_it_is_the_average(merge: Merge, tensors: Any) -> None:
    models = tensors(2)
    high = merge("fisher", None, models, weight=[0.25, 0.75], floor=1e6)
    torch.testing.assert_close(high, 0.25 * models[0] + 0.75 * models[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": [-0.1, 1.0]}, "fisher: the weights are shares; write numbers of at least 0"),
        ({"weight": 0.0}, "fisher: the weights are shares; write numbers of at least 0, one of them above"),
        ({"floor": 0.0}, r"fisher: a floor of 0 leaves weights without any information; write one such as 0.001"),
    ],
)
def test_what_cannot_be_divided_by(merge: Merge, tensors: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge("fisher", None, tensors(2), **values)


def test_it_needs_a_text() -> None:
    with pytest.raises(RecipeError, match=r"fisher: it needs a text to measure models on; write evomerge: \{calib"):
        mergekit_yaml.build(RECIPE)
    recipe = mergekit_yaml.build(RECIPE | {"evomerge": {"calibration_text": "text.txt"}})
    assert recipe.canonical().calibration_text == "text.txt"
    assert recipe.hash != mergekit_yaml.build(RECIPE | {"evomerge": {"calibration_text": "other.txt"}}).hash
    with pytest.raises(ValueError, match="fisher: it needs a text; write calibration_text: TEXT_FILE"):
        CoefficientConfig(method="fisher")
    with pytest.raises(ValueError, match="fisher: it needs a text; write calibration_text: TEXT_FILE"):
        CoefficientConfig(method=("ties", "fisher"))
    with pytest.raises(RecipeError, match="core space has no input channels to weigh; remove calibration_text"):
        mergekit_yaml.build(RECIPE | {"evomerge": {"calibration_text": "text.txt", "adapters": "core"}})
