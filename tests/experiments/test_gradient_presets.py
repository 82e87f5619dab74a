"""The zoo's search files for what papers learn by gradient: they load, and a step changes all weights that it may."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.config.load import load
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from tests.zoo import ZOO

PRESETS = {"adamerging": 24, "divmerge": 3, "supermerge": 24, "expert_merging": 24, "frank_wolfe": 24}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "genes"), PRESETS.items())
def test_a_step_has_a_finite_derivative_by_every_weight(name: str, genes: int) -> None:
    problem = Problem(load(ZOO / f"{name}.yaml"), scan=False)
    assert len(problem.space.genes) == genes
    start, items = problem.space.start, problem.steps.items(0)
    step = Request(problem.space.decode(start), items, gradient_at=tuple(start))
    found = local_worker(problem).ready().evaluate(step)
    assert found.status == "step"
    assert len(found.gradient) == genes
    assert np.isfinite(found.gradient).all()
    assert all(found.gradient)
