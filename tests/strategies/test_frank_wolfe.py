"""Frank-Wolfe steps against the algorithm written out, and its bound, on a quadratic loss of the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.strategies.base import Evaluated
from evomerge.strategies.gradient import Gradient, GradientConfig
from evomerge.testing.planted import PlantedSpace
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice, Real

Array = NDArray[np.float64]
NAMES = ("a.weight[layers 0]", "b.weight[layers 0]", "lambda[layers 0]", "a.weight[final]", "b.weight[final]")
PARTS = ([0, 1], [3, 4])
CONFIG = GradientConfig(steps=40, update="frank_wolfe", averaged=0.001)


def space(high: float = 1.5) -> PlantedSpace:
    return PlantedSpace([Real(name, -0.5, high, start=0.3) for name in NAMES])


def led(strategy: Gradient, gradient: Callable[[Array], Array]) -> list[Array]:
    points = []
    while not strategy.finished:
        (candidate,) = strategy.ask(1)
        points.append(candidate.genotype)
        slope = tuple(gradient(candidate.genotype).tolist())
        strategy.tell([Evaluated(candidate.id, Evaluation("step", (0.0,), (0.0,), gradient=slope))])
    return [*points, strategy.recommend()]


def quadratic(bottom: Array) -> tuple[Array, Callable[[Array], Array]]:
    root = np.random.default_rng(3).normal(size=(5, 5))
    curvature = root @ root.T
    return curvature, lambda w: curvature @ (w - bottom)


@pytest.mark.parametrize("bottom", [[0.2, 0.5, 0.3, 0.9, 0.4], [-0.4, -0.3, 0.3, 1.4, -0.5]])
def test_golden(bottom: list[float]) -> None:
    _, gradient = quadratic(np.array(bottom))
    expected = [np.full(5, 0.3)]
    for k in range(CONFIG.gradient_steps or 0):
        g, w = gradient(expected[-1]), expected[-1].copy()
        for part in PARTS:
            vertices = [np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0])]  # the base and the two models
            s = min(vertices, key=lambda vertex: float(g[part] @ vertex))
            w[part] = (1 - 2 / (k + 2)) * w[part] + 2 / (k + 2) * s
        expected.append(w)
    np.testing.assert_allclose(led(CONFIG.build(space(), 0), gradient), expected, rtol=1e-12, atol=1e-12)


def test_it_keeps_its_bound() -> None:
    bottom = np.array([0.3, 0.4, 0.3, 0.1, 0.7])  # inside of both hulls
    curvature, gradient = quadratic(bottom)
    most = np.abs(np.linalg.eigvalsh(curvature)).max() * 4  # the squared diameter of two triangles
    for k, w in enumerate(led(CONFIG.build(space(), 0), gradient)[1:], start=1):
        assert 0.5 * (w - bottom) @ curvature @ (w - bottom) <= 2 * most / (k + 2)


def test_an_average_never_moves_to_the_base() -> None:
    """Shares' derivatives cancel: with one model alone its own is 0 but for rounding, all others may be positive."""
    strategy = CONFIG.build(space(), 0)
    strategy._point = strategy._box.to_unit(np.array([1.0, 0.0, 0.3, 0.0, 1.0]))
    found = led(strategy, lambda w: np.array([1e-14, 2.0, 0.0, 5.0, 0.0]))[-1]
    np.testing.assert_allclose(found, [1.0, 0.0, 0.3, 0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (
            [Real("a.weight[model]", 0.1, 1.0, 0.3), Real("b.weight[model]", 0.0, 1.0, 0.3)],
            r"goes from 0\.1 to 1, .*low: 0, high: 1",
        ),
        ([Real("t[model]", 0.0, 1.0, 0.5)], "the weights of one merge method"),
        (
            [Real("a.weight[model]", 0.0, 1.0, 0.3), Choice("method", ("ties", "linear"), "ties")],
            "the weights of one merge method",
        ),
    ],
)
def test_spaces_without_such_weights_are_refused(genes: list[Real], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG.resolved(PlantedSpace(genes), noise=0.0, evaluations=20)


def test_its_steps_have_no_learning_rate() -> None:
    with pytest.raises(ValueError, match="learning_rate is Adam's"):
        GradientConfig(update="frank_wolfe", learning_rate=0.1)
