"""What a run says about a recipe that it has scored, for the recipe's model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.files.messages import counted
from evomerge.merging.output.provenance import Provenance, TaskFacts
from evomerge.runs.environment import Environment
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result, read_rows
from evomerge.runs.run import Run
from evomerge.strategies.registry import named_kind
from fitness.tasks.identity import ItemsIdentity, TaskIdentity
from fitness.tasks.loss_metrics import LOSS_METRICS
from search_spaces.recipes.recipe import Recipe

RESULT = "result.json"


def provenance(path: Path, recipe: Recipe) -> Provenance | None:
    """Return what a run says about a recipe; None if the run has not scored it.

    Parameters
    ----------
    path
        The run directory; the run may still be searching.
    recipe
        As the run or `evomerge export` has written it: two spellings of one merge are the same recipe.

    Raises
    ------
    RunError
        If it is not a run directory.
    LogError
        If the run is damaged.
    """
    with Run.read(path) as run:
        history, environment = RunHistory(run.events()), run.environment()
    result = Result.read(path / RESULT) if (path / RESULT).is_file() else None
    row = "" if result is None else _row(path, result, recipe)
    origin = _origin_of_row(result, row) if result is not None and row else _origin_of_candidate(history, recipe)
    if not origin:
        return None
    return Provenance(
        origin,
        row,
        verdict="" if result is None or result.verdict is None else result.verdict.sentence,
        rows=() if result is None else tuple(result.held_out),
        notes=() if result is None else tuple(result.notes),
        names={reference: name for name, reference in environment.references.items()},
        tasks=tuple(_task(name, task, environment.config) for name, task in environment.items.items()),
        settings=_settings(environment, history),
        versions={"evomerge": environment.evomerge} | environment.packages,
    )


def _row(path: Path, result: Result, recipe: Recipe) -> str:
    """Return the row of the final table that has the recipe: the recommended one where several have; empty: none."""
    rows = [name for name, own in read_rows(path).items() if own.hash == recipe.hash]
    recommended = "" if result.verdict is None else result.verdict.recommended
    return recommended if recommended in rows else next(iter(rows), "")


def _origin_of_row(result: Result, row: str) -> str:
    kind = next(each.kind for each in result.held_out if each.name == row)
    what = {"found": "the recipe that the search found", "mean": "the strategy's own guess", "front": "on the front"}
    said = f"row {row} of the table" + (f", {what[kind]}" if kind in what else ", a recipe that needs no search")
    recommended = row if result.verdict is None else result.verdict.recommended
    return f"{said}." if recommended == row else f"{said}; the search recommends {recommended} instead."


def _origin_of_candidate(history: RunHistory, recipe: Recipe) -> str:
    """Return a sentence about a candidate that is in no final table; empty: the recipe is none."""
    ranking = history.ranking()
    place = next((at for at, one in enumerate(ranking) if history.asked[one].recipe == recipe.hash), None)
    if place is None:
        return ""
    evaluation = history.evaluation(ranking[place])
    return (
        f"candidate {ranking[place]}, rank {place + 1} of {len(ranking)} by the score on search items "
        f"({evaluation.value:.3f} with standard error {evaluation.standard_error:.3f}, "
        f"{counted(len(evaluation.items), 'item')}). "
        "The rank follows from this score, which is therefore biased upward; the recipe was not scored on held-out "
        "items."
    )


def _task(name: str, task: TaskIdentity, config: Mapping[str, Any]) -> TaskFacts:
    entries = {entry["task"]: entry for entry in config["fitness"]["tasks"]}
    metric = task.settings.get("metric", "")
    negated = task.settings.get("higher_is_better") == "false"
    return TaskFacts(
        name,
        metric,
        lower_is_better=negated or metric.partition(",")[0] in LOSS_METRICS,
        weight=f"{entries[name]['weight']:g}" if name in entries else "a share of its group's",
        shots=task.settings.get("num_fewshot", "0"),
        search=_counts(task.search),
        held_out=_counts(task.held_out),
    )


def _counts(items: ItemsIdentity) -> str:
    """Return how many items come from which splits."""
    splits = Counter(identity.rpartition("/")[0] for identity in items.ids.split())
    return ", ".join(f"{count} of {split}" for split, count in splits.items())


def _settings(environment: Environment, history: RunHistory) -> dict[str, str]:
    config = environment.config
    fitness = config["fitness"]
    held_out = fitness["held_out"]
    return {
        "space": config["space"]["kind"],
        "strategy": named_kind(config["strategy"]),
        "candidates scored": str(history.evaluations),
        "answers to search items": str(history.search_items),
        "items per candidate and task": str(fitness["subset"]["items"]),
        "held out": f"the {held_out} split" if isinstance(held_out, str) else f"{held_out:.0%} of the search split",
        "chat template": "used" if fitness["apply_chat_template"] else "not used",
        "seed": str(config["seed"]),
    }
