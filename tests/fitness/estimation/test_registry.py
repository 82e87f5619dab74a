"""Estimators by name: ours, and those of other packages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fitness.config import SubsetConfig
from fitness.estimation import ESTIMATORS, Estimator, EstimatorInputs, register_estimator
from fitness.estimation.evaluation_plan import EstimatedPlan, estimator_inputs
from fitness.estimation.registry import UnknownEstimator, registering
from fitness.objectives import Objectives
from fitness.results import Estimate, Evaluation


def half(scores: object, positions: object, inputs: EstimatorInputs) -> Estimate:
    """Half the mean: a number that no other estimator gives."""
    return Estimate(float(np.mean(np.asarray(scores))) / 2, 0.1)


@pytest.fixture
def plugin() -> Iterator[Estimator]:
    """An estimator of a package `elsewhere`, for the time of a test."""
    with registering("elsewhere"):
        found = register_estimator(Estimator("half", half, any_scores=True))
    yield found
    ESTIMATORS.remove("half")


def test_ours_are_registered() -> None:
    assert {"inherited", "mean", "p_irt", "ridge"} <= set(ESTIMATORS)
    assert ESTIMATORS["inherited"].needs == {"parents"} and ESTIMATORS.origin("inherited") == "evomerge"


def test_a_plugin_is_named_in_a_search_file_and_used(plugin: Estimator) -> None:
    config = SubsetConfig(items=2, estimator="half")
    assert ESTIMATORS.origin("half") == "elsewhere"
    assert config.rotates() and not config.needs_parents
    items = [f"t/validation/{at}" for at in range(6)]
    inputs = {"t": estimator_inputs("t", items, [], None, "half")}
    plan = EstimatedPlan(items, inputs, Objectives({"t": 1.0}), "half", 2, seed=0)
    asked = plan.items(0)
    assert len(asked) == 2
    found = plan.judge(Evaluation("ok", items=asked, scores=np.array([3.0, 5.0], np.float32)))
    assert found.objectives == (2.0,)


def test_an_unknown_name_says_the_nearest_one() -> None:
    with pytest.raises(UnknownEstimator, match=r"no estimator 'inherit'; did you mean 'inherited'\? valid: auto"):
        ESTIMATORS["inherit"]
    with pytest.raises(ValueError, match="there is no estimator 'p_irtt'; did you mean 'p_irt'"):
        SubsetConfig(estimator="p_irtt")


def test_taken_and_malformed_names_are_refused(plugin: Estimator) -> None:
    with pytest.raises(ValueError, match="estimator 'half' is taken, elsewhere registers it; use another name"):
        register_estimator(plugin)
    for name in ("Half", "half life", "", "auto"):
        with pytest.raises(ValueError, match="not a valid name; use lower-case letters"):
            register_estimator(Estimator(name, half))


def test_a_plugin_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError), registering("broken"):
        register_estimator(Estimator("quarter", half))
        raise RuntimeError
    assert "quarter" not in ESTIMATORS


def test_the_schema_lists_all_names(plugin: Estimator) -> None:
    schema = SubsetConfig.model_json_schema()["properties"]["estimator"]
    assert schema["enum"] == ["auto", *ESTIMATORS] and "half" in schema["enum"]
