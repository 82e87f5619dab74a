"""Whether mergekit builds the same weights as a merge that is written."""

from __future__ import annotations

from collections.abc import Sequence

from safetensors import safe_open

from evomerge.merging.sources.limits import read_json
from evomerge.merging.sources.source import Source
from search_spaces.recipes import mergekit_export
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.mergekit.documents import Document


def as_mergekit_finds(source: Source) -> Model | None:
    """Return what mergekit's definitions are compared with; None where the configuration names no architecture."""
    stated = source.outline.stated
    if stated is None:  # not well known: configurations are read by transformers
        stated = read_json(next(path for path in source.files if path.name == "config.json"))
        own, whole = source.config.model_type, stated.get("model_type")
        if own != whole:
            return Model(source.outline.architecture, own, source.names, part_of=whole)
    if not stated.get("architectures"):
        return None
    return Model(stated["architectures"][0], stated["model_type"], source.names, _keys(source))


def obstacles(documents: Sequence[Document], model: Model | None) -> tuple[str, ...]:
    """Return a sentence for each reason why mergekit builds other weights from models like this one, or none."""
    found = [
        reason
        for document in documents
        for reason in (
            *mergekit_export.obstacles(document.recipe),
            *mergekit_export.model_obstacles(document.recipe, model),
        )
    ]
    return tuple(dict.fromkeys(found))


def _keys(source: Source) -> frozenset[str]:
    found: set[str] = set()
    for path in source.weight_files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found.update(file.keys())
    return frozenset(found)
