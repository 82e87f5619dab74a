from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fitness.estimation import ESTIMATORS, EstimatorInputs, subset
from fitness.estimation.irt import fit_2pl, fit_mirt, sigmoid
from fitness.estimation.irt_predictions import likeliest_ability, validation_error
from fitness.results import Estimate


def estimated(name: str, scores: ArrayLike, positions: ArrayLike, inputs: EstimatorInputs) -> Estimate:
    return ESTIMATORS[name].estimate(scores, positions, inputs)


ITEMS = 80


def knowledge(seed: int = 0, parents: int = 2, models: int = 60) -> tuple[EstimatorInputs, np.ndarray]:
    """Return what is known of simulated models that follow the 2PL model, and a candidate's true answers."""
    rng = np.random.default_rng(seed)
    a, b = rng.lognormal(0.2, 0.3, ITEMS), rng.normal(0, 1.2, ITEMS)

    def answers(theta: np.ndarray) -> np.ndarray:
        return (rng.random((len(theta), ITEMS)) < sigmoid(theta[:, None] * a - b)).astype(float)

    others, abilities = answers(rng.normal(size=models)), rng.normal(0.3, 0.3, parents)
    banks = (fit_2pl(others), fit_mirt(others, 2))
    known = EstimatorInputs(ITEMS, answers(abilities), banks, others, p_irt_error=0.03)
    return known, answers(np.array([abilities.mean()]))[0]


@pytest.fixture(scope="module")
def known_and_truth() -> tuple[EstimatorInputs, np.ndarray]:
    return knowledge()


def test_a_stratum_that_a_candidate_knows_better_than_its_parents_is_raised_by_as_much() -> None:
    """Right on half of what no parent knows, and on all else."""
    known, _ = knowledge()
    unknown = np.flatnonzero(known.parent_scores.max(0) == 0)
    truth = np.ones(ITEMS)
    truth[unknown[::2]] = 0.0
    chosen = np.concatenate((unknown[: len(unknown) // 2], np.setdiff1d(np.arange(ITEMS), unknown)[::2]))
    found = estimated("stratified_difference", truth[chosen], chosen, known)
    assert found.value == pytest.approx(truth.mean(), abs=0.05)


@pytest.mark.parametrize("place", [-1, ITEMS])
def test_positions_beyond_the_items_are_refused_with_those_that_may_be_given(place: int) -> None:
    with pytest.raises(ValueError, match=rf"asked items are outside 0 to {ITEMS - 1}: give positions within"):
        estimated("mean", [1.0], [place], EstimatorInputs(ITEMS))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("answer", ["right", "wrong", "one", "parent", "fractions", "everything"])
def test_estimates_are_finite(name: str, answer: str, known_and_truth: tuple[EstimatorInputs, np.ndarray]) -> None:
    known, truth = known_and_truth
    chosen = np.arange(ITEMS) if answer == "everything" else np.arange(3, 4 if answer == "one" else ITEMS, 7)
    scores = {
        "right": np.ones(len(chosen)),
        "wrong": np.zeros(len(chosen)),
        "parent": known.parent_scores[0, chosen],
        "fractions": np.linspace(0, 1, len(chosen)),
    }.get(answer, truth[chosen])
    estimate = estimated(name, scores, chosen, known)
    assert math.isfinite(estimate.value) and -1e-9 <= estimate.value <= 1 + 1e-9
    assert math.isfinite(estimate.standard_error) and estimate.standard_error >= 0
    if answer == "everything" and name != "ridge":
        assert estimate.value == pytest.approx(truth.mean(), abs=0.02)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_parent_and_items_that_every_model_answers_right(name: str) -> None:
    known, truth = knowledge(seed=1, parents=1)
    sure = slice(0, 20)
    others, parents = known.other_models_scores.copy(), known.parent_scores.copy()
    others[:, sure] = parents[:, sure] = truth[sure] = 1
    known = EstimatorInputs(ITEMS, parents, (fit_2pl(others),), others, p_irt_error=0.03)
    chosen = np.arange(0, ITEMS, 5)
    estimate = estimated(name, truth[chosen], chosen, known)
    assert math.isfinite(estimate.value) and math.isfinite(estimate.standard_error)
    assert estimate.value == pytest.approx(truth.mean(), abs=0.3)


@pytest.mark.parametrize("name", ["mean", "stratified_mean"])
def test_sampling_estimators_are_unbiased(name: str, known_and_truth: tuple[EstimatorInputs, np.ndarray]) -> None:
    known, truth = known_and_truth
    values = []
    for seed in range(400):
        rng = subset.generator(seed)
        strata = subset.parent_strata(known.parent_scores)
        chosen = subset.random(ITEMS, 16, rng) if name == "mean" else subset.neyman(strata, 16, rng, (0.5, 0.5, 0.5))
        values.append(estimated(name, truth[chosen], chosen, known).value)
    assert abs(np.mean(values) - truth.mean()) < 3 * np.std(values) / 20


@pytest.mark.parametrize("name", ["parent_post_stratification", "inherited", "mp_irt_map"])
def test_shrinking_estimators_lie_between_the_answers_and_what_parents_say(
    name: str, known_and_truth: tuple[EstimatorInputs, np.ndarray]
) -> None:
    known, _ = known_and_truth
    chosen = np.arange(0, ITEMS, 8)
    low, high = (estimated(name, np.full(10, answer), chosen, known).value for answer in (0.0, 1.0))
    assert 0 < low < known.parent_scores.mean() < high < 1


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("inherited", 0.055),
        ("parent_post_stratification", 0.075),
        ("mp_irt_map", 0.055),
        ("blup", 0.08),
        ("ridge", 0.08),
    ],
)
def test_errors_and_intervals_on_simulated_models(name: str, bound: float) -> None:
    errors, inside = [], []
    for seed in range(25):
        known, truth = knowledge(seed + 10)
        chosen = subset.random(ITEMS, 20, subset.generator(seed))
        estimate = estimated(name, truth[chosen], chosen, known)
        errors.append(abs(estimate.value - truth.mean()))
        inside.append(errors[-1] <= 1.96 * estimate.standard_error)
    assert np.mean(errors) < bound
    assert np.mean(inside) >= 0.8


def test_p_irt_is_answers_plus_predictions(known_and_truth: tuple[EstimatorInputs, np.ndarray]) -> None:
    known, truth = known_and_truth
    chosen = np.arange(0, ITEMS, 4)
    ability = likeliest_ability(known.bank, truth[chosen], chosen)
    a, b = known.bank.discrimination[chosen], known.bank.difficulty[chosen]
    assert a.T @ (truth[chosen] - sigmoid(a @ ability - b)) == pytest.approx([0, 0], abs=1e-3)
    rest = np.setdiff1d(np.arange(ITEMS), chosen)
    expected = (truth[chosen].sum() + known.bank.probability(ability)[rest].sum()) / ITEMS
    assert estimated("p_irt", truth[chosen], chosen, known).value == pytest.approx(expected)


def test_gmp_irt_is_half_the_anchor_mean_and_half_mp_irt(known_and_truth: tuple[EstimatorInputs, np.ndarray]) -> None:
    known, truth = known_and_truth
    found = subset.anchors(known.other_models_scores.T, 12, subset.generator(0))
    anchored = dataclasses.replace(known, weights=dict(zip(found.positions.tolist(), found.weights, strict=True)))
    values = [
        estimated(name, truth[found.positions], found.positions, anchored).value
        for name in ("anchor_mean", "mp_irt", "gmp_irt")
    ]
    assert values[0] == pytest.approx(found.weights @ truth[found.positions])
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)


def test_the_anchors_mean_has_the_error_of_their_effective_number() -> None:
    """One heavy anchor and four light ones: 1 / (0.5^2 + 4 * 0.125^2) = 3.2 items."""
    anchors = EstimatorInputs(9, weights={0: 0.5, 2: 0.125, 4: 0.125, 6: 0.125, 8: 0.125})
    found = estimated("anchor_mean", [1, 1, 0, 0, 0], [0, 2, 4, 6, 8], anchors)
    assert found.value == pytest.approx(0.625)
    centre = (0.625 * 3.2 + 0.5) / 4.2
    assert found.standard_error == pytest.approx((centre * (1 - centre) / 5.2) ** 0.5)


def test_gp_irt_measures_its_weight_on_the_others_models(known_and_truth: tuple[EstimatorInputs, np.ndarray]) -> None:
    known, truth = known_and_truth
    chosen = np.arange(0, ITEMS, 4)
    bias, variance = (
        validation_error(known.bank, known.other_models_scores, models=5),
        known.other_models_scores.var(1).mean(),
    )
    assert 0 < bias < 0.1
    share = bias**2 / (bias**2 + variance / (4 * 20))
    parts = [estimated(name, truth[chosen], chosen, known).value for name in ("anchor_mean", "p_irt")]
    measured = dataclasses.replace(known, p_irt_error=bias)
    expected = share * parts[0] + (1 - share) * parts[1]
    assert estimated("gp_irt", truth[chosen], chosen, measured).value == pytest.approx(expected)


def test_post_stratification_equals_its_formula() -> None:
    known = EstimatorInputs(6, np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1.0]]))
    # none: 1 of 2 asked, right; some: 1 of 2, wrong; all: 0 of 2
    expected = (1 + (1 + 3 * 0.22) / 4 + 0 + (0 + 3 * 0.55) / 4 + 2 * 0.92) / 6
    assert estimated("parent_post_stratification", [1, 0], [0, 2], known).value == pytest.approx(expected)


def test_default_learns_from_the_candidates_evaluated() -> None:
    known, _ = knowledge()
    good = [(np.ones(20), subset.random(ITEMS, 20, subset.generator(0, g))) for g in range(10)]
    chosen = np.arange(0, ITEMS, 16)
    informed = dataclasses.replace(known, evaluated=good)
    scores = known.parent_scores[0, chosen]
    assert estimated("inherited", scores, chosen, informed).value > estimated("inherited", scores, chosen, known).value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimated("p_irt", [1], [0], EstimatorInputs(3)), "run `evomerge fit-items`"),
        (
            lambda: estimated("gmp_irt", [1], [0], EstimatorInputs(3)),
            "needs the parents' scores|needs item parameters",
        ),
        (
            lambda: estimated("parent_post_stratification", [1], [0], EstimatorInputs(3)),
            "evaluate the sources first",
        ),
        (lambda: estimated("blup", [1], [0], EstimatorInputs(3)), "give a responses matrix"),
        (
            lambda: estimated("anchor_mean", [1], [0], EstimatorInputs(3, weights={1: 1.0})),
            "ask the anchors' positions",
        ),
        (lambda: estimated("mean", [], [], EstimatorInputs(3)), "at least one"),
        (lambda: estimated("mean", [1, 0], [1, 1], EstimatorInputs(3)), "asked twice"),
        (lambda: estimated("mean", [1], [3], EstimatorInputs(3)), "positions within the task's items"),
        (lambda: EstimatorInputs(3, parents=np.ones((2, 4))), r"give \[models, 3\]"),
    ],
)
def test_bad_input_to_estimators_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["mean", "stratified_mean"])
def test_a_mean_is_surer_the_larger_its_share_of_all_items(name: str) -> None:
    """An item that was asked adds nothing to the error of a mean over a finite number of items: a factor √(1 − S/I)."""
    answers = np.tile([1.0, 0.0], 10)

    def error(items: int) -> float:
        known = EstimatorInputs(items, np.zeros((1, items)))
        return estimated(name, answers, np.arange(20), known).standard_error

    assert error(20) == 0
    assert error(40) / error(80) == pytest.approx(math.sqrt(0.5 / 0.75))
