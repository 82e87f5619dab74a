"""MAP-Elites: the grid, which candidate takes a cell, and a problem with a known answer."""

import numpy as np
import pytest
from pydantic import ValidationError

from evomerge.strategies import CmaMeConfig, CycleqdConfig
from evomerge.strategies.base import Evaluated
from evomerge.strategies.m2n2 import M2n2Config
from evomerge.strategies.map_elites import MapElitesConfig
from evomerge.testing.planted import reals
from experiments.digits_niches.raw import RawWeights
from fitness.results import INFEASIBLE, Evaluation


def scored(fitness, **tasks):
    items = [f"{task}/test/{index}" for task, scores in tasks.items() for index in range(len(scores))]
    scores = np.array([score for task in tasks.values() for score in task], dtype=np.float32)
    return Evaluation("ok", (fitness,), (0.0,), tuple(items), scores)


def tell(strategy, *evaluations):
    for evaluation in evaluations:
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, evaluation)])


@pytest.fixture
def strategy():
    return MapElitesConfig(cells=4, warm_up=0).build(RawWeights(3), 0)


def test_a_cell_per_task_score(strategy):
    tell(strategy, scored(0.1, a=[0, 0], b=[1, 0]), scored(0.2, a=[1, 1, 1, 0], b=[0]))
    assert list(strategy.grid.cells) == [(0, 2), (3, 0)]


def test_the_ends_of_an_axis_belong_to_its_last_cells(strategy):
    tell(strategy, scored(0.1, a=[1.0], b=[1.5]), scored(0.1, a=[-2.0], b=[0.0]))
    assert list(strategy.grid.cells) == [(3, 3), (0, 0)]


def test_the_axes_have_a_range_of_their_own():
    strategy = MapElitesConfig(cells=4, warm_up=0, low=-10.0, high=-2.0).build(RawWeights(3), 0)
    tell(strategy, scored(0.1, a=[-10.0], b=[-6.0]), scored(0.1, a=[-2.1], b=[-8.1]))
    assert list(strategy.grid.cells) == [(0, 2), (3, 0)]


def test_tasks_share_an_axis_by_their_means():
    config = MapElitesConfig(cells=4, warm_up=0, axes=(("a", "b"), ("c",)))
    strategy = config.build(RawWeights(3), 0)
    tell(strategy, scored(0.1, a=[1, 1, 1, 1], b=[0], c=[1]))
    assert list(strategy.grid.cells) == [(2, 3)]


def test_an_axis_of_an_unknown_task_is_an_error():
    strategy = MapElitesConfig(warm_up=0, axes=(("a",), ("z",))).build(RawWeights(3), 0)
    with pytest.raises(ValueError, match=r"strategy\.axes: no items of z; name tasks among a, b"):
        tell(strategy, scored(0.1, a=[1], b=[0]))


def test_only_the_better_one_takes_a_cell(strategy):
    for fitness, expected in ((0.5, 0.5), (0.4, 0.5), (0.5, 0.5), (0.7, 0.7)):
        tell(strategy, scored(fitness, a=[1, 0], b=[0]))
        assert strategy.grid.fitness == [expected]
    tell(strategy, scored(0.1, a=[0], b=[0]))
    assert strategy.grid.fitness == [0.7, 0.1]
    assert np.array_equal(strategy.recommend(), strategy.grid.genotypes[0])


def test_parents_are_drawn_by_quality_and_none_that_misses_a_floor(strategy):
    space = RawWeights(2, founders=[np.array([1.0, 0.0])])
    strategy = MapElitesConfig(cells=4, warm_up=0, crossover=0.0).build(space, 0)
    tell(strategy, *(scored(f, a=[c], b=[0]) for f, c in ((INFEASIBLE - 0.1, 0.1), (0.3, 0.4), (0.1, 0.6))))
    strategy.grid.genotypes = [np.full(2, float(index)) for index in range(3)]
    first = [int(candidate.genotype[0]) for candidate in strategy.ask(2000)]
    assert np.allclose(np.bincount(first, minlength=3) / 2000, [0.0, 0.75, 0.25], atol=0.04)


def test_failures_take_no_cell(strategy):
    tell(strategy, Evaluation.failed("injected"), scored(float("nan"), a=[1], b=[1]))
    assert strategy.grid.cells == {} and strategy.recommend() is None


def test_scored_as_a_whole_there_is_one_axis(strategy):
    tell(strategy, Evaluation("ok", (0.6,), (0.0,)))
    assert list(strategy.grid.cells) == [(2,)]


BUDGET = 1500


def planted(genotype):
    """Two tasks of six genes each, which must be above 0.8: one half of the experts' genes answers each."""
    right = (genotype > 0.8).astype(np.float32)
    return scored(float(right.mean()), a=right[:6], b=right[6:])


@pytest.mark.parametrize("seed", range(4))
def test_planted_it_joins_two_experts(seed):
    first = np.repeat([1.0, 0.0], 6)
    space = RawWeights(12, founders=[first, 1.0 - first], mutation=0.03)
    strategy = MapElitesConfig(mutation=1.0, warm_up=0).build(space, seed)
    for _ in range(BUDGET):
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, planted(candidate.genotype))])
    assert planted(strategy.recommend()).fitness == 1.0
    assert len(strategy.grid.cells) > 10


@pytest.mark.parametrize("bad", [{"mutation": 2}, {"grid": 3}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        MapElitesConfig(**bad)


@pytest.mark.parametrize("config", [MapElitesConfig, CmaMeConfig, CycleqdConfig])
def test_all_grids_refuse_the_same_cells_and_axes(config):
    bad = {
        "low 1.0 is not below high 1.0; write low < high": {"low": 1.0},
        "greater than or equal to 2": {"cells": 1},
        "an axis has no task": {"axes": [["a"], []]},
    }
    for message, settings in bad.items():
        with pytest.raises(ValidationError, match=message):
            config(**settings)
    with pytest.raises(ValueError, match=f"{config().kind} compares .* one axis; name two tasks or more"):
        config().check_tasks(["a"])
    with pytest.raises(ValueError, match=r"strategy\.axes: c is not in fitness.tasks; name tasks among a, b"):
        config(axes=(("a",), ("c",))).check_tasks(["a", "b"])


def test_warm_up_auto():
    assert MapElitesConfig().resolved(reals(9), noise=0.0, evaluations=1000).warm_up == 10
    with pytest.raises(ValueError, match=r"call config\.resolved"):
        MapElitesConfig().build(RawWeights(3), 0)


@pytest.mark.parametrize(
    "config", [MapElitesConfig(warm_up=0, mutation=1.0), M2n2Config(archive=4, warm_up=0, mutation=1.0)]
)
def test_the_best_member_is_asked_again_and_a_lucky_score_does_not_stay(config):
    strategy = config.build(reals(2), 0)
    best = None
    for number in range(30):
        (candidate,) = strategy.ask(1)
        if candidate.kind == "again":
            np.testing.assert_array_equal(candidate.genotype, best)
            break
        value = 0.9 if number == 3 else 0.3
        best = candidate.genotype.copy() if number == 3 else best
        strategy.tell([Evaluated(candidate.id, answers(value, number))])
    assert candidate.kind == "again" and candidate.id % 10 == 9
    strategy.tell([Evaluated(candidate.id, answers(0.1, 99))])
    assert not np.array_equal(strategy.recommend(), best)


def answers(value, first):
    """Two tasks with this mean score, on items of their own."""
    items = tuple(f"{task}/test/{index}" for task in "ab" for index in range(first, first + 4))
    return Evaluation("ok", (value,), (0.1,), items, np.full(8, value, np.float32))
