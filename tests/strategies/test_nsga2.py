"""NSGA-II: who survives."""

import numpy as np
import pytest

from evomerge.strategies import Evaluated
from evomerge.strategies.nsga2 import Nsga2Config
from evomerge.testing.planted import reals
from fitness.results import Evaluation


def tell_generation(strategy, points):
    """Answer one generation with these objectives."""
    candidates = strategy.ask(len(points))
    evaluations = [Evaluation("ok", tuple(point), (0.0, 0.0)) for point in points]
    strategy.tell([Evaluated(one.id, each) for one, each in zip(candidates, evaluations, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_a_front_that_is_too_large_keeps_its_ends_and_its_least_crowded_members(seed):
    strategy = Nsga2Config(population=6).build(reals(3), seed)
    x = np.array([0.0, 0.48, 0.485, 0.49, 0.495, 0.5, 0.505, 0.51, 0.515, 0.52, 0.75, 1.0])
    points = np.random.default_rng(seed).permutation(np.column_stack((x, 1 - x)))
    tell_generation(strategy, points[:6])
    tell_generation(strategy, points[6:])
    kept = {result.objectives[0] for result in strategy._results}
    assert {0.0, 0.48, 0.52, 0.75, 1.0} < kept
