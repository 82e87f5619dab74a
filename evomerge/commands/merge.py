"""`evomerge merge`: a recipe's checkpoint, on disk."""

from __future__ import annotations

from pathlib import Path

from evomerge.merging import preflight
from evomerge.merging.checkpoints import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.writer import write_checkpoint
from evomerge.problem import torch_device
from search_spaces.recipe import Recipe


def merge(file: Path, out: Path, device: str) -> None:
    """Write the checkpoint of a recipe."""
    checkpoints, base, recipe = open_recipe(file)
    write_checkpoint(MergeEngine(checkpoints, base=base, device=torch_device(device)), recipe, out)
    print(f"wrote {out}")


def open_recipe(file: Path) -> tuple[dict[str, Checkpoint], str, Recipe]:
    """Read a recipe and open and check its models; return them, the base's reference and the sliced recipe.

    Local folders become absolute, so that the recipe that is written beside the weights rebuilds them anywhere.
    """
    recipe = Recipe.from_file(file)
    local = {model: str(Path(model).resolve()) for model in recipe.models if Path(model).is_dir()}
    recipe = recipe.with_models(local)
    checkpoints = {reference: Checkpoint.open(reference) for reference in recipe.models}
    base = recipe.donor
    preflight.check(checkpoints, base)
    return checkpoints, base, recipe.expanded(checkpoints[base].layout.num_layers)
