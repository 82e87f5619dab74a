"""Optuna's samplers: the suite, what they find, and what is refused."""

import sys

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge.extras import MissingExtraError
from evomerge.strategies import AnyStrategy, Evaluated, OptunaConfig
from evomerge.testing import StrategySuite
from evomerge.testing.planted import evaluate, mixed, reals
from fitness.results import Evaluation


@pytest.mark.slow
class TestTpe(StrategySuite):
    config = OptunaConfig(startup=5)
    steady_state = True
    most_genes = 100


@pytest.mark.slow
class TestCmaEsOfOptuna(StrategySuite):
    config = OptunaConfig(sampler="CmaEs")
    steady_state = True
    most_genes = 100
    kinds_of_genes = (reals,)


def drive(config, space, count, seed=0, score=evaluate):
    strategy = config.resolved(space, noise=0.0, evaluations=count).build(space, seed)
    found = []
    for _ in range(count):
        (candidate,) = strategy.ask(1)
        evaluation = score(space, candidate.genotype)
        found.append((candidate.genotype, evaluation))
        strategy.tell([Evaluated(candidate.id, evaluation)])
    return found


CASES = [("TPE", reals, 40), ("TPE", mixed, 40), pytest.param("GP", reals, 16, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("sampler", "make", "count"), CASES)
def test_it_is_better_than_chance_and_can_be_replayed(sampler, make, count):
    space = make(4)
    config = TypeAdapter(AnyStrategy).validate_python({"kind": f"optuna:{sampler}", "startup": 6})
    assert config.sampler == sampler
    found = drive(config, space, count)
    assert np.array_equal(found[0][0], space.start)
    chance = drive(OptunaConfig(sampler="Random"), space, count)
    assert max(e.fitness for _, e in found) > max(e.fitness for _, e in chance)
    for (one, _), (other, _) in zip(found, drive(config, space, count), strict=True):
        assert np.array_equal(one, other)


def test_constraints_and_failures_do_not_blur_the_scores():
    """A candidate that violates a constraint is told as a little worse than the worst, not as a million worse."""

    def score(space, genotype):
        if genotype[0] < -0.2:
            return Evaluation.failed("no")
        good = evaluate(space, genotype)
        return Evaluation("ok", good.objectives, (0.0,), violation=max(0.0, float(genotype[0]) - 1.2))

    space = reals(2)
    strategy = OptunaConfig(startup=5).build(space, 1)
    for _ in range(30):
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, score(space, candidate.genotype))])
    values = [trial.value for trial in strategy._study.trials if trial.value is not None]
    assert len(values) <= 30 and min(values) > -5
    assert any(trial.state.name == "FAIL" for trial in strategy._study.trials)


def test_what_it_cannot_use_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"optuna:Tpe is none of TPE, GP, .*; write optuna:TPE"):
        OptunaConfig(sampler="Tpe").resolved(reals(2), noise=0.0, evaluations=10)
    with pytest.raises(ValueError, match=r"optuna:GP is for up to 64 genes and the space has 65; write fewer, or"):
        OptunaConfig(sampler="GP").resolved(reals(65), noise=0.0, evaluations=10)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"optuna:TPE needs the package optuna.*pip install 'evomerge\[optuna"):
        OptunaConfig().resolved(reals(2), noise=0.0, evaluations=10)
