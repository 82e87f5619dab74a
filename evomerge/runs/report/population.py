"""How different candidates are over time, and what archives hold: niches of M2N2, cells of scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.runs.report.contents import Contents
from evomerge.runs.report.convergence import Point, points
from evomerge.strategies.m2n2 import Archive, M2n2Config
from evomerge.strategies.map_elites import MapElitesConfig
from evomerge.strategies.score_grid import EliteGrid

WITH_CELLS = ("map_elites", "cma_me", "cycleqd")
"""Strategies whose archives have cells of scores."""
MOST_MOMENTS = 200
"""Moments at which an archive is looked at."""


@dataclass(frozen=True)
class Spread:
    """How far the candidates of one generation are apart.

    Attributes
    ----------
    distance
        Mean over pairs of the root mean square difference of their genes, each as a fraction of its range.
    low, median, high
        Worst, middle and best search score.
    """

    generation: int
    answers: int
    candidates: int
    distance: float
    low: float
    median: float
    high: float


def spreads(contents: Contents) -> list[Spread]:
    """Return the spread of each generation with two scored samples or more."""
    history = contents.history
    groups: dict[int, list[Point]] = {}
    for point in points(contents):
        if point.kind == "sample":
            groups.setdefault(history.asked[point.candidate].candidate.generation, []).append(point)
    several = {generation: group for generation, group in sorted(groups.items()) if len(group) > 1}
    width = _width(contents) if several else np.ones(0)
    return [_spread(generation, group, contents, width) for generation, group in several.items()]


def _spread(generation: int, group: list[Point], contents: Contents, width: NDArray[np.float64]) -> Spread:
    asked = contents.history.asked
    genes = np.array([asked[point.candidate].candidate.genotype / width for point in group])
    scores = np.array([point.score for point in group])
    return Spread(
        generation,
        group[-1].answers,
        len(group),
        mean_distance(genes),
        float(scores.min()),
        float(np.median(scores)),
        float(scores.max()),
    )


def mean_distance(points: NDArray[np.float64]) -> float:
    """Return the root of the mean squared difference of two of the points' genes, float[N, G], over all pairs.

    From the variance: Σ_{i<j} |x_i − x_j|² = N Σ_i |x_i − x̄|².
    """
    count, genes = points.shape
    squared = np.square(points - points.mean(axis=0)).sum()
    return float(np.sqrt(2 * squared / ((count - 1) * max(genes, 1))))


def _width(contents: Contents) -> NDArray[np.float64]:
    """Return each gene's range; where the space is not known, that of all candidates."""
    if contents.space is not None:
        width: NDArray[np.float64] = contents.space.high - contents.space.low
    else:
        genotypes = np.array([asked.candidate.genotype for asked in contents.history.asked.values()])
        width = np.ptp(genotypes, axis=0)
    return np.where(width > 0, width, 1.0)


@dataclass(frozen=True)
class Moment:
    """An archive after some candidate.

    Attributes
    ----------
    members
        Members, or filled cells.
    best
        Share of the items that the best member solves, or the best quality of a cell.
    together
        Share of the items that some member solves, or the mean quality over all filled cells.
    """

    answers: int
    members: int
    best: float
    together: float


def niches(contents: Contents) -> list[Moment]:
    """Return M2N2's archive over time, led through the recorded results; nothing for other strategies."""
    settings = contents.section("strategy")
    if settings.get("kind") != "m2n2":
        return []
    config = M2n2Config.model_validate({**settings, "warm_start": None})
    found = points(contents)
    genes = len(contents.history.asked[found[0].candidate].candidate.genotype) if found else 0
    archive = Archive(config.archive, genes, config.alpha, config.relative)
    return list(_niches(contents, archive, found))


def _niches(contents: Contents, archive: Archive, found: list[Point]) -> Iterator[Moment]:
    history, looks = contents.history, _looks(len(found))
    for number, point in enumerate(found):
        candidate, evaluation = history.asked[point.candidate].candidate, history.told[point.candidate].evaluation
        if candidate.kind == "again":
            archive.rescore(candidate.genotype, evaluation)
        else:
            archive.take(candidate.genotype, evaluation)
        if number in looks:
            scores = archive.scores
            yield Moment(
                point.answers, archive.size, float(scores.mean(axis=1).max()), float(scores.max(axis=0).mean())
            )


@dataclass(frozen=True)
class Elite:
    """A filled cell: its place on the first two axes, the best quality there, whose it is, and its exported recipe."""

    x: float
    y: float
    quality: float
    candidate: int
    file: str


@dataclass(frozen=True)
class Grid:
    """A grid of cells of scores: over time, and its cells at the end."""

    moments: list[Moment]
    elites: list[Elite]
    axes: tuple[str, ...]
    step: float


def archive_settings(contents: Contents) -> MapElitesConfig:
    """Return the cells of a run: those of its own archive; of another strategy's run, ten by task from 0 to 1."""
    own = contents.section("strategy")
    kept = {"cells", "low", "high", "axes"} & set(own) if own.get("kind") in WITH_CELLS else set()
    return MapElitesConfig.model_validate({key: own[key] for key in kept})


def filled(contents: Contents) -> EliteGrid:
    """Return the grid at the end of the recorded results."""
    elites = EliteGrid(archive_settings(contents))
    deque(_filling(contents, elites), maxlen=0)
    return elites


def _filling(contents: Contents, elites: EliteGrid) -> Iterator[Point]:
    """Lead a grid through the recorded results; yield each after the grid has taken it."""
    for point in points(contents):
        candidate = contents.history.asked[point.candidate].candidate
        evaluation = contents.history.told[point.candidate].evaluation
        if candidate.kind == "again":
            elites.rescore(candidate.genotype, evaluation)
        else:
            elites.take(candidate.genotype, evaluation)
        yield point


def best_first(elites: EliteGrid) -> list[tuple[tuple[int, ...], int]]:
    """Return the filled cells and the places of their elites, best first: the order of exported recipes."""
    return sorted(elites.cells.items(), key=lambda item: -elites.fitness[item[1]])


def numbers(contents: Contents) -> dict[bytes, int]:
    """Return the candidate that had a genotype first, by the genotype."""
    found: dict[bytes, int] = {}
    for identity in contents.history.scored():
        found.setdefault(contents.history.asked[identity].candidate.genotype.tobytes(), identity)
    return found


def grid(contents: Contents) -> Grid | None:
    """Return the cells of an archive, led through the recorded results; None for strategies without one."""
    if contents.section("strategy").get("kind") not in (*WITH_CELLS, "m2n2") or len(contents.weights) < 2:
        return None
    elites = EliteGrid(archive_settings(contents))
    looks, moments = _looks(len(points(contents))), []
    for number, point in enumerate(_filling(contents, elites)):
        if number in looks and elites.cells:
            quality = elites.fitness
            moments.append(Moment(point.answers, len(elites.cells), max(quality), float(np.mean(quality))))
    config, known = elites.config, numbers(contents)
    names = tuple(" + ".join(axis) for axis in config.axes or [(task,) for task in contents.weights])
    step = (config.high - config.low) / config.cells
    best: dict[tuple[int, ...], Elite] = {}
    for number, (cell, place) in enumerate(best_first(elites), start=1):
        x, y = (config.low + step * at for at in cell[:2])
        candidate = known[elites.genotypes[place].tobytes()]
        best.setdefault(cell[:2], Elite(x, y, elites.fitness[place], candidate, f"{number}.yaml"))
    return Grid(moments, list(best.values()), names, step)


def _looks(count: int) -> set[int]:
    """Return the positions of at most about `MOST_MOMENTS` of so many candidates, the last among them."""
    return {*range(0, count, -(-count // MOST_MOMENTS) or 1), count - 1}
