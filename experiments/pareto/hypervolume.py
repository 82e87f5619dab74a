"""How much of the space of objectives a front covers. All objectives are maximised; N points, M objectives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


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
