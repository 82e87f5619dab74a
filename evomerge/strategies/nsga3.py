"""NSGA-III: a front kept spread by reference points, for three objectives or more.

K. Deb and H. Jain, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
Sorting Approach, Part I", IEEE Trans. Evol. Comp. 18(4), 2014. Everything but survival is NSGA-II's: of the front that
is too large, those survive that stand for reference points which few others stand for. Parents are drawn at random,
but one that violates a constraint less wins (part II).

The code is our own and no adapter of pymoo: pymoo's operators are for boxes of real numbers, not for a space's own
crossover and mutation, it brings moocore, autograd and matplotlib, and its NSGA-III adds nothing to NSGA-II but what is
here. The tests compare reference points, the normalisation and the survivors with pymoo's.

Deviations: extreme points are found on objectives in units of the front's ranges, because fitness functions have units
of their own; as in pymoo, intercepts beyond the worst candidate are moved to it.

Letters: N points, M objectives, H reference points.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.nsga2 import Array, FrontConfig, FrontSearch
from evomerge.strategies.registry import register_strategy
from fitness.pareto import ranks
from search_spaces.spaces.space import SearchSpace

OFF_AXIS = 1e-6
"""Weight of the other objectives where the extreme point of one is looked for."""
LARGEST_CONDITION = 1e10
"""Of the matrix of extreme points, above which no plane is laid through them."""


@register_strategy
class Nsga3Config(FrontConfig):
    """For three objectives or more: a front of trade-offs, kept spread by reference points (NSGA-III)."""

    kind: Literal["nsga3"] = "nsga3"

    def build(self, space: SearchSpace, seed: int) -> FrontSearch:
        """Build the strategy; the settings must be resolved."""
        return FrontSearch(space, seed, self, ByReferencePoints())


def das_dennis(objectives: int, divisions: int) -> Array:
    """Return all points of the unit simplex with coordinates in multiples of 1/p: float64[H, M], H = C(M + p - 1, p).

    I. Das and J. E. Dennis, "Normal-Boundary Intersection", SIAM J. Optim. 8(3), 1998.
    """
    length = objectives + divisions - 1  # of a row of p stars and M - 1 bars
    bars = np.array(list(combinations(range(length), objectives - 1)), dtype=np.int64).reshape(-1, objectives - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, length)))
    return np.asarray((np.diff(edges, axis=1) - 1) / divisions, dtype=np.float64)


def spread_points(objectives: int, most: int) -> Array:
    """Return up to `most` reference points, evenly spread, float64[H, M]; at least one for each objective.

    With fewer divisions than objectives all of them are on the simplex's border. Then another layer of half the size is
    put into it (section V), if there is room.
    """
    outer = _divisions(objectives, most)
    points = das_dennis(objectives, max(outer, 1))
    inner = _divisions(objectives, most - len(points))
    if outer >= objectives or inner == 0:
        return points
    return np.vstack((points, (das_dennis(objectives, inner) + 1.0 / objectives) / 2.0))


def _divisions(objectives: int, most: int) -> int:
    """Return the largest p that makes at most so many points; 0: none does."""
    divisions = 0
    while divisions < most and math.comb(objectives + divisions, divisions + 1) <= most:
        divisions += 1
    return divisions


class ByReferencePoints:
    """Keep the best fronts, the last one reduced by niches; a `Survival` of one search.

    There are as many reference points as survivors, or a few fewer.

    Attributes
    ----------
    ideal
        The best value of each objective so far, float64[M].
    extremes
        For each objective the point nearest to its axis so far, float64[M, M].
    """

    def __init__(self) -> None:
        self._axes_HM = np.zeros((0, 0))  # directions of the reference points
        self.ideal = np.zeros(0)
        self.extremes = np.zeros((0, 0))

    def __call__(
        self, points: Array, violation: Array, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Array]:
        """Return the indices of who survives, and that the smaller violation wins a tournament."""
        if not len(self._axes_HM):
            self._begin(points.shape[1], size)
        rank = ranks(points, violation)
        niche, distance = self._niches(points, rank, not violation.min() > 0)
        order = rng.permutation(len(points))
        order = order[np.argsort(rank[order], kind="stable")]  # lower front first; equals by chance
        if len(points) > size:
            last = rank[order[size - 1]]
            sure, rest = order[rank[order] < last], order[rank[order] == last]
            counts = np.bincount(niche[sure], minlength=len(self._axes_HM))
            drawn = drawn_by_niche(niche[rest], distance[rest], counts, size - len(sure), rng)
            order = np.concatenate((sure, rest[drawn]))
        return order, -violation[order, None]

    def _begin(self, objectives: int, size: int) -> None:
        points = spread_points(objectives, size)
        self._axes_HM = points / np.linalg.norm(points, axis=1, keepdims=True)
        self.ideal, self.extremes = np.full(objectives, -np.inf), np.zeros((0, objectives))

    def _niches(self, points: Array, rank: NDArray[np.int64], feasible: bool) -> tuple[NDArray[np.int64], Array]:
        """Return each point's reference line, int[N], and its distance from it, float64[N] (algorithms 2 and 3).

        Points that violate a constraint, the best of them included, leave the ideal and the extremes as they are.
        """
        front = points[rank == 0]
        ideal = np.maximum(self.ideal, front.max(axis=0))
        span = (ideal - front).max(axis=0)
        span = np.where(span > 0, span, 1.0)
        candidates = np.vstack((self.extremes, front))
        missing = (ideal - candidates) / span
        weights = np.where(np.eye(len(ideal)) > 0, 1.0, OFF_AXIS)
        nearest = (missing / weights[:, None]).max(axis=2).argmin(axis=1)  # the achievement scalarising function, eq. 4
        if feasible:
            self.ideal, self.extremes = ideal, candidates[nearest]
        worst = (ideal - points).max(axis=0)
        width = np.minimum(intercepts(missing[nearest]) * span, np.where(worst > 0, worst, 1.0))
        scaled = (ideal - points) / width  # eq. 5
        along = scaled @ self._axes_HM.T
        distance_NH = np.linalg.norm(scaled[:, None] - along[:, :, None] * self._axes_HM, axis=2)
        niche = distance_NH.argmin(axis=1)
        return niche, distance_NH[np.arange(len(points)), niche]


def intercepts(extremes: Array) -> Array:
    """Return where the plane through M points meets the axes, float64[M]; 1 where it does not meet all of them."""
    ones = np.ones(len(extremes))
    if np.linalg.cond(extremes) > LARGEST_CONDITION:  # points that coincide
        return ones
    with np.errstate(divide="ignore"):
        at = np.asarray(1.0 / np.linalg.solve(extremes, ones), dtype=np.float64)
    return at if np.isfinite(at).all() and (at > OFF_AXIS).all() else ones


def drawn_by_niche(
    niche: NDArray[np.int64], distance: Array, counts: NDArray[np.int64], wanted: int, rng: np.random.Generator
) -> list[int]:
    """Draw members of a front, each for a niche with the fewest members so far (algorithm 4).

    Parameters
    ----------
    niche, distance
        Of each member of the front, int[N] and float64[N].
    counts
        Members that each niche has already, int[H].
    wanted
        How many to draw, at most N.
    rng
        Draws among niches and, where a niche has a member already, among those of the front that belong to it.
    """
    counts, left, drawn = counts.copy(), np.ones(len(niche), np.bool_), list[int]()
    while len(drawn) < wanted:
        present = np.unique(niche[left])
        fewest = present[counts[present] == counts[present].min()]
        chosen = fewest[rng.integers(len(fewest))]
        members = np.flatnonzero(left & (niche == chosen))
        at = members[np.argmin(distance[members])] if counts[chosen] == 0 else members[rng.integers(len(members))]
        left[at] = False
        counts[chosen] += 1
        drawn.append(int(at))
    return drawn
