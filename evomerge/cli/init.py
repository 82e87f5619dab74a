"""`evomerge init`: a commented search file for these models and tasks, with reasons for what it chooses.

It opens the models, builds the tasks, and scores the search's start once: how long that takes decides the budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from evomerge.cli.evaluate import of_tasks
from evomerge.cli.printing import duration
from evomerge.config.errors import ConfigError
from evomerge.config.genome import from_genome
from evomerge.config.load import load_mapping
from evomerge.config.paths import names_of
from evomerge.files.atomic import write_text
from evomerge.files.messages import counted, reason, say
from evomerge.files.references import local_or_hub, named_twice
from evomerge.merging.checks import preflight
from evomerge.merging.sources.open_sources import open_sources, typed
from evomerge.search.auto_strategy import ITEMS
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies.gradient import GradientConfig
from evomerge.workers.base import Request
from fitness.config import FitnessConfig
from fitness.results import TaskError
from fitness.tasks.suite import TaskSuite
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.references import with_parts

GENES = 60
"""About as many genes as a few hundred evaluations can search."""
GENES_BY_GRADIENTS = 200
"""As many as gradient steps can: they find more with more genes, but each group of few tensors gains little."""
NO_MODULES = "these layers have no attention or mlp that is known by name"
METHODS = ("task_arithmetic", "pcb", "multislerp", "consensus", "r_tsv_m", "doge", "cabs")
"""Methods worth searching together: those that beat task arithmetic in `experiments/operators`."""
EVALUATIONS = (60, 300)
"""Fewest and most evaluations that are written; in between, what an hour is enough for."""
HOUR = 3600

TEMPLATE = """\
# A search file for evomerge. Check it with `evomerge plan {file}`, then run `evomerge search {file}`.
# All keys: `python -m evomerge.config.reference`. Names for space, method and strategy: `evomerge plugins`.
models:  # the first is the base that the others were trained from
{models}
space:
  kind: layer_coefficients  # one weight per expert, group of layers and group of modules: {genes} genes, since
  method: task_arithmetic  # {why_genes}
  # or method: [{methods}], the method itself as a gene: the best on two experts
  layers_per_group: {layers_per_group}  # the models have {num_layers}; 1: each has weights of its own
  modules: {modules}  # {why_modules}
  weight: {{low: -0.5, high: 1.5, start: 0.5}}
strategy: auto  # {why_strategy}
fitness:
  tasks: {tasks}  # or {{task: NAME, weight: 2}} in place of a name
{include}  subset: {subset}  # search items per task and candidate, or `all`; {why_subset}
  held_out: {held_out}  # kept for the final table; {why_held_out}
{test_split}{vocabulary}{unrelated}budget: {evaluations}  # candidates to score; {why_budget}
out_dtype: bfloat16
seed: 0
"""


def init(
    models: Sequence[str],
    tasks: Sequence[str],
    include_path: Sequence[Path],
    output: Path,
    vocabulary: str | None = None,
    *,
    allow_unrelated: bool = False,
) -> None:
    """Write the file after opening the models and checking that they can be merged."""
    if len(models) < 2:
        raise ConfigError("--models: name the base and at least one expert: --models BASE EXPERT")
    models = [typed(model) for model in models]
    references = [with_parts(model, _reference) for model in models]
    twice = named_twice(models)
    if twice is not None:
        raise ConfigError(f"--models: {twice}; name each model once")
    names = names_of(models)
    checkpoints = open_sources(dict(zip(names, models, strict=True)), names[0], vocabulary=vocabulary)
    preflight.check(checkpoints, names[0], scan=False, allow_unrelated=allow_unrelated)
    of_tasks(tasks, include_path, split=None)  # checks that they exist
    layout, experts = checkpoints[names[0]].layout, len(models) - 1
    num_layers, modules = layout.num_layers, modules_of(layout)
    included = [str(path.resolve()) for path in include_path]
    draft: dict[str, Any] = {
        "models": dict(zip(names, references, strict=True)),
        "vocabulary": vocabulary or "same",
        "allow_unrelated": allow_unrelated,
        "fitness": {"tasks": list(tasks), "include_path": included, **_held_out(tasks, included)},
    }
    problem = _problem(draft, Genes.of(num_layers, experts, modules, GENES_BY_GRADIENTS))
    by_gradients = isinstance(problem.config.strategy, GradientConfig)
    genes = Genes.of(num_layers, experts, *((modules, GENES_BY_GRADIENTS) if by_gradients else ((), GENES)))
    count = problem.space.dimension if by_gradients else genes.count  # not all layers need to have all modules
    evaluations, why_budget = _budget(problem)
    fewest = min(len(items) for items in problem.suite.pool.search.values())
    few = fewest > 2 * ITEMS
    test_split = "  allow_test_split: true  # the tasks have no other split\n"
    text = TEMPLATE.format(
        file=quote(str(output)),
        models="\n".join(f"  {_text(name)}: {_text(path)}" for name, path in zip(names, references, strict=True)),
        genes=count,
        methods=", ".join(METHODS),
        why_genes="gradient steps search many genes at once" if by_gradients else "evolution searches few genes",
        layers_per_group=genes.layers_per_group,
        num_layers=counted(num_layers, "layer"),
        modules=_text(list(genes.modules)) if genes.modules else "all",
        why_modules=f"or all, or a list of {', '.join(modules)}: a weight for each" if modules else NO_MODULES,
        why_strategy=problem.chosen.removeprefix("strategy auto: ").partition("; each candidate")[0],
        tasks=_text(list(tasks)),
        include="".join(_include(include_path)),
        subset=ITEMS if few else "all",
        why_subset=f"the tasks have {fewest} or more" if few else f"a task has only {fewest}",
        held_out=draft["fitness"]["held_out"],
        why_held_out=_why_held_out(draft["fitness"]),
        test_split=test_split if "allow_test_split" in draft["fitness"] else "",
        vocabulary="" if vocabulary is None else f"vocabulary: {vocabulary}  # of merges; the models' differ\n",
        unrelated="allow_unrelated: true  # some were not trained from the base\n" if allow_unrelated else "",
        evaluations=evaluations,
        why_budget=why_budget,
    )
    write_text(output, text)
    say(f"wrote {output}: {counted(count, 'gene')}, {counted(evaluations, 'evaluation')} ({why_budget})")
    say(f"next: evomerge plan {quote(str(output))}")


@dataclass(frozen=True)
class Genes:
    """Which coefficients are searched.

    Attributes
    ----------
    layers_per_group
        Layers that share a weight.
    modules
        Groups of modules with weights of their own; empty: none.
    count
        Genes in all, if each layer has all modules.
    """

    layers_per_group: int
    modules: tuple[str, ...]
    count: int

    @classmethod
    def of(cls, num_layers: int, experts: int, modules: tuple[str, ...], most: int) -> Genes:
        """Return the finest groups of layers that have at most `most` genes, or one group."""
        per_group = experts * max(1, len(modules))
        groups = max(1, min(num_layers, (most - 2 * experts) // per_group))  # embeddings and head have weights, too
        layers = math.ceil(num_layers / groups)
        return cls(layers, modules, per_group * math.ceil(num_layers / layers) + 2 * experts)


def modules_of(layout: ModelLayout) -> tuple[str, ...]:
    """Return the modules that a layer's weights can be divided into; empty where none is known by name."""
    known = [name for name, child in (("attention", layout.attention), ("mlp", layout.mlp)) if child is not None]
    return (*known, "other") if known else ()


def _held_out(tasks: Sequence[str], include_path: Sequence[str]) -> dict[str, Any]:
    """Return how items are held out: a test split beside the search items where all tasks have one, else a half."""
    ways: list[dict[str, Any]] = [{"held_out": "test"}, {"held_out": 0.5}, {"held_out": 0.5, "allow_test_split": True}]
    for way in ways[:-1]:
        fitness = {"tasks": [{"task": task} for task in tasks], "include_path": list(include_path), **way}
        try:
            TaskSuite.load(FitnessConfig.model_validate(fitness), 0)
            return way
        except TaskError:
            continue
    return ways[-1]


def _why_held_out(fitness: Mapping[str, Any]) -> str:
    if fitness["held_out"] == "test":
        return "the tasks also have a test split"
    return "a fraction of the items, or the name of another split"


def _problem(draft: Mapping[str, Any], genes: Genes) -> Problem:
    modules = list(genes.modules) or "all"
    space = {"method": "task_arithmetic", "layers_per_group": genes.layers_per_group, "modules": modules}
    return Problem(load_mapping({**draft, "space": space}, ()), scan=False)


def _budget(problem: Problem) -> tuple[int, str]:
    """Return how many evaluations an hour is enough for, within bounds, and why."""
    fewest, most = EVALUATIONS
    try:
        worker = local_worker(problem).ready()
        request = Request(problem.space.decode(problem.space.start), tuple(problem.subset))
        started = time.perf_counter()
        evaluation = worker.evaluate(request)
        seconds = time.perf_counter() - started
    except (OSError, RuntimeError, ValueError) as error:
        return most, f"the time of one could not be measured: {reason(error)}"
    if evaluation.status == "failed":
        return most, f"the time of one could not be measured: {evaluation.reason}"
    count = min(most, max(fewest, int(HOUR / seconds) // 10 * 10))
    return count, f"one takes {duration(seconds)} here, so all take about {duration(count * seconds)}"


def init_from(genome: Path, output: Path, include_path: Sequence[Path]) -> None:
    """Write the search file that means what a genome of mergekit-evolve means, and say what has no counterpart."""
    for sentence in from_genome(genome, output, include_path):
        say(sentence, stderr=True)
    say(f"wrote {output}; next: evomerge plan {quote(str(output))}")


def _reference(model: str) -> str:
    """Return local folders as absolute paths: the search file may be elsewhere."""
    return str(local_or_hub(model))


def _include(paths: Sequence[Path]) -> list[str]:
    return [f"  include_path: {_text([str(path.resolve()) for path in paths])}\n"] if paths else []


def _text(value: str | list[str]) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
