"""The problems of the benchmark: what is searched, which answers can be bought, and how a guess is scored.

A problem has a product's search space and a product's worker (`evomerge.workers.base.Worker`), so that strategies run
in the product's own loop. Programs of the field ask the same worker for the same items. Letters: G genes, K experts,
I items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evomerge.config.load import load
from evomerge.search.problem import Problem as OpenedSearch
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request, Worker
from fitness.objectives import means
from search_spaces.spaces.space import Genotype, SearchSpace

EXPERIMENTS = Path(__file__).parent.parent
ZOO = EXPERIMENTS / "zoo" / "cma_es.yaml"
QUICKSTART = EXPERIMENTS / "quickstart" / "search.yaml"
KNOWN = EXPERIMENTS / "zoo" / "found_weights.json"
ZOO_HELD_OUT = 300
"""Held-out items that a guess is scored on, over all tasks; operations and languages alternate in them."""
CHECKPOINTS = (125, 250, 375, 500, 750, 1000, 1500, 2000, 3000)
"""Numbers of answers after which guesses are scored."""
LONGER = (*CHECKPOINTS, 4000, 6000)
"""The same where a candidate asks several tasks."""
LONG = (*LONGER, 8000)
"""The same where answers cost next to nothing."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem.

    Attributes
    ----------
    name
        As the table calls it.
    space
        What is searched; all genes are weights of an expert.
    weights
        Task name to its weight in the score.
    search_items
        Ids of all items that candidates may be asked.
    worker
        Scores recipes of the space on items; gives derivatives where a request wants them.
    held_out
        Score of a guess on the held-out items, 0 to 1.
    experts
        The genotype at which each source is reproduced, K of them.
    known
        Held-out score of the best recipe that was known before the benchmark; 0: none was.
    checkpoints
        Numbers of answers after which a guess is scored, ascending; the last is the budget.
    """

    name: str
    space: SearchSpace
    weights: Mapping[str, float]
    search_items: tuple[str, ...]
    worker: Worker
    held_out: Callable[[Genotype], float]
    experts: tuple[Genotype, ...]
    known: float = 0.0
    checkpoints: tuple[int, ...] = CHECKPOINTS

    def until(self, budget: int) -> Problem:
        """Return the problem with a smaller budget."""
        return replace(self, checkpoints=tuple(count for count in self.checkpoints if count <= budget))

    def scores(self, genotype: Genotype, items: tuple[str, ...]) -> NDArray[np.float64]:
        """Ask a genotype, moved into the box, some items; return their scores, float64[I]."""
        request = Request(self.space.decode(self.space.settled(genotype)), items)
        evaluation = self.worker.evaluate(request)
        if evaluation.status != "ok":
            raise RuntimeError(f"{self.name}: a recipe cannot be scored: {evaluation.reason}")
        return np.asarray(evaluation.scores, np.float64)


def expert_genotypes(space: SearchSpace, members: NDArray[np.int64]) -> tuple[Genotype, ...]:
    """Return the genotype of each expert alone: weight 1 for its own genes and 0 for the others'.

    Parameters
    ----------
    members
        Which expert each gene belongs to, int[G].
    """
    return tuple((members == expert).astype(np.float64) for expert in range(int(members.max()) + 1))


# --- the zoo ---


def zoo(name: str, file: Path, *given: str) -> Problem:
    """Return a problem over the zoo's models from a search file with some changes."""
    changes = ["fitness.batch_size=300", "strategy={kind: gradient}", *given]  # its worker takes steps, too
    opened = OpenedSearch(load(file, changes), scan=False)
    worker = local_worker(opened).worker
    worker.prepare(opened.space.decode(opened.space.start), opened.search_items)
    held_out = _first_of_each_task(opened, ZOO_HELD_OUT)
    scored: dict[str, float] = {}

    def score(genotype: Genotype) -> float:
        recipe = opened.space.decode(opened.space.settled(genotype))
        if recipe.hash not in scored:
            evaluation = worker.evaluate(Request(recipe, held_out))
            if evaluation.status != "ok":
                raise RuntimeError(f"{name}: a guess cannot be scored: {evaluation.reason}")
            by_task = means(evaluation)
            total = sum(opened.suite.weights.values())
            scored[recipe.hash] = sum(
                weight / total * by_task[task].value for task, weight in opened.suite.weights.items()
            )
        return scored[recipe.hash]

    members = _experts_of_genes(opened)
    known = max(score(np.asarray(genotype)) for genotype in _known(opened, members))
    return Problem(
        name,
        opened.space,
        opened.suite.weights,
        tuple(opened.search_items),
        worker,
        score,
        expert_genotypes(opened.space, members),
        known,
    )


def _first_of_each_task(opened: OpenedSearch, count: int) -> tuple[str, ...]:
    tasks = list(opened.suite.weights)
    each = count // len(tasks)
    items = opened.held_out_items
    return tuple(item for task in tasks for item in [one for one in items if one.rsplit("/", 2)[0] == task][:each])


def _experts_of_genes(opened: OpenedSearch) -> NDArray[np.int64]:
    """Return which expert each gene weighs, int[G], by the names of the genes."""
    experts = [name for name in opened.config.models if name != opened.config.base]
    return np.array([experts.index(gene.name.partition(".")[0]) for gene in opened.space.genes])


def _known(opened: OpenedSearch, members: NDArray[np.int64]) -> list[Genotype]:
    """Return the genotypes that were known to be good: the weights that a long search found when the zoo was made."""
    found = json.loads(KNOWN.read_text(encoding="utf-8"))
    per_expert = np.array(found["per expert"])[members]
    if opened.space.dimension == 3 * len(found["per layer"]):
        return [per_expert, np.array([weight for layer in found["per layer"].values() for weight in layer])]
    return [per_expert]


@cache
def problem(name: str) -> Problem:
    """Build a problem of the table by its name, once in a process."""
    return PROBLEMS[name]()


def _choice() -> Problem:
    return zoo("zoo, choice", ZOO, "fitness.tasks=[zoo_target_mc]")


def _generation() -> Problem:
    return zoo("zoo, generation", QUICKSTART)


def _several() -> Problem:
    tasks = "fitness.tasks=[zoo_target_gen, zoo_ops_en, zoo_read_ja, zoo_read_eo]"
    return replace(zoo("zoo, four tasks", ZOO, tasks), checkpoints=LONGER)


def _simulated(genes: int) -> Callable[[], Problem]:
    def build() -> Problem:
        from experiments.search_efficiency.simulated import landscape

        return landscape(genes)

    return build


def _halves() -> Problem:
    from experiments.search_efficiency.halves import halves

    return halves()


def _smollm2() -> Problem:
    from experiments.search_efficiency.smollm2 import smollm2

    return smollm2()


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "zoo, generation": _generation,
    "zoo, choice": _choice,
    "zoo, four tasks": _several,
    "SmolLM2, two experts": _smollm2,
    "digits' halves": _halves,
    "simulated, 24 genes": _simulated(24),
    "simulated, 100 genes": _simulated(100),
    "simulated, 500 genes": _simulated(500),
}
