"""``python -m experiments.quickstart`` runs the quickstart's search with several seeds; ``--quick`` one short search.

The seed decides which items each step is asked. Of each search are kept the held-out scores of the found recipe and of
the best alternative, the answers that were asked before the held-out ones, and the seconds of searching.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import evomerge
from experiments.harness import Experiment, Results
from experiments.machine import machine

SEARCH_FILE = Path(__file__).parent / "search.yaml"


def run(seed: int, extra: Sequence[str] = ()) -> Results:
    """Search once and return what the table needs."""
    with tempfile.TemporaryDirectory() as folder:
        result = evomerge.search(SEARCH_FILE, run=Path(folder) / "run", overrides=[f"seed={seed}", *extra])
    found, *others = result.held_out
    best = max((row for row in others if row.kind not in ("mean", "front", "ensemble")), key=lambda row: row.score)
    assert result.verdict is not None
    return {
        "seed": seed,
        "found": found.score,
        "best alternative": best.score,
        "its name": best.name,
        "outcome": result.verdict.outcome,
        "answers": result.search_items,
        "seconds": round(sum(result.seconds.values()), 1),
    }


def tables(results: Results) -> list[str]:
    """Return the README's table: a line for each seed, and the medians."""
    searches = results["searches"]
    lines = [
        "| seed | found | best alternative | verdict | answers before the held-out ones | seconds of searching |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['seed']} | {one['found']:.3f} | {one['best alternative']:.3f} ({one['its name']}) | {one['outcome']} "
        f"| {one['answers']:,} | {one['seconds']:.1f} |"
        for one in searches
    ]
    found, answers, seconds = (
        statistics.median(one[key] for one in searches) for key in ("found", "answers", "seconds")
    )
    lines.append(f"| median | {found:.3f} | | | {answers:,.0f} | {seconds:.1f} |")
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Search with every seed, print the table and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, four steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results: Results = {"machine": machine(1, "torch", "transformers", "lm_eval"), "searches": []}
    for seed in given.seeds[:1] if given.quick else given.seeds:
        results["searches"].append(run(seed, ["budget.evaluations=4"] if given.quick else []))
        print(json.dumps(results["searches"][-1]), flush=True)
    print("\n" + tables(results)[0])
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables)

if __name__ == "__main__":
    main()
