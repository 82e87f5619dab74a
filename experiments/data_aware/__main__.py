"""The uniform average of the zoo's experts against methods that look at each expert's own training text.

Run it as ``python -m experiments.data_aware [--quick]``. The three experts are averaged, and merged with default
coefficients by methods that measure each expert on a text drawn as its training data was (`experiments.zoo.texts`).
Every seed draws other texts. All merges answer the held-out items of four tasks; a score is the mean over the tasks.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.source import Source
from experiments.harness import Experiment, Results, mean_and_error
from experiments.machine import machine
from experiments.zoo.evaluate import EXPERTS, read_documents, score_items
from experiments.zoo.texts import write_texts
from experiments.zoo.train import MODELS
from fitness.estimation.intervals import paired_test
from search_spaces.recipes import mergekit_yaml

TASKS = ("zoo_target_gen", "zoo_ops_en", "zoo_read_ja", "zoo_read_eo")
METHODS = ("regmean", "regmean_plus_plus", "fisher")
UNIFORM = "uniform average"
SEEDS, LINES = 20, 100


class Merger:
    """Merges the experts and scores the results."""

    def __init__(self, items: int | None) -> None:
        self.references = {name: str(MODELS / name) for name in ("base", *EXPERTS)}
        self.sources: dict[str, Source] = {path: Checkpoint.open(path) for path in self.references.values()}
        self.tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
        self.documents = {task: read_documents(task, "test")[:items] for task in TASKS}

    def score(self, method: str, texts: dict[str, Path]) -> dict[str, npt.NDArray[np.float64]]:
        """Return the score of each item, by task."""
        paths = [self.references[name] for name in EXPERTS]
        data = {"merge_method": method, "models": [{"model": path} for path in paths], "dtype": "float32"}
        if method == "linear":
            data["parameters"] = {"weight": 1.0}
        else:
            data["evomerge"] = {"calibration_text": {self.references[name]: str(texts[name]) for name in EXPERTS}}
        data["out_dtype"] = "bfloat16"
        engine = MergeEngine(self.sources, base=self.references["base"])
        model = engine.apply(mergekit_yaml.build(data))
        return {task: score_items(model, own, self.tokenizer) for task, own in self.documents.items()}


def measure(seeds: int, lines: int, items: int | None) -> Results:
    """Return the scores of every method, and its test against the uniform average."""
    torch.set_num_threads(1)
    merger = Merger(items)
    uniform = merger.score("linear", {})
    rows = [{"method": UNIFORM, **_means([uniform]), "p": None, "better": None}]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVOMERGE_CACHE"] = str(Path(folder) / "cache")
        drawn = [write_texts(Path(folder) / str(seed), seed + 1, lines) for seed in range(seeds)]
        for method in METHODS:
            found = [merger.score(method, texts) for texts in drawn]
            # items are the sample: each counts with its mean over the texts
            ours = np.concatenate([np.mean([each[task] for each in found], axis=0) for task in TASKS])
            theirs = np.concatenate([uniform[task] for task in TASKS])
            means = [_mean(each) for each in found]
            better = sum(mean > _mean(uniform) for mean in means)
            rows.append({"method": method, **_means(found), "p": float(paired_test(ours, theirs)), "better": better})
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(1, "torch", "transformers", "numpy"),
        "seeds": seeds,
        "lines": lines,
        "items": sum(len(own) for own in merger.documents.values()),
        "rows": rows,
    }


def _mean(scores: dict[str, npt.NDArray[np.float64]]) -> float:
    return float(np.mean([own.mean() for own in scores.values()]))


def _means(found: list[dict[str, npt.NDArray[np.float64]]]) -> Results:
    tasks = {task: round(float(np.mean([each[task].mean() for each in found])), 4) for task in TASKS}
    return {"tasks": tasks, "means": [round(_mean(each), 4) for each in found]}


def tables(results: Results) -> list[str]:
    """Return the table of scores."""
    head = ["method", *(task.removeprefix("zoo_") for task in TASKS), "mean", "texts with a better mean", "p"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results["rows"]:
        tasks = [f"{row['tasks'][task]:.3f}" for task in TASKS]
        known = row["p"] is not None
        rest = [f"{row['better']} of {results['seeds']}", f"{row['p']:.1e}"] if known else ["", ""]
        lines.append("| " + " | ".join([row["method"], *tasks, mean_and_error(row["means"], 3), *rest]) + " |")
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    found = {row["method"]: row for row in results["rows"]}
    named = {method: f"{np.mean(row['means']):.3f}" for method, row in found.items()}
    return {
        "uniform": named[UNIFORM],
        "regmean": named["regmean"],
        "p": f"{found['regmean']['p']:.0e}",
        "better": f"{found['regmean']['better']} of {results['seeds']}",
        "seeds": str(results["seeds"]),
        "lines": str(results["lines"]),
        "items": f"{results['items']:,}",
        "when": f"{results['date']}, {results['machine']['cpu']}",
    }


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)


def main() -> None:
    """Read the command line and measure."""
    parser: argparse.ArgumentParser = EXPERIMENT.parser(__doc__, quick="one text of 20 lines, 20 items of each task")
    options = parser.parse_args()
    folder = EXPERIMENT.destination(options)
    results = measure(1, 20, 20) if options.quick else measure(SEEDS, LINES, None)
    EXPERIMENT.publish(folder, results)
    print(tables(results)[0])


if __name__ == "__main__":
    main()
