"""Pareto fronts: which points dominate which others, their fronts, and their crowding distances.

All objectives are maximised. Letters: N points, M objectives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def dominates(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points dominate which, bool[N, N]: no objective is worse and at least one is better.

    Parameters
    ----------
    points
        float[N, M].
    """
    point_NM = np.asarray(points, dtype=np.float64)
    a, b = point_NM[:, None], point_NM[None]
    return np.asarray((a >= b).all(-1) & (a > b).any(-1))


def ranks(points: ArrayLike, violation: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return each point's front, int[N]: 0 if no point dominates it, 1 if only points of front 0 do, and so on.

    Parameters
    ----------
    points
        float[N, M].
    violation
        float[N]: each point's constraint violation. A point with a smaller violation dominates one with a larger
        violation (Deb 2000). None: no point violates any constraint.
    """
    better = dominates(points)
    if violation is not None:
        missed = np.asarray(violation, dtype=np.float64)
        better = np.where(missed[:, None] == missed[None], better, missed[:, None] < missed[None])
    rank = np.full(len(better), -1, dtype=np.int64)
    front = 0
    while (rank < 0).any():
        left = rank < 0
        rank[left & ~(better & left[:, None]).any(axis=0)] = front
        front += 1
    return rank


def crowding(points: ArrayLike) -> Array:
    """Return each point's crowding distance in its front, float64[N]; infinite at the ends (Deb et al. 2002, III.B).

    Parameters
    ----------
    points
        float[N, M], all of one front.
    """
    point_NM = np.asarray(points, dtype=np.float64)
    count, objectives = point_NM.shape
    distance = np.zeros(count)
    for values in point_NM.T:
        order = np.argsort(values, kind="stable")
        spread = values[order[-1]] - values[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0 and count > 2:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
    scaled: Array = distance / objectives
    return scaled
