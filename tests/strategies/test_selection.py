import numpy as np
import pytest

from evomerge.strategies.selection import couple, quality, roulette, tournament
from fitness.results import INFEASIBLE

DRAWS = 4000


def shares(draw, count):
    return np.bincount([draw() for _ in range(DRAWS)], minlength=count) / DRAWS


def test_roulette_draws_in_proportion_and_never_a_weight_of_zero():
    rng = np.random.default_rng(0)
    weights = np.array([0.0, 3.0, 0.0, 1.0, 0.0])
    found = shares(lambda: roulette(weights, rng), 5)
    assert found[[0, 2, 4]].sum() == 0
    assert found[1] == pytest.approx(0.75, abs=0.03)


def test_roulette_without_any_weight_draws_all_alike():
    rng = np.random.default_rng(0)
    assert np.allclose(shares(lambda: roulette(np.zeros(4), rng), 4), 0.25, atol=0.03)


def test_a_couple_is_two():
    rng = np.random.default_rng(0)
    weights = np.array([5.0, 1.0, 0.0, 2.0])
    pairs = [couple(weights, rng) for _ in range(500)]
    assert all(first != second for first, second in pairs)
    assert {index for pair in pairs for index in pair} == {0, 1, 3}
    assert couple(np.array([1.0]), rng) == (0, 0)


def test_fitness_becomes_weights():
    assert quality(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert quality(np.array([-2.0, 0.0, 1.0])).tolist() == [0.0, 2.0, 3.0]
    assert quality(np.array([INFEASIBLE - 0.5, 1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]
    assert quality(INFEASIBLE - np.array([0.5, 0.25])).tolist() == [0.0, 0.25]


def test_a_large_tournament_is_won_by_the_best():
    rng = np.random.default_rng(0)
    fitness = np.array([0.1, 0.9, 0.5])
    assert {tournament(fitness, 50, rng) for _ in range(20)} == {1}
    assert np.allclose(shares(lambda: tournament(fitness, 1, rng), 3), 1 / 3, atol=0.03)
