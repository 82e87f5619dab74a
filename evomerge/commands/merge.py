"""`evomerge merge`: a recipe's checkpoint, on disk."""

from __future__ import annotations

from pathlib import Path

from evomerge.merging import preflight
from evomerge.merging.checkpoints import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.writer import write_checkpoint
from search_spaces.recipe import Recipe


def merge(file: Path, out: Path, device: str) -> None:
    """Write the checkpoint of a recipe."""
    engine, recipe = open_recipe(file, device)
    write_checkpoint(engine, recipe, out)
    print(f"wrote {out}")


def open_recipe(file: Path, device: str) -> tuple[MergeEngine, Recipe]:
    """Read a recipe, open and check its models, and return an engine that can build it."""
    recipe = Recipe.from_file(file)
    checkpoints = {reference: Checkpoint.open(reference) for reference in recipe.models}
    base = recipe.base_model or recipe.models[0]
    if len(checkpoints) > 1:
        preflight.check(checkpoints, base)
    engine = MergeEngine(checkpoints, base=base, device=device)
    return engine, recipe.expanded(checkpoints[base].layout.num_layers)
