"""Pareto fronts: which points dominate which others, their fronts, crowding distances and hypervolume.

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


def front(points: ArrayLike, violation: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Return which points no other dominates, bool[N]: those whose rank is 0, found without comparing all pairs.

    A point is only dominated by points with a larger sum. So in the order of sums each needs a comparison with the
    members of the front so far: N times the size of the front.

    Parameters
    ----------
    points, violation
        As for `ranks`.
    """
    point_NM = np.asarray(points, dtype=np.float64)
    left = np.arange(len(point_NM))
    if violation is not None and len(left):
        missed = np.asarray(violation, dtype=np.float64)
        left = np.flatnonzero(missed == missed.min())
    on = np.zeros(len(point_NM), dtype=np.bool_)
    for at in left[np.lexsort((*point_NM[left].T, point_NM[left].sum(axis=1)))[::-1]]:
        members, point = point_NM[on], point_NM[at]
        on[at] = not ((members >= point).all(axis=1) & (members > point).any(axis=1)).any()
    return on


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


def crowding_by_front(points: ArrayLike, rank: NDArray[np.int64]) -> Array:
    """Return each point's crowding distance within its own front, float64[N].

    Parameters
    ----------
    points
        float[N, M].
    rank
        Each point's front, int[N], as `ranks` returns it.
    """
    point_NM = np.asarray(points, dtype=np.float64)
    distance = np.zeros(len(point_NM))
    for number in range(rank.max() + 1):
        distance[rank == number] = crowding(point_NM[rank == number])
    return distance


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume between a reference point and the front.

    Sliced along the last objective (While et al. 2006): fine for fronts of tens of points and few objectives.

    Parameters
    ----------
    points
        float[N, M].
    reference
        float[M]; points that are not better in every objective do not count.
    """
    corner = np.asarray(reference, dtype=np.float64)
    point_NM = np.asarray(points, dtype=np.float64).reshape(-1, len(corner))
    inside = point_NM[(point_NM > corner).all(axis=1)]
    if not len(inside):
        return 0.0
    if len(corner) == 1:
        return float(inside.max() - corner[0])
    levels = np.unique(inside[:, -1])[::-1]
    below = np.append(levels[1:], corner[-1])
    return float(
        sum(
            (top - bottom) * hypervolume(inside[inside[:, -1] >= top, :-1], corner[:-1])
            for top, bottom in zip(levels, below, strict=True)
        )
    )


def reference_point(points: ArrayLike) -> tuple[float, ...]:
    """Return the point above which the hypervolume of scores is measured: 0, or the worst score where one is below 0.

    Parameters
    ----------
    points
        float[N, M]: the objectives of all candidates, N >= 1.
    """
    worst = np.asarray(points, dtype=np.float64).min(axis=0)
    return tuple(np.minimum(worst, 0.0).tolist())
