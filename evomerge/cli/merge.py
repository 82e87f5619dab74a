"""`evomerge merge`: a recipe's checkpoint, on disk. A mistake in the file is reported before torch is imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.cli.recipe_file import read
from search_spaces.recipes.errors import RecipeError


def merge(
    file: Path,
    out: Path,
    device: str,
    adapter: bool = False,
    rank: int | None = None,
    *,
    within: Path | None = None,
    allow_unrelated: bool = False,
    intermediates: Path | None = None,
    strict: bool = False,
    run: Path | None = None,
) -> None:
    """Write the checkpoint of a recipe, or the adapter."""
    if rank is not None and not adapter:
        raise RecipeError("--rank: only an adapter has a rank; add --adapter")
    documents = read(file, strict=strict)
    if len(documents) > 1:
        if run is not None:
            raise RecipeError(
                f"--run: {file} contains {len(documents)} documents, and no run scores these; leave it out"
            )
        if adapter:
            raise RecipeError(
                f"--adapter: {file} contains {len(documents)} documents, which merge full models; leave it out"
            )
    elif intermediates is not None:
        raise RecipeError(f"--intermediates: {file} has one document and so no intermediate models; leave it out")
    with uncollected():
        from evomerge.cli.merging import merge_documents, merge_recipe

    if len(documents) > 1:
        merge_documents(documents, file, out, device, intermediates, within=within, allow_unrelated=allow_unrelated)
    else:
        recipe = documents[0].recipe
        merge_recipe(recipe, file, out, device, adapter, rank, within=within, allow_unrelated=allow_unrelated, run=run)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage while the block imports: there is little, and looking for it makes torch a third slower."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections pass over it, the one at the end of the process included
        gc.enable()
