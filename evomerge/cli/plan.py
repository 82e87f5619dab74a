"""`evomerge plan`: everything a search checks before it starts, and what it will cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from evomerge.cli.printing import console, duration, grid, size
from evomerge.config.load import load, located
from evomerge.config.search_file import SearchConfig
from evomerge.merging.engine.placement import Choice
from evomerge.search.loop import SearchError
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request, Worker
from evomerge.workers.start import LocalWorker
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

TIMED = 2
"""Candidates scored to estimate the time of one; the quicker counts."""
GENERATIONS = 10
"""Fewer generations than this are hardly a search."""
SHOWN_GENES = 40


def plan(config_file: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print genes, memory, bytes and estimated time per candidate, and whether the budget suffices."""
    with located(config_file, overrides):
        problem = Problem(load(config_file, overrides))
        worker = local_worker(problem)
        summary = _summary(problem, worker)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    out = console()
    print_genes(out, summary["genes"])
    footprint, items = summary["footprint"], summary["items"]
    out.print(
        f"\nmodels: {footprint['parameters']:,} parameters each; sources mapped {size(footprint['source_bytes'])}, "
        f"prepared {size(footprint['prepared_bytes'])}, resident model {size(footprint['resident_bytes'])}"
    )
    out.print(
        f"merging holds at most {size(footprint['peak_bytes'])}: the sources' pages, prepared state, 1.3 models and "
        f"{size(footprint['buffer_bytes'])} of buffers"
    )
    out.print(_placed(worker.placement))
    out.print(summary["chosen"] or f"strategy {summary['strategy']}", soft_wrap=True)
    out.print(f"scored before it: {', '.join(summary['founders'])}", soft_wrap=True)
    out.print(f"per candidate: {size(footprint['touched_bytes'])} touched, {items['asked']} items asked")
    steps = summary["steps"]
    if steps["count"]:
        seconds = duration(steps["seconds"])
        out.print(f"per step by gradients: {steps['items']} items asked, {seconds}; {steps['count']} steps")
        out.print(
            f"a step holds at most {size(steps['peak_bytes'])}: what merging holds, one tensor's gradient at a time "
            f"({size(steps['gradient_bytes'])}), and {size(steps['activation_bytes'])} of activations ({steps['how']})"
        )
    out.print(
        f"measured: merge {duration(summary['seconds']['merge'])}, scoring {duration(summary['seconds']['score'])}; "
        f"{summary['evaluations']} evaluations take about {duration(summary['estimated_seconds'])}"
    )
    out.print(f"items: {items['search']} for searching, {items['held_out']} held out")
    for sentence in summary["notes"] or ["the budget suffices"]:
        out.print(f"note: {sentence}")


def genes_of(space: SearchSpace) -> list[dict[str, Any]]:
    """Return the genes as plain data."""
    return [{"name": gene.name, "low": gene.low, "high": gene.high, "start": gene.start} for gene in space.genes]


def print_genes(out: Console, genes: Sequence[Mapping[str, Any]]) -> None:
    """Print the number of genes, and the first of them."""
    rows = [[g["name"], f"{g['low']:g}", f"{g['high']:g}", f"{g['start']:g}"] for g in genes[:SHOWN_GENES]]
    out.print(f"{len(genes)} genes")
    out.print(grid(["gene", "low", "high", "start"], rows))
    if len(genes) > SHOWN_GENES:
        out.print(f"... and {len(genes) - SHOWN_GENES} more")


def _summary(problem: Problem, local: LocalWorker) -> dict[str, Any]:
    config, space = problem.config, problem.space
    population = problem.resolved().strategy.build(space, config.seed).population
    recipe = space.decode(space.start)
    worker = local.ready()
    total, evaluation = _timed(worker, Request(recipe, tuple(problem.subset)))
    evaluations = config.budget.evaluations
    strategy = problem.resolved().strategy
    limit = strategy.gradient_steps
    steps = evaluations if limit is None else min(limit, evaluations)
    step_items = problem.step_items(0) if steps else ()
    genotype = tuple(space.start.tolist())
    step = _timed(worker, Request(recipe, step_items, gradient_at=genotype))[0] if steps else 0.0
    return {
        "genes": genes_of(space),
        "strategy": strategy.kind,
        "chosen": problem.chosen,
        "founders": list(dict.fromkeys(founder.entry.name for founder in problem.founders)),
        "population": population,
        "evaluations": evaluations,
        "items": {
            "asked": len(problem.subset),
            "search": len(problem.search_items),
            "held_out": len(problem.held_out_items),
        },
        "footprint": asdict(local.footprint) | {"peak_bytes": local.footprint.peak_bytes},
        "placement": asdict(local.placement),
        "seconds": {"merge": evaluation.seconds["merge"], "score": evaluation.seconds["score"], "total": total},
        "steps": {"count": steps, "items": len(step_items), "seconds": step} | _step_memory(local),
        "estimated_seconds": step * steps + total * (evaluations - steps + len(problem.founders)),
        "start": {"score": evaluation.fitness, "standard_error": evaluation.standard_error},
        "notes": [*problem.warnings, *rotation(config, problem.asks_few), *_budget_notes(population, problem, total)],
    }


def _step_memory(local: LocalWorker) -> dict[str, Any]:
    """Return what a step by gradients holds; nothing where there are none."""
    memory = local.step_memory
    if memory is None:
        return {}
    return {
        "peak_bytes": local.footprint.peak_bytes + memory.total,
        "gradient_bytes": memory.gradients,
        "activation_bytes": memory.activations,
        "how": memory.how,
    }


def _timed(worker: Worker, request: Request) -> tuple[float, Evaluation]:
    """Return the seconds and the evaluation of the quicker of `TIMED` times.

    Raises
    ------
    SearchError
        If the start cannot be scored.
    """
    timed = []
    for _ in range(TIMED):
        started = time.perf_counter()
        evaluation = worker.evaluate(request)
        if evaluation.status == "failed":
            raise SearchError(f"the start point cannot be scored: {evaluation.reason}; fix that before a search")
        timed.append((time.perf_counter() - started, evaluation))
    return min(timed, key=lambda pair: pair[0])


def _placed(choice: Choice) -> str:
    """Return where the sources are kept, and how much memory was free when that was decided."""
    free = [] if choice.free.device is None else [f"{size(choice.free.device)} free on {choice.device}"]
    free.append(f"{size(choice.free.host)} of host memory free")
    return f"placement {choice.asked}: sources {choice.placement} (worker on {choice.device}; {', '.join(free)})"


def too_few(evaluations: int, population: int) -> list[str]:
    """Return a note if the budget is too small for the space."""
    wanted = GENERATIONS * population
    if evaluations >= wanted:
        return []
    return [
        f"{evaluations} evaluations are fewer than {GENERATIONS} generations of {population}; set "
        f"budget.evaluations to {wanted} or more, or reduce the genes (space.layers_per_group, space.modules)"
    ]


def rotation(config: SearchConfig, asks_few: bool) -> list[str]:
    """Return a note if an archive compares members that have answered different items."""
    few, strategy = config.fitness.subset, config.strategy
    if not (asks_few and few.rotates() and strategy.keeps_archive):
        return []
    how = f" ({strategy.archive_compares})" if strategy.archive_compares else ""
    return [
        f"members of {strategy.kind}'s archive answer different items{how}; "
        "fitness.subset.rotate: false asks all of them the same items"
    ]


def _budget_notes(population: int, problem: Problem, seconds: float) -> list[str]:
    """Return notes if the evaluations are too few for the space, or the hours for the evaluations."""
    budget = problem.config.budget
    takes_steps = problem.config.strategy.items_per_step > 0  # which come in no generations
    notes = [] if takes_steps else too_few(budget.evaluations, population)
    if budget.hours is not None and seconds * budget.evaluations > budget.hours * 3600:
        reached = int(budget.hours * 3600 / seconds)
        notes.append(f"{budget.hours:g} hours end the search after about {reached} of {budget.evaluations} evaluations")
    return notes
