from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.estimation import subset
from fitness.estimation.irt import ItemBank
from fitness.estimation.parent_prior import prior
from fitness.estimation.posterior import posterior


def rng() -> np.random.Generator:
    return subset.generator(0)


def parents(items: int = 60) -> np.ndarray:
    return (np.random.default_rng(3).random((2, items)) < 0.6).astype(float)


def bank(items: int = 60) -> ItemBank:
    draw = np.random.default_rng(4)
    return ItemBank(
        tuple(map(str, range(items))), draw.lognormal(0, 0.3, (items, 1)), draw.normal(size=items), np.zeros((1, 1))
    )


KINDS = {
    "random": lambda n, r: subset.random(60, n, r),
    "difficulty": lambda n, r: subset.by_difficulty(np.arange(60) // 7, n, r),
    "neyman": lambda n, r: subset.neyman(subset.parent_strata(parents()), n, r),
    "greedy": lambda n, r: subset.greedy(prior(60, parents(), [bank()]), n, r),
    "greedy without bank": lambda n, r: subset.greedy(prior(60, parents()), n, r),
    "greedy without anything": lambda n, r: subset.greedy(prior(60), n, r),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 59, 60])
def test_a_subset_has_the_asked_number_of_distinct_sorted_items(kind: str, count: int) -> None:
    chosen = KINDS[kind](count, rng())
    assert len(chosen) == count == len(set(chosen.tolist()))
    assert (np.sort(chosen) == chosen).all() and chosen[0] >= 0 and chosen[-1] < 60
    assert (chosen == KINDS[kind](count, rng())).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 61])
def test_impossible_sizes_are_refused(kind: str, count: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 60"):
        KINDS[kind](count, rng())


def test_generations_differ_and_repeat() -> None:
    given_prior = prior(60, parents(), [bank()])
    found = [subset.default_subset(given_prior, 20, seed=5, generation=g) for g in range(4)]
    assert len({tuple(chosen.tolist()) for chosen in found}) == 4
    assert (found[2] == subset.default_subset(given_prior, 20, 5, 2)).all()
    assert (subset.default_subset(given_prior, None, 5) == np.arange(60)).all()
    assert (subset.default_subset(given_prior, 90, 5) == np.arange(60)).all()


def test_difficulty_classes_are_all_represented() -> None:
    difficulty = np.random.default_rng(0).normal(size=103)
    rank = np.argsort(np.argsort(difficulty))
    for count in (1, 10, 50, 103):
        chosen = np.sort(rank[subset.by_difficulty(difficulty, count, rng())])
        edges = np.arange(count + 1) * 103 // count
        assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()


def test_parent_strata() -> None:
    binary = np.array([[0, 1, 0, 1], [0, 0, 1, 1.0]])
    assert subset.parent_strata(binary).tolist() == [0, 1, 1, 2]
    assert subset.parent_strata(np.array([[0.1, 0.5, 0.9]])).tolist() == [0, 1, 2]
    assert subset.parent_strata(np.array([[0.0, 1.0]])).tolist() == [0, 2]


def test_neyman_asks_in_proportion_to_size_and_spread() -> None:
    strata = np.repeat([0, 1, 2], [100, 100, 200])
    chosen = subset.neyman(strata, 40, rng(), probability=(0.1, 0.5, 0.1))
    # sizes times spread: 100·.3, 100·.5, 200·.3
    assert np.bincount(strata[chosen]).tolist() == [9, 14, 17]


def test_neyman_never_asks_more_than_a_stratum_has() -> None:
    strata = np.repeat([0, 1, 2], [50, 2, 8])
    taken = np.bincount(strata[subset.neyman(strata, 55, rng())])
    assert taken[1] == 2 and taken.sum() == 55 and (taken <= [50, 2, 8]).all()


def test_the_default_leaves_less_variance_than_random() -> None:
    given_prior = prior(60, parents(), [bank()])
    answers = parents()[0]

    def error(chosen: np.ndarray) -> float:
        return posterior(given_prior, answers[chosen], chosen).standard_error

    chosen = [error(subset.default_subset(given_prior, 12, seed)) for seed in range(20)]
    others = [error(subset.random(60, 12, subset.generator(seed))) for seed in range(20)]
    assert np.mean(chosen) < np.mean(others)


def test_greedy_without_a_bank_prefers_the_items_on_which_parents_disagree() -> None:
    scores = np.array([[1.0] * 40 + [1.0] * 20, [1.0] * 40 + [0.0] * 20])
    chosen = subset.greedy(prior(60, scores), 15, rng())
    assert (chosen >= 40).mean() > 20 / 60


def test_greedy_keeps_the_items_that_are_chosen_already() -> None:
    first = np.arange(0, 60, 7)
    assert set(first) < set(subset.greedy(prior(60, parents()), 20, rng(), first))


@given(seed=st.integers(0, 1000))
def test_gains_are_what_asking_takes_from_the_variance_of_the_sum(seed: int) -> None:
    draw = np.random.default_rng(seed)
    given_prior = prior(30, (draw.random((2, 30)) < 0.6).astype(float))
    plan = subset._VariancePlan(given_prior)
    covariance = plan.shift_IF @ (subset.CHOICE_SCALE * given_prior.covariance) @ plan.shift_IF.T
    covariance += np.diag(plan.noise_I)
    for item in draw.choice(30, 6, replace=False).tolist():
        # of the normal distribution with this covariance, by conditioning on the answer
        after = covariance - np.outer(covariance[:, item], covariance[item]) / covariance[item, item]
        assert plan.gain()[item] == pytest.approx(covariance.sum() - after.sum())
        plan.ask(item)
        assert plan.gain()[item] == -np.inf
        covariance = after


@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_anchor_weights_are_the_clusters_shares(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).normal(size=(30, 3))
    found = subset.anchors(points, count, rng())
    assert found.weights.sum() == pytest.approx(1) and (found.weights > 0).all()
    assert len(found.positions) == count and (np.diff(found.positions) > 0).all()


def test_anchors_find_separate_clusters() -> None:
    points = np.concatenate([np.full((10, 2), 0.0), np.full((30, 2), 100.0)]) + np.random.default_rng(0).normal(
        size=(40, 2)
    )
    found = subset.anchors(points, 2, rng())
    assert found.weights.tolist() == [0.25, 0.75]
    centre = points[10:].mean(0)
    assert found.positions[1] == 10 + ((points[10:] - centre) ** 2).sum(1).argmin()


def test_anchors_of_equal_items_collapse() -> None:
    assert subset.anchors(np.ones((8, 2)), 3, rng()).weights.tolist() == [1.0]


def test_the_elite_is_asked_fresh_items_first() -> None:
    order = subset.fresh_first(40, range(0, 40, 2), rng())
    assert sorted(order[:20]) == list(range(1, 40, 2)) and sorted(order[20:]) == list(range(0, 40, 2))
    assert (order != np.sort(order)).any() and (order == subset.fresh_first(40, range(0, 40, 2), rng())).all()
    assert sorted(subset.fresh_first(5, [], rng())) == list(range(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: subset.generator(-1), "numbers >= 0"),
        (lambda: subset.parent_strata(np.zeros((0, 4))), "at least one parent"),
        (lambda: subset.neyman([0, 1, 2], 2, rng(), (0.5, 0.5)), "one for each stratum"),
        (lambda: subset.anchors(np.ones(4), 2, rng()), r"give \[items, coordinates\]"),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_fresh_items_come_once_before_any_comes_again() -> None:
    items = [f"a/validation/{n}" for n in range(10)] + [f"b/validation/{n}" for n in range(4)]
    fresh = subset.FreshItems(items, 3)
    asked = [item for step in range(3) for item in fresh(3, step)]
    of_a = [item for item in asked if item.startswith("a/")]
    assert len(of_a) == len(set(of_a)) == 9
    assert all(len([item for item in fresh(3, step) if item.startswith("b/")]) == 3 for step in range(4))
    assert fresh(3, 1) == subset.FreshItems(items, 3)(3, 1) != subset.FreshItems(items, 4)(3, 1)
    assert set(fresh(100, 5)) == set(items)
