"""``python -m experiments.sakana_ja_math`` checks the two search files without any download; ``--quick`` keeps nothing.

It checks what ``evomerge plan --offline`` checks, over the published configuration of Mistral 7B: layers, tensors and
sizes are real, and so are the spaces, strategies and recipes made from them. It also checks the first candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cli.plan_offline import offline_plan
from evomerge.config.load import load
from evomerge.config.search_file import SearchConfig
from evomerge.strategies import StagedConfig
from experiments.harness import Experiment
from search_spaces.recipes import mergekit_yaml
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.two_stage import TwoStageSpace

FOLDER = Path(__file__).parent
FILES = ("parameters", "stacked")
ARCHITECTURE = FOLDER / "mistral-7b.json"


def read(name: str) -> SearchConfig:
    """Read a search file; its task is looked for among lm-eval's MGSM only, which saves reading all others."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return load(FOLDER / f"{name}.yaml", [f"fitness.include_path=[{Path(spec.origin).parent / 'tasks' / 'mgsm'}]"])


def check(name: str) -> dict[str, Any]:
    """Return what a search file means for models of that architecture."""
    config = read(name)
    plan = offline_plan(config, ARCHITECTURE)
    first = plan.strategy.ask(1)[0].genotype
    recipe = plan.space.decode(first)
    if mergekit_yaml.parse(mergekit_yaml.dump(recipe)) != recipe:
        raise RuntimeError(f"{name}.yaml: the first candidate does not survive being written")
    shown = {key: plan.summary[key] for key in ("parameters", "population", "evaluations", "tasks", "downloads")}
    turned = {"bits_turned": bits_turned(config, plan.space)} if isinstance(plan.space, TwoStageSpace) else {}
    return {"file": f"{name}.yaml", "genes": plan.space.dimension, **shown, **turned}


def bits_turned(config: SearchConfig, space: TwoStageSpace) -> dict[str, float]:
    """Return how many bits of the layer order a first candidate flips on average, and how many there are."""
    assert isinstance(config.strategy, StagedConfig)
    strategy = config.strategy.second.build(space.flow, config.seed)
    samples = np.array([c.genotype for c in strategy.ask(strategy.population) if c.kind == "sample"])
    bits = [index for index, gene in enumerate(space.flow.genes) if isinstance(gene, Choice)]
    turned = (samples[:, bits] >= 1) != (space.flow.start[bits] >= 1)
    return {"of": len(bits), "mean": round(float(turned.sum(axis=1).mean()), 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Check both files and write the results."""
    given = EXPERIMENT.parser(__doc__, quick="the same").parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = [check(name) for name in FILES]
    print(EXPERIMENT.text(results), end="")
    EXPERIMENT.write(out, results)


EXPERIMENT = Experiment(FOLDER, tables=None)

if __name__ == "__main__":
    main()
