"""NSGA-III: reference points, what is measured against them, and who survives."""

import numpy as np
import pytest

from evomerge.strategies import Evaluated, Nsga2Config, Nsga3Config
from evomerge.strategies.nsga3 import ByReferencePoints, das_dennis, drawn_by_niche, intercepts, spread_points
from evomerge.testing.planted import reals
from fitness.pareto import front, ranks
from fitness.results import Evaluation


@pytest.mark.parametrize(("objectives", "divisions"), [(2, 5), (3, 4), (5, 2), (8, 1)])
def test_reference_points_are_pymoos(objectives, divisions):
    from pymoo.util.ref_dirs import get_reference_directions

    ours = das_dennis(objectives, divisions)
    theirs = get_reference_directions("das-dennis", objectives, n_partitions=divisions)
    assert np.allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


@pytest.mark.parametrize("objectives", range(2, 10))
def test_there_are_as_many_as_fit(objectives):
    for most in (1, 4, 12, 20, 100):
        points = spread_points(objectives, most)
        assert objectives <= len(points) <= max(objectives, most)
        assert np.allclose(points.sum(axis=1), 1.0) and points.min() >= 0
        assert len(np.unique(points.round(9), axis=0)) == len(points)
    assert (spread_points(objectives, 100) > 0).all(axis=1).any()  # not only on the border


@pytest.mark.parametrize("seed", range(12))
def test_lines_and_distances_are_pymoos(seed):
    """Of a front with ranges of 1 in a first generation; later, pymoo remembers the worst point, too."""
    from pymoo.algorithms.moo.nsga3 import HyperplaneNormalization, associate_to_niches

    rng = np.random.default_rng(seed)
    objectives = 2 + seed % 3
    points, lines = rng.dirichlet(np.ones(objectives), 30), spread_points(objectives, 20)
    points -= 0.3 * rng.random(points.shape)
    points /= np.ptp(points[ranks(points) == 0], axis=0)
    theirs, ours = HyperplaneNormalization(objectives), ByReferencePoints()
    theirs.update(-points, nds=np.flatnonzero(ranks(points) == 0))
    ours(points, np.zeros(30), 20, rng)
    assert np.allclose(ours.ideal, -theirs.ideal_point)
    assert np.allclose(ours.extremes, -theirs.extreme_points)
    found = ByReferencePoints()
    found._begin(objectives, 20)
    niche, distance = found._niches(points, ranks(points), True)
    expected = associate_to_niches(-points, lines, theirs.ideal_point, theirs.nadir_point)
    assert np.array_equal(niche, expected[0]) and np.allclose(distance, expected[1])


def test_units_do_not_matter():
    rng = np.random.default_rng(0)
    points = rng.random((40, 3))
    kept = [
        ByReferencePoints()(points * unit, np.zeros(40), 12, np.random.default_rng(1))[0].tolist()
        for unit in (np.ones(3), np.array([1e-6, 1.0, 1e9]))
    ]
    assert kept[0] == kept[1]


def test_the_ideal_and_the_extremes_stay():
    survive, rng = ByReferencePoints(), np.random.default_rng(0)
    survive(np.array([[2.0, 0.0], [0.0, 2.0], [0.9, 0.9]]), np.zeros(3), 3, rng)
    survive(np.array([[0.9, 0.9], [1.0, 0.8]]), np.zeros(2), 2, rng)
    assert survive.ideal.tolist() == [2.0, 2.0]
    assert sorted(survive.extremes.tolist()) == [[0.0, 2.0], [2.0, 0.0]]
    survive(np.array([[9.0, 9.0], [1.0, 9.0]]), np.full(2, 0.1), 2, rng)  # they violate a constraint
    assert survive.ideal.tolist() == [2.0, 2.0]


def test_each_reference_point_keeps_one():
    """Of a crowd around one line and a single point on each other line, all the single ones survive."""
    lines = das_dennis(3, 4)
    crowd = lines[7] + np.random.default_rng(0).normal(0, 1e-3, (40, 3))
    crowd -= crowd.mean(axis=1, keepdims=True) - 1 / 3  # on the plane, so that no point dominates another
    points = -np.vstack((crowd, lines))
    kept, merits = ByReferencePoints()(points, np.zeros(len(points)), len(lines), np.random.default_rng(3))
    assert set(range(40, 55)) - {47} <= set(kept.tolist()) and len(kept) == len(lines)
    assert not merits.any()


def test_the_fewest_members_first():
    niche, distance = np.array([0, 0, 0, 1, 2]), np.array([0.3, 0.1, 0.2, 0.5, 0.4])
    drawn = drawn_by_niche(niche, distance, np.array([0, 2, 1]), 3, np.random.default_rng(0))
    assert drawn[0] == 1  # the nearest, of the only empty niche
    assert set(drawn[1:]) in ({4, 0}, {4, 2}, {0, 2})
    assert sorted(drawn_by_niche(niche, distance, np.zeros(3, np.int64), 5, np.random.default_rng(0))) == [*range(5)]


@pytest.mark.parametrize("points", [np.zeros((8, 3)), np.tile([1.0, 2.0, 3.0], (8, 1)), np.eye(3)[[0, 1, 2, 0, 1, 2]]])
def test_fronts_without_an_extent(points):
    with np.errstate(all="raise"):
        kept, _ = ByReferencePoints()(points, np.zeros(len(points)), 4, np.random.default_rng(0))
    assert len(set(kept.tolist())) == 4
    assert intercepts(np.ones((3, 3))).tolist() == [1, 1, 1]


def test_smaller_violations_survive():
    points, violation = np.random.default_rng(0).random((12, 3)), np.arange(12) % 4 / 10
    kept, merits = ByReferencePoints()(points, violation, 6, np.random.default_rng(0))
    assert sorted(violation[kept]) == [0, 0, 0, 0.1, 0.1, 0.1]
    assert np.array_equal(merits[:, 0], -violation[kept])


def test_five_objectives_are_covered_better_than_by_crowding():
    """DTLZ2 with seven genes (Deb et al. 2002), 1,500 evaluations: the front is a part of the unit sphere."""

    def volume(config, seed):
        space = reals(7)
        strategy = config.build(space, seed)
        for _ in range(1500):
            (candidate,) = strategy.ask(1)
            x = (candidate.genotype - space.low) / (space.high - space.low)
            angles = x[:4] * np.pi / 2
            sphere = np.append(1.0, np.cumprod(np.cos(angles))) * np.append(np.sin(angles), 1.0)
            objectives = tuple((-(1 + ((x[4:] - 0.5) ** 2).sum()) * sphere).tolist())
            strategy.tell([Evaluated(candidate.id, Evaluation("ok", objectives, (0.0,) * 5))])
        found = np.array([result.objectives for result in strategy._results])
        samples = -np.random.default_rng(0).random((4000, 5)) * 1.2
        return float((found[front(found)][:, None] >= samples).all(axis=2).any(axis=0).mean())

    assert volume(Nsga3Config(population=60), 0) > 1.1 * volume(Nsga2Config(population=60), 0)
