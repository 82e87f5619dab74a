"""The front of several surrogates, by NSGA-II or NSGA-III on the unit box: predictions cost nothing.

Children come from simulated binary crossover and polynomial mutation (Deb and Agrawal 1995; Deb and Goyal 1996), the
operators that MAP's program uses with eta 20. Letters: N points, K coordinates, M metrics.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.nsga2 import Array, Survival
from fitness.pareto import front

Predict = Callable[[Array], tuple[Array, Array]]
"""Points float64[N, K] in [0, 1] to metrics float64[N, M], all maximised, and violations of constraints float64[N]."""

ETA = 20.0
"""Distribution index of both operators: larger ones keep children nearer to their parents."""
CROSSED = 0.7
"""Probability that two parents are crossed."""


def predicted_front(
    predict: Predict, first: Array, generations: int, survive: Survival, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Return points that no other is predicted to dominate, float64[N, K], with their metrics and violations.

    Parameters
    ----------
    predict
        The surrogates.
    first
        The first population, float64[N, K], N >= 2; its size is kept.
    generations
        How many.
    survive
        Which of parents and children are the next parents.
    rng
        Draws parents and children.
    """
    points, (values, missed) = first, predict(first)
    for generation in range(generations + 1):
        kept, _ = survive(values, missed, len(first), rng)
        points, values, missed = points[kept], values[kept], missed[kept]
        if generation < generations:
            children = mutated(crossed(points[_winners(len(points), rng)], rng), rng)
            more_values, more_missed = predict(children)
            points, values = np.vstack((points, children)), np.vstack((values, more_values))
            missed = np.concatenate((missed, more_missed))
    best = front(values, missed)
    return points[best], values[best], missed[best]


def _winners(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the winners of as many tournaments of two as there are points, which are sorted, the best first."""
    return np.asarray(rng.integers(count, size=(count, 2)).min(axis=1), dtype=np.int64)


def crossed(parents: Array, rng: np.random.Generator) -> Array:
    """Return children of neighbours among the parents, float64[N, K], by simulated binary crossover."""
    a, b = parents, np.roll(parents, 1, axis=0)
    drawn = rng.random(parents.shape)
    spread = np.where(drawn < 0.5, (2 * drawn) ** (1 / (ETA + 1)), (2 * (1 - drawn)) ** (-1 / (ETA + 1)))
    child = 0.5 * ((1 + spread) * a + (1 - spread) * b)
    here = (rng.random((len(parents), 1)) < CROSSED) & (rng.random(parents.shape) < 0.5)
    return np.clip(np.where(here, child, a), 0.0, 1.0)


def mutated(points: Array, rng: np.random.Generator) -> Array:
    """Return points with one coordinate in K moved on average, float64[N, K], by polynomial mutation."""
    drawn = rng.random(points.shape)
    step = np.where(drawn < 0.5, (2 * drawn) ** (1 / (ETA + 1)) - 1, 1 - (2 * (1 - drawn)) ** (1 / (ETA + 1)))
    moved = rng.random(points.shape) < 1.0 / points.shape[1]
    return np.asarray(np.clip(points + moved * step, 0.0, 1.0))


def spread_out(candidates: Array, taken: Array, count: int) -> list[int]:
    """Return indices of up to `count` candidates, each as far as possible from those taken and from one another.

    Parameters
    ----------
    candidates, taken
        Points of one space, float64[N, M] and float64[P, M]; distances are measured in units of the candidates' ranges.
    """
    width = np.maximum(np.ptp(candidates, axis=0), 1e-12)
    nearest = np.full(len(candidates), np.inf)
    for point in taken:
        nearest = np.minimum(nearest, np.linalg.norm((candidates - point) / width, axis=1))
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        at = int(np.argmax(nearest))
        chosen.append(at)
        nearest = np.minimum(nearest, np.linalg.norm((candidates - candidates[at]) / width, axis=1))
        nearest[at] = -1.0
    return chosen
