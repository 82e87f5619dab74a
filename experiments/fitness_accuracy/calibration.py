"""Item banks fitted to models that are neither merges nor parents."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from experiments.fitness_accuracy.data import Benchmark
from fitness.estimation.irt import ItemBank, fit_2pl, fit_mirt

Kind = Literal["merges", "merges_below"]
DIMENSIONS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """Rows of the calibration models, their scores, and the banks fitted to them."""

    rows: np.ndarray
    scores: np.ndarray
    banks: tuple[ItemBank, ...]


def others(benchmark: Benchmark) -> np.ndarray:
    """Return the rows of models that are neither merges nor parents."""
    return np.array([row for row in range(len(benchmark.scores)) if row not in benchmark.relatives])


def rows_of(kind: Kind, benchmark: Benchmark, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows of `count` random models; with `merges_below`, all of them below the median of all models."""
    rows = others(benchmark)
    if kind == "merges_below":
        rows = rows[benchmark.scores[rows].mean(1) < np.median(benchmark.scores.mean(1))]
    return rng.permutation(rows)[:count]


@lru_cache(maxsize=64)
def calibrate(kind: Kind, benchmark: Benchmark, count: int, seed: int, draw: int) -> Calibration:
    """Return one draw of a calibration; fitting takes about a second."""
    # crc32: the same models whatever other benchmarks are in the folder
    rng = np.random.default_rng([seed, draw, zlib.crc32(f"{kind}/{benchmark.name}".encode())])
    rows = rows_of(kind, benchmark, count, rng)
    scores = benchmark.scores[rows]
    return Calibration(rows, scores, (fit_2pl(scores), fit_mirt(scores, min(DIMENSIONS, len(scores)))))
