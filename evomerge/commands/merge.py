"""`evomerge merge`: a recipe's checkpoint, on disk."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from evomerge.merging import preflight
from evomerge.merging.adapter_writer import write_adapter
from evomerge.merging.adapters import AdapterCheckpoint
from evomerge.merging.checkpoints import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.sources import open_sources
from evomerge.merging.writer import OutputError, write_checkpoint
from evomerge.problem import torch_device
from search_spaces.errors import RecipeError
from search_spaces.recipe import Recipe
from search_spaces.references import with_parts


def merge(
    file: Path,
    out: Path,
    device: str,
    adapter: bool = False,
    rank: int | None = None,
    *,
    within: Path | None = None,
    allow_unrelated: bool = False,
) -> None:
    """Write the checkpoint of a recipe, or the adapter."""
    if rank is not None and not adapter:
        raise OutputError("--rank: only an adapter has a rank; add --adapter")
    checkpoints, base, recipe = open_recipe(file, within, allow_unrelated=allow_unrelated)
    engine = MergeEngine(checkpoints, base=base, device=torch_device(device))
    if not adapter:
        write_checkpoint(engine, recipe, out)
        print(f"wrote {out}")
        return
    written = write_adapter(engine, recipe, out, rank=rank)
    print(
        f"wrote {out}: an adapter of rank {written.rank}, {written.parameters:,} parameters; "
        f"the rank leaves out {written.error:.2%} of the merged task vectors (Frobenius norm)"
    )


def open_recipe(
    file: Path, within: Path | None = None, *, allow_unrelated: bool = False
) -> tuple[dict[str, Checkpoint], str, Recipe]:
    """Read a recipe and open and check its models; return them, the base's reference and the sliced recipe.

    Local paths become absolute, so that the recipe that is written beside the weights rebuilds them anywhere. Models
    that are not averaged need not be kin: layers of several may be stacked.

    Raises
    ------
    RecipeError
        If `within` is given and the recipe (its models and its calibration text), or an adapter of it, names a local
        path that does not lie in it, links followed.
    """
    recipe = Recipe.from_file(file)
    if within is not None:
        for named in (*recipe.models, *([recipe.calibration] if recipe.calibration is not None else [])):
            with_parts(named, partial(_check_confined, within=within, file=file))
    recipe = recipe.with_models({model: with_parts(model, _absolute) for model in recipe.models})
    if recipe.calibration is not None:
        recipe = replace(recipe, calibration=str(Path(recipe.calibration).resolve()))
    checkpoints = open_sources(
        {reference: reference for reference in recipe.models}, recipe.base_model, vocabulary=recipe.tokenizer_source
    )
    if within is not None:
        for checkpoint in checkpoints.values():
            if isinstance(checkpoint, AdapterCheckpoint):
                _check_confined(checkpoint.base.reference, within, file)
    base = recipe.donor
    report = preflight.check(checkpoints, base, allow_unrelated=allow_unrelated or recipe.merge_method == "passthrough")
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return checkpoints, base, recipe.expanded(checkpoints[base].layout.num_layers)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _check_confined(model: str, within: Path, file: Path) -> str:
    folder = Path(model).expanduser()
    local = folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1
    if local and not folder.resolve().is_relative_to(within.resolve()):
        raise RecipeError(f"{file}: {model} lies outside of {within}; correct the path, or merge without --within")
    return model
