"""Single edits of a model's layer order, to see whether any of them helps anywhere.

Every model of the zoo on a task that it solves in part, with every repeat, skip and swap of neighbours, and every
repeat at half strength. The edit that is best on the search items answers all held-out items, as does the unedited
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.config.search_file import SearchConfig
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from fitness.estimation.intervals import paired_test
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.recipe import Recipe

ZOO = Path(__file__).parent.parent / "zoo"
MODELS = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")}
MERGE = "task arithmetic 0.8"
PAIRS = (
    ("base", "zoo_ops_en"),
    ("ops", "zoo_ops_en"),
    ("ja", "zoo_target_ja"),
    ("eo", "zoo_target_eo"),
    (MERGE, "zoo_target_gen"),
)


@dataclass(frozen=True)
class Edited:
    """The best edit of one model on one task; scores are shares of items."""

    model: str
    task: str
    edits: int
    best: str
    search_before: float
    search_after: float
    held_out_before: float
    held_out_after: float
    items: int
    p_value: float
    """Of the paired test on the held-out items, for this one edit."""


def settings(tasks: str | Sequence[str], items: int | str, **changes: Any) -> dict[str, Any]:
    """Return a search file over the zoo with one task or several."""
    fitness = {
        "tasks": [{"task": task} for task in ([tasks] if isinstance(tasks, str) else tasks)],
        "include_path": [str(ZOO / "tasks")],
        "subset": {"items": items},
        "held_out": "test",
    }
    return {"models": MODELS, "fitness": fitness, "workers": {"threads": 1}, "out_dtype": "float32"} | changes


def edits(depth: int) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Yield each edit's name, and its layers with the factor of what each of them adds."""
    plain = [(layer, 1.0) for layer in range(depth)]
    for layer in range(depth):
        twice = [*plain[: layer + 1], (layer, 1.0), *plain[layer + 1 :]]
        halved = [*plain[:layer], (layer, 0.5), (layer, 0.5), *plain[layer + 1 :]]
        yield f"repeat {layer}", twice
        yield f"repeat {layer} at half strength", halved
        yield f"skip {layer}", [stop for stop in plain if stop[0] != layer]
    for layer in range(depth - 1):
        swapped = list(plain)
        swapped[layer], swapped[layer + 1] = swapped[layer + 1], swapped[layer]
        yield f"swap {layer} and {layer + 1}", swapped


def measure(model: str, task: str, items: int, *, held_out: int | None = None, most: int | None = None) -> Edited:
    """Try every edit of `model` (the first `most` of them) on search items of `task`, and the best on held-out ones."""
    problem = Problem(SearchConfig.model_validate(settings(task, items)), scan=False)
    worker, layout = local_worker(problem).worker, problem.layout
    recipe = (
        task_arithmetic_recipe(MODELS, layout, 0.8, out_dtype="float32")
        if model == MERGE
        else source_recipe(MODELS[model], layout, out_dtype="float32")
    ).canonical()

    def score(recipe: Recipe, asked: tuple[str, ...]) -> Evaluation:
        evaluation = worker.evaluate(Request(recipe, asked))
        if evaluation.status != "ok":
            raise RuntimeError(evaluation.reason)
        return evaluation

    tried = list(edits(layout.num_layers))[:most]
    paths = {name: replace(recipe, path=tuple(PathLayer(None, *stop) for stop in path)) for name, path in tried}
    asked, held = tuple(problem.subset), tuple(problem.held_out_items)[:held_out]
    scores = {name: score(path, asked).fitness for name, path in paths.items()}
    best = max(scores, key=scores.__getitem__)
    before, after = score(recipe, held), score(paths[best], held)
    return Edited(
        model,
        task,
        len(tried),
        best,
        score(recipe, asked).fitness,
        scores[best],
        before.fitness,
        after.fitness,
        len(held),
        paired_test(after.scores, before.scores),
    )
