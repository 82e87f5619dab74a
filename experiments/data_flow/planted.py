"""Models whose layers are in a wrong order, for a search to find the right one.

*Shuffled*: the four inner layers of `ops` in another order; a path in free order has to put them back. *Strangers*: two
layers of other models are inserted between those of `ops`; the right path leaves them out. The known best is `ops`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.checkpoints import Checkpoint
from experiments.data_flow.edits import MODELS, settings
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_of, path_recipe
from search_spaces.recipes.recipe import Recipe

SHUFFLED = (0, 4, 2, 3, 1, 5)
"""Which layer of `ops` lies at each place."""
STRANGERS = (("ops", 0), ("ja", 0), ("ops", 1), ("eo", 1), ("ops", 2), ("ops", 3), ("ops", 4), ("ops", 5))
"""These two, and at these places, do harm; most other layers of the experts hardly do."""


@dataclass(frozen=True)
class Recovered:
    """One search for a planted order; scores are held-out shares of items."""

    problem: str
    strategy: str
    seed: int
    evaluations: int
    planted: float
    """Of the model as it was given."""
    found: float
    known: float
    """Of `ops`, the known best."""
    path: list[int]
    """Layers of the given model on the path that was found."""
    right: bool
    """Whether it is the path of `ops`."""


def search(config: dict[str, Any], folder: Path, name: str) -> tuple[dict[str, Any], Recipe]:
    """Run a search file from the command line; return its result and the found recipe."""
    file, run = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "evomerge", "search", str(file), "--run", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout), mergekit_yaml.read(run / "best.yaml")


def recover(problem: str, folder: Path, *, seed: int, evaluations: int, items: int, strategy: str = "eda") -> Recovered:
    """Plant a wrong order and search for the right one."""
    layers = [("ops", layer) for layer in SHUFFLED] if problem == "shuffled" else list(STRANGERS)
    given, other = folder / problem, folder / f"{problem}-base"
    _write(layers, given)
    # A search needs a second model of that depth; this space leaves it out.
    _write([("base", layer) for _, layer in layers], other)
    space = {"kind": "data_flow", "models": ["given"], "repeats": 1, "scales": "none"}
    if problem == "shuffled":
        space["order"] = "free"
    config = settings(
        "zoo_ops_en",
        items,
        models={"given": str(given), "other": str(other)},
        space=space,
        strategy={"kind": strategy},
        budget={"evaluations": evaluations},
        seed=seed,
    )
    result, found = search(config, folder, f"{problem}-{strategy}-{seed}")
    rows = {row["kind"] if row["kind"] == "found" else row["name"]: row["score"] for row in result["held_out"]}
    right = [index for index, (name, _) in enumerate(layers) if name == "ops"]
    right.sort(key=lambda index: layers[index][1])
    path = [stop.layer for stop in path_of(found, len(layers))]
    return Recovered(
        problem, strategy, seed, evaluations, rows["given"], rows["found"], known(items), path, path == right
    )


def _write(layers: Sequence[tuple[str, int]], folder: Path) -> None:
    """Write a model made of the zoo's layers, with the embeddings and head of `ops`, unless it is there."""
    if folder.exists():
        return
    checkpoints = {reference: Checkpoint.open(reference) for reference in MODELS.values()}
    path = [PathLayer(MODELS[name], layer) for name, layer in layers]
    recipe = path_recipe(path, MODELS["ops"], 6, out_dtype="bfloat16")
    write_checkpoint(MergeEngine(checkpoints, base=MODELS["ops"]), recipe, folder)


_KNOWN: dict[int, float] = {}


def known(items: int) -> float:
    """Return the held-out score of `ops` itself."""
    if items not in _KNOWN:
        from evomerge.config.search_file import SearchConfig
        from evomerge.search.problem import Problem
        from evomerge.search.scoring_workers import local_worker
        from evomerge.workers.base import Request
        from search_spaces.recipes.baselines import source_recipe

        problem = Problem(SearchConfig.model_validate(settings("zoo_ops_en", items)), scan=False)
        recipe = source_recipe(MODELS["ops"], 6, out_dtype="float32")
        request = Request(recipe, tuple(problem.held_out_items))
        _KNOWN[items] = local_worker(problem).worker.evaluate(request).fitness
    return _KNOWN[items]
