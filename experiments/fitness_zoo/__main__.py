"""``python -m experiments.fitness_zoo`` measures what cheap fitness costs a search; ``--quick`` runs tiny ones.

The same search of the zoo's target four ways, for several seeds: every candidate answers all items; 20 items and their
mean; 20 items and the default estimator, for which the experts answer all items once; the same with racing. All end in
the same way: among the best fifteen by search score and the distribution's mean, the result is chosen by further search
items and scored on the held-out ones. All answers except those to held-out items are counted: those of experts,
candidates and finalists.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run
from evomerge.search.final_evaluation import FinalEvaluation
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.racing.pool import racing
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.scoring_workers import start_pool
from experiments.harness import Experiment, Results

SEARCH = Path(__file__).parent / "search.yaml"
# Nine whole generations, and the distribution's mean twice.
FEW = ("fitness.subset.items=20", "budget.evaluations=146", "strategy.population=16")
ARMS: dict[str, tuple[str, ...]] = {
    "all items": ("fitness.subset.items=all", "budget.evaluations=120", "strategy.population=12"),
    "20 items, mean": (*FEW, "fitness.subset.estimator=mean", "fitness.subset.rotate=true"),
    "20 items, inherited": (*FEW, "fitness.subset.estimator=inherited"),
    "20 items, inherited, racing": (
        *FEW,
        "fitness.subset.estimator=inherited",
        "fitness.racing={error: 0.55, block: 7, keep: 0.5}",
    ),
}
QUICK = ("budget.evaluations=8", "strategy.population=4")


@dataclass(frozen=True)
class Outcome:
    """What one search found and what it cost.

    `held_out` with its `standard_error`; `asked` items of candidates, `items` of experts, candidates and finalists
    together; `stopped` candidates; `optimism`: score on the search items minus held-out score.
    """

    arm: str
    seed: int
    held_out: float
    standard_error: float
    candidates: int
    stopped: int
    asked: int
    items: int
    optimism: float


def run(arm: str, seed: int, extra: Sequence[str] = ()) -> Outcome:
    """Search once."""
    config = load(SEARCH, [*ARMS[arm], *extra, f"seed={seed}"])
    problem = Problem(config, scan=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.create(Path(folder) / "run", config.to_yaml(), {}) as log,
    ):
        pool = start_pool(problem)
        plan = problem.evaluation_plan(RecordedScorer(log, RunHistory(log.events()), pool))
        search = Search(log, problem.space, problem.strategy(), config.budget, plan)
        search.search(racing(pool, config, search))
        result = FinalEvaluation(log, problem, search, pool).evaluate()
        history = RunHistory(log.events())
    scored = [evaluation for (purpose, _), evaluation in history.reference_scores.items() if purpose == "held_out"]
    held_out = scored[0]
    founders = {identity for identity, asked in history.asked.items() if asked.candidate.kind == "founder"}
    told = [told for told in history.told.values() if not told.cached and told.candidate not in founders]
    apart = sum(len(each.items) for each in scored)
    asked = sum(len(each.evaluation.items) for each in told)
    return Outcome(
        arm=arm,
        seed=seed,
        held_out=held_out.fitness,
        standard_error=held_out.standard_error,
        candidates=history.evaluations,
        stopped=sum(each.evaluation.status == "stopped" for each in told),
        asked=asked,
        items=history.item_evaluations - apart,
        optimism=result.selection_bias,
    )


def tables(results: Results) -> list[str]:
    """Return the README's table: means over the seeds, with the spread between seeds."""
    outcomes = [Outcome(**outcome) for outcome in results["outcomes"]]
    groups = {arm: [outcome for outcome in outcomes if outcome.arm == arm] for arm in ARMS}
    base = statistics.mean(outcome.items for outcome in groups["all items"])
    lines = [
        "| search | held-out score | by seed | optimism | candidates | items of candidates | items in all | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in groups.items():
        scores = [100 * outcome.held_out for outcome in found]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 100 * found[0].standard_error
        items = statistics.mean(outcome.items for outcome in found)
        lines.append(
            f"| {arm} | {statistics.mean(scores):.1f} ± {error:.1f} | {', '.join(f'{score:.1f}' for score in scores)} "
            f"| {100 * statistics.mean(outcome.optimism for outcome in found):+.1f} | {found[0].candidates} "
            f"| {statistics.mean(outcome.asked for outcome in found):,.0f} | {items:,.0f} | {items / base:.3f} |"
        )
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    outcomes = [Outcome(**outcome) for outcome in results["outcomes"]]
    groups = {arm: [outcome for outcome in outcomes if outcome.arm == arm] for arm in ARMS}
    spreads = [100 * statistics.stdev(o.held_out for o in own) for own in groups.values()]
    cost = {arm: statistics.mean(o.items for o in own) for arm, own in groups.items()}
    asked = {arm: statistics.mean(o.asked for o in own) for arm, own in groups.items()}
    default, raced = "20 items, inherited", "20 items, inherited, racing"
    return {
        "item_error": f"{100 * statistics.mean(o.standard_error for o in outcomes):.1f}",
        "spread": f"{min(spreads):.0f} to {max(spreads):.0f}",
        "share": f"{100 * cost[default] / cost['all items']:.0f} %",
        "saved": f"{100 * (1 - asked[raced] / asked[default]):.0f} %",
        "seeds": str(len(groups[default])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print the table and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, eight candidates")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    given = parser.parse_args(arguments)
    import datasets
    import torch

    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    out = EXPERIMENT.destination(given)
    results: Results = {"outcomes": []}
    for seed in given.seeds[:1] if given.quick else given.seeds:
        for arm in ARMS:
            results["outcomes"].append(asdict(run(arm, seed, QUICK if given.quick else ())))
            print(json.dumps(results["outcomes"][-1]), flush=True)
        EXPERIMENT.write(out, results)  # what is there after each seed is whole
    print("\n" + tables(results)[0])
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="outcomes", indent=None, figures=figures)

if __name__ == "__main__":
    main()
