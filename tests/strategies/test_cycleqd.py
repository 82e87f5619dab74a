"""CycleQD: an archive per task over the scores on the others, turns, parents by quality and place."""

import math

import numpy as np
import pytest

from evomerge.strategies import CycleqdConfig, Evaluated
from evomerge.testing.planted import reals
from experiments.digits_niches.raw import RawWeights
from fitness.results import INFEASIBLE, Evaluation
from tests.strategies.test_map_elites import scored, tell


@pytest.fixture
def strategy():
    return CycleqdConfig(cells=4, warm_up=0, mutation=0.0, population=2).build(RawWeights(3), 0)


def test_every_child_is_offered_to_all_archives(strategy):
    """The cell follows from the other task's score, the quality is the own one."""
    tell(strategy, scored(0.5, a=[0.3], b=[0.6]))
    assert [list(archive) for archive in strategy.archives] == [[(2,)], [(1,)]]
    tell(strategy, scored(0.4, a=[0.2], b=[0.7]))  # better at b only: of the same cells
    assert [archive[cell].scores.tolist() for archive, cell in zip(strategy.archives, [(2,), (0,)], strict=True)] == [
        pytest.approx([0.3, 0.6]),
        pytest.approx([0.2, 0.7]),
    ]
    tell(strategy, scored(0.4, a=[0.29], b=[0.61]))
    assert strategy.archives[1][1,].scores.tolist() == pytest.approx([0.29, 0.61])
    assert strategy.archives[0][2,].scores.tolist() == pytest.approx([0.3, 0.6])
    assert strategy.keeps(scored(0.1, a=[0.31], b=[0.6])) and not strategy.keeps(scored(0.9, a=[0.29], b=[0.6]))


def test_who_violates_a_constraint_is_worse(strategy):
    violates = Evaluation("ok", (0.9,), (0.0,), *_of(scored(0.9, a=[0.4], b=[0.4])), violation=0.1)
    tell(strategy, violates)
    assert violates.fitness < INFEASIBLE
    tell(strategy, scored(0.3, a=[0.3], b=[0.3]))
    assert strategy.archives[0][1,].fitness == 0.3
    assert not strategy.keeps(violates)


def _of(evaluation):
    return evaluation.items, evaluation.scores


def test_parents_by_quality_and_place(strategy):
    """Two elites at the ends of both values, with 0.5² against 1.3²; a third is between them."""
    tell(strategy, scored(0.1, a=[0.1], b=[0.1]), scored(0.9, a=[0.9], b=[0.9]), scored(0.5, a=[0.5], b=[0.6]))
    cells, elites = zip(*strategy.archives[0].items(), strict=True)
    assert cells == ((0,), (3,), (2,))
    weights = np.array([0.5 * 0.5, 1.3 * 1.3, (0.5 + 0.8 / 2) * (0.5 + 0.8 * 2 / 3)])
    first = [
        [elite.genotype.tobytes() for elite in elites].index(strategy._parents(0)[0].tobytes()) for _ in range(4000)
    ]
    assert np.allclose(np.bincount(first, minlength=3) / 4000, weights / weights.sum(), atol=0.03)


def test_a_child_is_the_parents_mean_with_weights_near_one(strategy):
    a, b = np.array([1.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0])
    children = np.array([strategy._crossed(a, b) for _ in range(400)])
    assert np.allclose(children.sum(axis=1), 3.0) and np.allclose(children.mean(axis=0), [0.5, 0.5, 2.0], atol=0.002)
    assert children[:, 0].std() == pytest.approx(0.01 / math.sqrt(8), rel=0.15)


def test_the_tasks_take_turns(strategy, monkeypatch):
    tell(strategy, *[scored(0.1, a=[at / 10], b=[1 - at / 10]) for at in range(4)])
    active = []
    drawn = strategy._parents
    monkeypatch.setattr(strategy, "_parents", lambda task: active.append(task) or drawn(task))
    tell(strategy, *[scored(0.1, a=[0.5], b=[0.5]) for _ in range(6)])
    assert active == [0, 0, 1, 1, 0, 0]


def test_it_improves_both_tasks():
    """Two tasks with different best points: the archives come to hold points that are good at either, and at both."""
    best = {"a": np.array([0.8, 0.2, 0.5]), "b": np.array([0.2, 0.8, 0.5])}
    strategy = CycleqdConfig(low=-1.0, high=0.0).build(reals(3), 0)
    for _ in range(400):
        (candidate,) = strategy.ask(1)
        loss = {task: [-float(np.square(candidate.genotype - point).sum())] for task, point in best.items()}
        strategy.tell([Evaluated(candidate.id, scored(sum(map(sum, loss.values())), **loss))])
    for task, archive in enumerate(strategy.archives):
        assert max(elite.scores[task] for elite in archive.values()) > -0.02
    assert np.square(strategy.recommend() - 0.5).sum() < 0.03


def test_groups_of_tasks_take_turns():
    strategy = CycleqdConfig(cells=4, warm_up=0, axes=(("a", "b"), ("c",))).build(RawWeights(3), 0)
    tell(strategy, scored(0.5, a=[0.2], b=[0.4], c=[0.8]))
    assert [list(archive) for archive in strategy.archives] == [[(3,)], [(1,)]]
