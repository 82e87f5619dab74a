"""Gradient search on a planted bowl: it gets to the bottom and survives failed steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.strategies.base import Evaluated
from evomerge.strategies.gradient import MOST_FAILURES, Gradient, GradientConfig
from fitness.results import Evaluation

BOTTOM = 0.8


def step(genotype: np.ndarray, noise: float = 0.0, rng: np.random.Generator | None = None) -> Evaluation:
    """A step's evaluation where the loss is the squared distance from the bottom."""
    gradient = 2 * (genotype - BOTTOM)
    if rng is not None:
        gradient = gradient + rng.normal(0, noise, len(gradient))
    loss = float(((genotype - BOTTOM) ** 2).sum())
    return Evaluation("step", objectives=(-loss,), standard_errors=(0.0,), gradient=tuple(gradient.tolist()))


def led(strategy: Gradient, noise: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    points = []
    while not strategy.finished:
        (candidate,) = strategy.ask(1)
        points.append(candidate.genotype)
        strategy.tell([Evaluated(candidate.id, step(candidate.genotype, noise, rng))])
    return points


def test_it_gets_to_the_bottom(make_space: Any) -> None:
    space = make_space(12)
    strategy = GradientConfig(steps=150).build(space, 0)
    led(strategy)
    assert np.abs(strategy.recommend() - BOTTOM).max() < 0.02


def test_the_mean_of_noisy_steps_is_nearer_than_the_last(make_space: Any) -> None:
    strategy = GradientConfig(steps=200, learning_rate=0.05).build(make_space(12), 0)
    last = led(strategy, noise=2.0)[-1]
    assert np.linalg.norm(strategy.recommend() - BOTTOM) < 0.8 * np.linalg.norm(last - BOTTOM)


def test_it_proposes_one_step_at_a_time_and_begins_at_the_start(make_space: Any) -> None:
    space = make_space(5)
    strategy = GradientConfig(steps=3).build(space, 0)
    (candidate,) = strategy.ask(4)
    np.testing.assert_allclose(candidate.genotype, space.start)
    assert (candidate.kind, candidate.generation, strategy.ask(1)) == ("gradient", 0, [])
    np.testing.assert_allclose(strategy.recommend(), space.start)


def test_it_ends_after_its_steps(make_space: Any) -> None:
    strategy = GradientConfig(steps=7).build(make_space(5), 0)
    assert len(led(strategy)) == 7
    assert strategy.finished and strategy.ask(1) == []


def test_genes_without_a_derivative_stay(make_space: Any) -> None:
    space = make_space(5)
    strategy = GradientConfig(steps=20).build(space, 0)
    while not strategy.finished:
        (candidate,) = strategy.ask(1)
        gradient = 2 * (candidate.genotype - BOTTOM)
        gradient[2] = 0.0
        evaluation = Evaluation("step", objectives=(0.0,), standard_errors=(0.0,), gradient=tuple(gradient.tolist()))
        strategy.tell([Evaluated(candidate.id, evaluation)])
    assert strategy.recommend()[2] == pytest.approx(space.start[2])
    assert abs(strategy.recommend()[3] - space.start[3]) > 0.05


def test_a_failed_step_halves_the_rate_and_begins_at_the_mean_so_far(make_space: Any) -> None:
    strategy = GradientConfig(steps=30).build(make_space(5), 0)
    for _ in range(10):
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, step(candidate.genotype))])
    mean = strategy.recommend()
    (candidate,) = strategy.ask(1)
    strategy.tell([Evaluated(candidate.id, Evaluation.failed("the loss of the model is not a finite number"))])
    (again,) = strategy.ask(1)
    np.testing.assert_allclose(again.genotype, mean)
    strategy.tell([Evaluated(again.id, step(again.genotype))])
    (after,) = strategy.ask(1)
    assert np.abs(after.genotype - again.genotype).max() == pytest.approx(0.01 * 2, rel=0.01)


def test_it_ends_when_all_steps_fail(make_space: Any) -> None:
    strategy = GradientConfig(steps=100).build(make_space(5), 0)
    for _ in range(MOST_FAILURES):
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, Evaluation.failed("no memory"))])
    assert strategy.finished


def test_steps_before_another_strategy_have_to_be_resolved(make_space: Any) -> None:
    with pytest.raises(ValueError, match=r"steps is `auto`: call config\.resolved"):
        GradientConfig.model_validate({"then": "random"}).build(make_space(5), 0)


def test_without_another_strategy_the_budget_alone_ends_the_steps(make_space: Any) -> None:
    space = make_space(5)
    config = GradientConfig().resolved(space, noise=0.0, evaluations=3)
    strategy = config.build(space, 0)
    for _ in range(10):
        (candidate,) = strategy.ask(1)
        strategy.tell([Evaluated(candidate.id, step(candidate.genotype))])
    assert config.gradient_steps is None and not strategy.finished


def test_a_second_strategy_has_no_warm_start_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"then\.warm_start: this strategy starts from the result of the steps"):
        GradientConfig.model_validate({"then": {"kind": "cma_es", "warm_start": "runs/earlier"}})
