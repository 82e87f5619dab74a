"""Response matrices to measure on: read from a folder, or simulated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitness.estimation.item_banks import Responses, read_matrix

LINEAGES = Path(__file__).with_name("lineages.json")
"""Merges on the leaderboard and their parents, as the merges' names and cards say."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A response matrix and the merges in it whose parents are in it too.

    Attributes
    ----------
    merges
        (row of the merge, rows of its parents), of a published list.
    named
        The same, of merges whose names or cards say their parents (`lineages.json`).
    models
        The rows' names; empty for simulated models.
    """

    name: str
    scores: np.ndarray
    merges: tuple[tuple[int, tuple[int, ...]], ...]
    named: tuple[tuple[int, tuple[int, ...]], ...] = ()
    models: tuple[str, ...] = ()

    @property
    def family(self) -> set[int]:
        """Rows of the published list's merges and their parents."""
        return {row for merge, parents in self.merges for row in (merge, *parents)}

    @property
    def relatives(self) -> set[int]:
        """Rows of all merges and their parents."""
        return self.family | {row for merge, parents in self.named for row in (merge, *parents)}


def load(folder: Path) -> list[Benchmark]:
    """Every `*.npz` of a folder, as `fitness.estimation.item_banks.read_matrix` reads it, and its `merges.json` if any.

    `merges.json` maps a model to the list of its parents; those that a matrix does not have are left out.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise ValueError(f"{folder}: no *.npz in it: give a folder with responses matrices")
    listed = folder / "merges.json"
    merges = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    named = json.loads(LINEAGES.read_text(encoding="utf-8"))
    others = {merge: parents for merge, parents in named.items() if merge not in merges}
    return [_benchmark(file.stem, read_matrix(file), merges, others) for file in files]


def write_matrix(file: Path, responses: Responses) -> None:
    """Write a matrix that `fitness.estimation.item_banks.read_matrix` reads; 0/1 scores are packed to bits."""
    names = {"models": np.array(responses.models), "items": np.array(responses.items)}
    if np.isin(responses.scores, (0.0, 1.0)).all():
        packed = np.packbits(responses.scores.astype(np.uint8), axis=1)
        np.savez_compressed(file, responses=packed, shape=np.array(responses.scores.shape), **names)
    else:
        np.savez_compressed(file, responses=responses.scores.astype(np.float32), **names)


def _benchmark(
    name: str, responses: Responses, merges: Mapping[str, list[str]], named: Mapping[str, list[str]]
) -> Benchmark:
    if np.isnan(responses.scores).any():
        raise ValueError(f"{name}: some models were not asked all items: leave these models out")
    row = {model: index for index, model in enumerate(responses.models)}
    known, others = (
        tuple(
            (row[merge], tuple(row[parent] for parent in parents))
            for merge, parents in listed.items()
            if parents and merge in row and all(parent in row for parent in parents)
        )
        for listed in (merges, named)
    )
    return Benchmark(name, responses.scores, known, others, responses.models)


def simulate(seed: int = 0, items: int = 120, models: int = 500, merges: int = 8) -> list[Benchmark]:
    """Two benchmarks of models with abilities in two dimensions, and merges of related models.

    A model answers correctly where aᵢ·θ − bᵢ + εᵢ > 0. Parents share a family's ability and most of its ε; a merge has
    the mean of its parents' abilities and of their ε, both with noise.
    """
    rng = np.random.default_rng(seed)
    return [_simulated(f"simulated_{number}", rng, items, models, merges) for number in range(2)]


def _simulated(name: str, rng: np.random.Generator, items: int, models: int, merges: int) -> Benchmark:
    discrimination = np.stack((rng.lognormal(0.3, 0.4, items), rng.normal(0, 0.6, items)))
    difficulty = rng.normal(0, 1.8, items)

    def answers(ability: np.ndarray, error: np.ndarray) -> np.ndarray:
        return (ability @ discrimination - difficulty + 1.6 * error > 0).astype(np.float64)

    scores = [answers(rng.normal(size=2), rng.normal(size=items)) for _ in range(models)]
    family: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(merges):
        shared_ability, shared_error = rng.normal((0.8, 0.0), 0.5), rng.normal(size=items)
        abilities = [shared_ability + rng.normal(0, 0.4, 2) for _ in range(2)]
        errors = [np.sqrt(0.8) * shared_error + np.sqrt(0.2) * rng.normal(size=items) for _ in range(2)]
        merged_ability = np.mean(abilities, axis=0) + rng.normal(0, 0.3, 2)
        merged_error = np.mean(errors, axis=0) + np.sqrt(0.1) * rng.normal(size=items)
        first = len(scores)
        scores += [answers(*pair) for pair in zip(abilities, errors, strict=True)]
        scores.append(answers(merged_ability, merged_error))
        family.append((first + 2, (first, first + 1)))
    return Benchmark(name, np.stack(scores), tuple(family))
