"""``python -m experiments.published`` checks the search files without any download; ``--quick`` keeps nothing.

It checks what ``evomerge plan --offline`` checks, over the published configurations of the models: layers, tensors and
sizes are real, and so are the spaces, strategies and recipes made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evomerge.cli.plan_offline import OfflinePlan, offline_plan
from evomerge.config.load import load
from evomerge.config.search_file import SearchConfig
from experiments.harness import Experiment
from search_spaces.recipes import mergekit_yaml

FOLDER = Path(__file__).parent
MISTRAL = FOLDER.parent / "sakana_ja_math" / "mistral-7b.json"
FILES = {
    "merge3_arc": (MISTRAL, ("okapi", "arc")),
    "genome_plus": (FOLDER / "gemma-2-2b.json", ("drop",)),
    "gptailor": (FOLDER / "llama-2-13b.json", ("mmlu", "super_glue")),
    "recycle_them": (FOLDER / "pythia-12b.json", ("lambada", "arc")),
    "evo_merging": (FOLDER / "llama-3.1-8b.json", ("glue",)),
}
"""Search files, each with a config.json like its models' and the folders of lm-eval that have its tasks."""


def read(file: Path, folders: Sequence[str]) -> SearchConfig:
    """Read a search file; its tasks are looked for in some of lm-eval's folders, which saves reading all others."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    tasks = Path(spec.origin).parent / "tasks"
    return load(file, [f"fitness.include_path=[{', '.join(str(tasks / folder) for folder in folders)}]"])


def check(file: Path, architecture: Path, folders: Sequence[str]) -> tuple[dict[str, Any], OfflinePlan]:
    """Return what a search file means for models of that architecture, in short and as a whole.

    Raises
    ------
    RuntimeError
        If the first candidate is another recipe after it was written and read.
    """
    plan = offline_plan(read(file, folders), architecture)
    recipe = plan.space.decode(plan.strategy.ask(1)[0].genotype)
    if mergekit_yaml.parse(mergekit_yaml.dump(recipe)) != recipe:
        raise RuntimeError(f"{file.name}: the first candidate does not survive being written")
    shown = {key: plan.summary[key] for key in ("parameters", "population", "evaluations", "answers", "downloads")}
    shown["tasks"] = [f"{task['name']}: {task['metric']}" for task in plan.summary["tasks"]]
    return {"file": file.name, "genes": plan.space.dimension, **shown}, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Check all files and write the results."""
    given = EXPERIMENT.parser(__doc__, quick="the same").parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = [check(FOLDER / f"{name}.yaml", *how)[0] for name, how in FILES.items()]
    print(EXPERIMENT.text(results), end="")
    EXPERIMENT.write(out, results)


EXPERIMENT = Experiment(FOLDER, tables=None)

if __name__ == "__main__":
    main()
