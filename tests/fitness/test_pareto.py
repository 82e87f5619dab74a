"""Fronts and crowding distances: against pymoo, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fitness.pareto import crowding, front, ranks, reference_point

points = st.integers(1, 25).flatmap(
    lambda count: st.integers(2, 3).flatmap(
        lambda objectives: arrays(np.float64, (count, objectives), elements=st.integers(0, 6).map(float))
    )
)


@given(points)
def test_ranks_are_pymoos(point_NM):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, expected = NonDominatedSorting().do(-point_NM, return_rank=True)
    assert np.array_equal(ranks(point_NM), expected)


@pytest.mark.parametrize("seed", range(5))
def test_crowding_distances_are_pymoos(seed):
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    front = np.random.default_rng(seed).random((12, 2))
    assert np.allclose(crowding(front), calc_crowding_distance(-front))


@given(points, st.data())
def test_the_front_is_what_has_rank_zero(point_NM, data):
    violation = data.draw(st.lists(st.sampled_from([0.0, 0.5]), min_size=len(point_NM), max_size=len(point_NM)))
    assert np.array_equal(front(point_NM), ranks(point_NM) == 0)
    assert np.array_equal(front(point_NM, violation), ranks(point_NM, violation) == 0)


def test_the_front_of_many_points_is_found_without_comparing_all_pairs():
    assert front(np.random.default_rng(0).random((20_000, 1))).sum() == 1


def test_volumes_are_measured_from_zero_or_from_the_worst_score():
    assert reference_point([(0.2, 0.5), (0.3, 0.1)]) == (0.0, 0.0)
    assert reference_point([(-1.5, 0.5), (-0.5, 0.1)]) == (-1.5, 0.0)


def test_who_misses_less_dominates():
    assert ranks([(0, 0), (1, 1), (9, 9)], [0.0, 0.5, 0.7]).tolist() == [0, 1, 2]
    assert ranks([(0, 1), (1, 0), (2, 2)], [0.5, 0.5, 0.5]).tolist() == [1, 1, 0]


def test_the_ends_of_a_front_are_never_crowded():
    assert crowding([(0, 3), (1, 2), (1.5, 1.5), (3, 0)]).tolist() == pytest.approx([np.inf, 0.5, 2 / 3, np.inf])
    assert crowding([(1, 1)]).tolist() == [np.inf]
