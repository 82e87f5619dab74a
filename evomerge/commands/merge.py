"""`evomerge merge`: a recipe's checkpoint, on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge.merging import preflight
from evomerge.merging.checkpoints import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.writer import write_checkpoint
from evomerge.problem import torch_device
from search_spaces.errors import RecipeError
from search_spaces.recipe import Recipe


def merge(file: Path, out: Path, device: str, within: Path | None = None) -> None:
    """Write the checkpoint of a recipe."""
    checkpoints, base, recipe = open_recipe(file, within)
    write_checkpoint(MergeEngine(checkpoints, base=base, device=torch_device(device)), recipe, out)
    print(f"wrote {out}")


def open_recipe(file: Path, within: Path | None = None) -> tuple[dict[str, Checkpoint], str, Recipe]:
    """Read a recipe and open and check its models; return them, the base's reference and the sliced recipe.

    Local folders become absolute, so that the recipe that is written beside the weights rebuilds them anywhere.

    Raises
    ------
    RecipeError
        If `within` is given and the recipe names a local folder that does not lie in it, links followed.
    """
    recipe = Recipe.from_file(file)
    if within is not None:
        for model in recipe.models:
            _check_confined(model, within, file)
    local = {model: str(Path(model).resolve()) for model in recipe.models if Path(model).is_dir()}
    recipe = recipe.with_models(local)
    if recipe.calibration is not None:
        recipe = replace(recipe, calibration=str(Path(recipe.calibration).resolve()))
    checkpoints = {reference: Checkpoint.open(reference) for reference in recipe.models}
    base = recipe.donor
    preflight.check(checkpoints, base)
    return checkpoints, base, recipe.expanded(checkpoints[base].layout.num_layers)


def _check_confined(model: str, within: Path, file: Path) -> None:
    folder = Path(model).expanduser()
    local = folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1
    if local and not folder.resolve().is_relative_to(within.resolve()):
        raise RecipeError(f"{file}: {model} lies outside of {within}; correct the path, or merge without --within")
