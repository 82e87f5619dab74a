"""`evomerge plan --offline`: what follows from a search file without its models' weights and its tasks' data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig

from evomerge.cli.plan import genes_of, print_genes, rotation, too_few
from evomerge.cli.printing import console, size
from evomerge.config.errors import ConfigError
from evomerge.config.keyed import keyed
from evomerge.config.load import load, located
from evomerge.config.names import check_names, check_tasks
from evomerge.config.search_file import SearchConfig
from evomerge.files.messages import counted, reason
from evomerge.files.references import local_or_hub
from evomerge.merging.sources.architecture import layout_of_module, meta_module
from evomerge.search.auto_strategy import choose
from evomerge.search.problem import check_workers, largest_error
from evomerge.search.warm_start import load_warm_start
from evomerge.strategies import Strategy, StrategyConfig
from evomerge.trackers.base import check_trackers
from fitness.config import FitnessConfig
from fitness.tasks.offline import TaskDescription, describe_tasks
from search_spaces.recipes.references import parts
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.derivatives import ChainRule
from search_spaces.spaces.registry import build_space
from search_spaces.spaces.space import SearchSpace

SUPPOSED = 100
"""Items per task where all are asked: how many a task has is not known here. Any number below 2,500 is noisy."""
STORED_BYTES = 2
"""Of one parameter on the hub, as a rule."""


def plan_offline(config_file: Path, overrides: Sequence[str], architecture: Path | None, as_json: bool) -> None:
    """Print genes, population, answers, and what a search would download."""
    config = load(config_file, overrides)
    with located(config_file, overrides), keyed(config):
        summary = offline_plan(config, architecture).summary
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    out = console()
    print_genes(out, summary["genes"])
    out.print(f"\nmodels: {summary['parameters']:,} parameters each, if they are like {summary['architecture']}")
    asked = "all search items" if summary["items"] is None else counted(summary["items"], "item")
    answers = "" if summary["answers"] is None else f", {counted(summary['answers'], 'answer')} of candidates"
    out.print(summary["chosen"] or f"strategy {summary['strategy']}", soft_wrap=True)
    out.print(
        f"{counted(summary['evaluations'], 'evaluation')}, {summary['population']} at a time, of {asked} each{answers}"
    )
    out.print(
        "what sources, finalists and held-out rows answer, and how long all takes, depends on the tasks' data and the "
        "models' weights: `evomerge plan` without --offline says it",
        soft_wrap=True,
    )
    for task in summary["tasks"]:
        data = "" if task["data"] is None else f", from the data set {task['data']}"
        out.print(f"task {task['name']}: {task['metric'] or 'its first metric'}{data}")
    for name in summary["downloads"]:
        out.print(f"to download, unless cached: {name}, about {size(STORED_BYTES * summary['parameters'])}")
    for sentence in summary["notes"]:
        out.print(f"note: {sentence}")


class OfflinePlan(NamedTuple):
    """What a search file means, as plain data; its space, and its strategy at the start."""

    summary: dict[str, Any]
    space: SearchSpace
    strategy: Strategy


def offline_plan(config: SearchConfig, architecture: Path | None) -> OfflinePlan:
    """Return what the search file means for models like `architecture`, a config.json; None: the base's.

    Raises
    ------
    ConfigError
        If the base's configuration is not on this machine, or the strategy does not fit.
    RecipeError
        If the space does not fit the models.
    TaskError
        If lm-eval has no such task, metric or filter.
    """
    check_names(config)
    check_workers(config)
    check_trackers(config.trackers)
    module = meta_module(_architecture(config, architecture))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    context = SpaceContext(config.models, layout_of_module(module), sizes, out_dtype=config.out_dtype, seed=config.seed)
    space = config.stamped(build_space(config.space, context))
    space.decode(space.start)
    tasks = _tasks(config.fitness)
    names = [task.name for task in tasks]
    check_tasks(config, names)
    # Only `auto` depends on derivatives, and finding them takes seconds where there are many models.
    derivatives = config.strategy.kind != "auto" or ChainRule(space, context.layout).searchable().any()
    obstacle = None if derivatives else "no gene of this space has derivatives"
    items = config.fitness.subset.items
    supposed = dict.fromkeys(names, SUPPOSED if items == "all" else items)
    config, chosen = choose(config, space, obstacle, supposed)
    strategy = _strategy(config, space)
    evaluations, items = config.budget.evaluations, config.fitness.subset.items
    asked = None if items == "all" else items * len(tasks)
    references = [part for reference in config.models.values() for part in parts(reference) if part is not None]
    summary = {
        "genes": genes_of(space),
        "strategy": config.strategy.named_kind,
        "chosen": f"{chosen}, if the tasks have right answers" if chosen and obstacle is None else chosen,
        "population": strategy.population,
        "evaluations": evaluations,
        "items": asked,
        "answers": None if asked is None else asked * evaluations,
        "architecture": config.models[config.base] if architecture is None else str(architecture),
        "parameters": sum(sizes.values()),
        "tasks": [asdict(task) for task in tasks],
        "downloads": [part for part in dict.fromkeys(references) if isinstance(local_or_hub(part), str)],
        "notes": [*rotation(config, asked is not None), *too_few(evaluations, strategy.population)],
    }
    return OfflinePlan(summary, space, strategy)


def _architecture(config: SearchConfig, path: Path | None) -> PretrainedConfig:
    if path is not None and not path.exists():
        raise ConfigError(f"--architecture {path}: no such file; name a config.json like the models'")
    base = parts(config.models[config.base])[0] if path is None else str(path)
    place = local_or_hub(base)
    name, _, revision = place.partition("@") if isinstance(place, str) else (str(place), "", "")
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision or None, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{base}: its configuration is not on this machine ({reason(error)}); give a config.json like the "
            "models' with --architecture FILE"
        ) from None


def _tasks(fitness: FitnessConfig) -> list[TaskDescription]:
    if fitness.kind == "python":
        return [TaskDescription(task.task, f"returned by {fitness.function}", None) for task in fitness.tasks]
    return describe_tasks(fitness)


def _strategy(config: SearchConfig, space: SearchSpace) -> Strategy:
    items = config.fitness.subset.items
    weights = {task.task: abs(task.weight) for task in config.fitness.tasks}
    noise = largest_error(weights, dict.fromkeys(weights, SUPPOSED if items == "all" else items))

    def resolved(strategy: StrategyConfig) -> StrategyConfig:
        return strategy.resolved(space, noise=noise, evaluations=config.budget.evaluations)

    try:
        start = load_warm_start(config.strategy, config, space, resolved(config.strategy))
        return resolved(start.strategy).build(space, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
