"""`evomerge plan`: everything a search checks before it starts, and what it will cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import join
from typing import Any

from rich.console import Console
from rich.status import Status

from evomerge.cli.printing import console, duration, grid, only_json, size
from evomerge.config.keyed import keyed
from evomerge.config.load import load, located
from evomerge.config.search_file import SearchConfig
from evomerge.files.messages import counted, printable
from evomerge.merging.engine.placement import Choice
from evomerge.runs.bill import TIMED
from evomerge.search.forecast.rehearsal import forecast
from evomerge.search.forecast.speed import measure, workers_of
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.start import LocalWorker
from search_spaces.spaces.space import SearchSpace

GENERATIONS = 10
"""Fewer generations than this are hardly a search."""
SHOWN_GENES = 12


def plan(config_file: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print genes, memory, bytes and estimated time per candidate, and whether the budget suffices."""
    shown = console(stderr=True)
    started = time.perf_counter()
    config = load(config_file, overrides)
    with only_json(as_json), located(config_file, overrides), keyed(config), shown.status("opening") as status:
        problem = Problem(config, opening=lambda what: status.update(f"opening {printable(what)}"))
        worker = local_worker(problem)
        status.update("preparing a worker")
        worker.ready()
        opened = time.perf_counter() - started
        status.update("timing a candidate, and rehearsing the search with made-up answers")
        summary = _summary(problem, worker, opened)
        worker.worker.close()
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
        f"merging needs at most {size(footprint['peak_bytes'])}: the sources' pages, prepared state, 1.3 models and "
        f"{size(footprint['buffer_bytes'])} of buffers"
    )
    if footprint["calibration_bytes"]:
        out.print(
            f"measuring models on calibration texts needs at most {size(footprint['calibration_bytes'])} beside one "
            "model and one window's activations, and nothing once it is in the cache",
            soft_wrap=True,
        )
    if footprint["packed_bytes"]:
        out.print(
            f"generating texts needs a packed copy of the linear layers' weights: {size(footprint['packed_bytes'])} "
            "beside the model",
            soft_wrap=True,
        )
    out.print(_placed(worker.placement))
    for sentence in summary["engine"]:
        out.print(sentence, soft_wrap=True)
    out.print(summary["chosen"] or f"strategy {summary['strategy']}", soft_wrap=True)
    out.print(f"scored before it: {', '.join(summary['founders'])}", soft_wrap=True)
    out.print(f"per candidate: {size(footprint['touched_bytes'])} touched, {counted(items['asked'], 'item')} asked")
    steps = summary["steps"]
    if steps["count"]:
        seconds = duration(steps["seconds"])
        asked, count = counted(steps["items"], "item"), counted(steps["count"], "step")
        out.print(f"per gradient step: {asked} asked, {seconds}; {count}")
        out.print(
            f"a step needs at most {size(steps['peak_bytes'])}: the memory of merging, one tensor's gradient at a time "
            f"({size(steps['gradient_bytes'])}), and {size(steps['activation_bytes'])} of activations ({steps['how']})"
        )
    out.print(
        f"measured: merge {duration(summary['seconds']['merge'])}, scoring {duration(summary['seconds']['score'])}; "
        f"about {duration(summary['search_seconds'])} for {counted(summary['evaluations'], 'evaluation')}"
    )
    print_bill(out, summary)
    out.print(f"items: {items['search']} for searching, {items['held_out']} held out")
    for sentence in summary["notes"] or ["the budget suffices"]:
        out.print(f"note: {sentence}")
    options = [part for override in overrides for part in ("--set", override)]
    out.print(f"next: evomerge search {join([str(config_file), *options])}", soft_wrap=True)


def _show(status: Status, text: str) -> None:
    status.update(printable(text))


def genes_of(space: SearchSpace) -> list[dict[str, Any]]:
    """Return the genes as plain data."""
    return [{"name": gene.name, "low": gene.low, "high": gene.high, "start": gene.start} for gene in space.genes]


def print_genes(out: Console, genes: Sequence[Mapping[str, Any]]) -> None:
    """Print the number of genes, and the first of them."""
    rows = [[g["name"], f"{g['low']:g}", f"{g['high']:g}", f"{g['start']:g}"] for g in genes[:SHOWN_GENES]]
    out.print(counted(len(genes), "gene"))
    out.print(grid(["gene", "low", "high", "start"], rows))
    if len(genes) > SHOWN_GENES:
        out.print(f"... and {len(genes) - SHOWN_GENES} more (--json has all)")


def print_bill(out: Console, summary: Mapping[str, Any]) -> None:
    """Print what each stage asks and how long it takes, and the sums."""
    stages = summary["stages"]
    rows = [
        [name, f"{line['requests']:.0f}", _count(line), duration(line["seconds"])]
        for name, line in stages.items()
        if line["high"]
    ]
    ends = [sum(line[end] for line in stages.values()) for end in ("low", "high")]
    total = {"answers": summary["answers"], "low": ends[0], "high": ends[1]}
    models = sum(line["requests"] for line in stages.values())
    rows.append(["opening", "", "", duration(summary["seconds"]["opening"])])
    rows.append(["in all", f"{models:.0f}", _count(total), duration(summary["estimated_seconds"])])
    out.print(grid(["stage", "models", "answers", "time"], rows))
    if ends[0] < ends[1]:
        out.print(
            "ranges: what depends on the scores, from a search rehearsed with made-up answers "
            "(races, recipes proposed again, which finalists win)",
            soft_wrap=True,
        )
    if summary["workers"] > 1:
        out.print(f"times are for {summary['workers']} workers, each as fast as the one measured here")


def _count(line: Mapping[str, Any]) -> str:
    """Return a number of answers, with its range where it depends on scores."""
    around = "" if line["low"] == line["high"] else f" ({line['low']:,} .. {line['high']:,})"
    return f"{line['answers']:,.0f}{around}"


def _summary(problem: Problem, local: LocalWorker, opened: float) -> dict[str, Any]:
    config, strategy = problem.config, problem.resolved().strategy
    population = strategy.build(problem.space, config.seed).population
    speed = measure(problem, local.ready())
    workers = workers_of(config.workers)
    evaluations = config.budget.evaluations
    notes = _budget_notes(population, problem, speed.candidate / workers)
    bill = forecast(problem, evaluations=reached(config, speed.candidate / workers))
    seconds = speed.seconds(bill, workers)
    limit = strategy.gradient_steps
    steps = evaluations if limit is None else min(limit, evaluations)
    return {
        "genes": genes_of(problem.space),
        "strategy": strategy.named_kind,
        "chosen": problem.chosen,
        "founders": list(dict.fromkeys(founder.entry.name for founder in problem.founders)),
        "population": population,
        "evaluations": evaluations,
        "items": {
            "asked": len(problem.subset),
            "search": len(problem.search_items),
            "held_out": len(problem.held_out_items),
        },
        "footprint": asdict(local.footprint)
        | {"peak_bytes": local.footprint.peak_bytes, "packed_bytes": local.packed_bytes},
        "placement": asdict(local.placement),
        "engine": local.engine_notes(),
        "seconds": {
            "opening": opened,
            "merge": speed.start.seconds["merge"],
            "score": speed.start.seconds["score"],
            "total": speed.candidate,
        },
        "steps": {"count": steps, "items": len(problem.steps.items(0)) if steps else 0, "seconds": speed.step}
        | _step_memory(local),
        "workers": workers,
        "stages": {name: asdict(line) | {"seconds": seconds[name]} for name, line in bill.lines.items()},
        "answers": bill.answers,
        "search_seconds": sum(seconds[name] for name in TIMED),
        "estimated_seconds": opened + sum(seconds.values()),
        "start": {"score": speed.start.fitness, "standard_error": speed.start.standard_error},
        "notes": [*problem.warnings, *rotation(config, problem.asks_few), *notes],
    }


def _step_memory(local: LocalWorker) -> dict[str, Any]:
    """Return what a gradient step holds; nothing where there are none."""
    memory = local.step_memory
    if memory is None:
        return {}
    return {
        "peak_bytes": local.footprint.peak_bytes + memory.total,
        "gradient_bytes": memory.gradients,
        "activation_bytes": memory.activations,
        "how": memory.how,
    }


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
        f"{counted(evaluations, 'evaluation')}: fewer than {GENERATIONS} generations of {population}; set "
        f"budget.evaluations to {wanted} or more, or reduce the genes (space.layers_per_group, space.modules)"
    ]


def rotation(config: SearchConfig, asks_few: bool) -> list[str]:
    """Return a note if an archive compares members that have answered different items."""
    few, strategy = config.fitness.subset, config.strategy
    if not (asks_few and few.rotates() and strategy.keeps_archive):
        return []
    how = f" ({strategy.archive_compares})" if strategy.archive_compares else ""
    return [
        f"members of {strategy.named_kind}'s archive answer different items{how}; "
        "fitness.subset.rotate: false asks all of them the same items"
    ]


def reached(config: SearchConfig, seconds: float) -> int:
    """Return how many evaluations the hours of the budget are enough for, at most those of the budget."""
    budget = config.budget
    if budget.hours is None:
        return budget.evaluations
    return max(1, min(budget.evaluations, int(budget.hours * 3600 / max(seconds, 1e-9))))


def _budget_notes(population: int, problem: Problem, seconds: float) -> list[str]:
    """Return notes if the evaluations are too few for the space, or the hours for the evaluations."""
    budget = problem.config.budget
    takes_steps = problem.config.strategy.items_per_step > 0  # which come in no generations
    notes = [] if takes_steps else too_few(budget.evaluations, population)
    enough = reached(problem.config, seconds)
    if enough < budget.evaluations:
        of = counted(budget.evaluations, "evaluation")
        notes.append(f"budget.hours {budget.hours:g} ends the search after about {enough} of {of}")
    return notes
