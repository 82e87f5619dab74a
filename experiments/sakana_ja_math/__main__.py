"""``python -m experiments.sakana_ja_math`` checks the two search files without any download; ``--quick`` keeps nothing.

Models are stood in for by the published configuration of Mistral 7B, without weights: their layers, tensors and sizes
are real, and so are the spaces, the strategies and the recipes that come of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import MistralConfig

from evomerge.config import load
from evomerge.merging.architecture import layout_of_module, meta_module
from evomerge.strategies import resolved_for
from search_spaces.context import SpaceContext
from search_spaces.kinds import build_space
from search_spaces.recipe import Recipe

FOLDER = Path(__file__).parent
FILES = ("parameters", "stacked")
NOISE = 0.045  # standard error of a share near one half of 125 items


def check(name: str) -> dict[str, Any]:
    """Return what a search file means for models of that architecture."""
    config = load(FOLDER / f"{name}.yaml")
    module = meta_module(MistralConfig())
    layout = layout_of_module(module)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    space = build_space(
        config.space, SpaceContext(config.models, layout, sizes, out_dtype=config.out_dtype, seed=config.seed)
    )
    settings = resolved_for(config.strategy, space, noise=NOISE, evaluations=config.budget.evaluations)
    strategy = settings.build(space, config.seed)
    recipe = space.decode(strategy.ask(1)[0].genotype)
    if Recipe.from_yaml(recipe.to_yaml()) != recipe:
        raise RuntimeError(f"{name}.yaml: the first candidate does not survive being written")
    return {
        "file": f"{name}.yaml",
        "models": list(config.models.values()),
        "parameters_each": sum(sizes.values()),
        "genes": space.dimension,
        "population": strategy.population,
        "evaluations": config.budget.evaluations,
        "tasks": [task.task for task in config.fitness.tasks],
    }


def main() -> None:
    """Check both files and write ``results.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="write nothing")
    quick = parser.parse_args().quick
    text = json.dumps([check(name) for name in FILES], indent=1) + "\n"
    print(text, end="")
    if not quick:
        (FOLDER / "results.json").write_text(text)


if __name__ == "__main__":
    main()
