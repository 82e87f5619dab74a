"""Whether mergekit builds the same weights as a merge that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from safetensors import safe_open

from evomerge.merging.sources.aligned import original
from evomerge.merging.sources.limits import read_json
from evomerge.merging.sources.source import Source, with_buffers
from evomerge.merging.sources.vocabulary import rows_of
from search_spaces.recipes import mergekit_export
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.mergekit.documents import Document
from search_spaces.recipes.recipe import Recipe


def as_mergekit_finds(source: Source, recipe: Recipe) -> Model | None:
    """Return what mergekit finds of a recipe's donor; None where the configuration names no architecture."""
    stated = source.outline.stated
    if stated is None:  # not well known: configurations are read by transformers
        stated = read_json(next(path for path in source.files if path.name == "config.json"))
        own, whole = source.config.model_type, stated.get("model_type")
        if own != whole:
            return Model(source.outline.architecture, own, source.names, part_of=whole)
    if not stated.get("architectures"):
        return None
    otherwise = (*_vocabulary(source, recipe), *_buffers(source, recipe))
    return Model(stated["architectures"][0], stated["model_type"], source.names, _keys(source), None, otherwise)


def _vocabulary(source: Source, recipe: Recipe) -> Iterator[str]:
    """Yield what mergekit makes otherwise of the vocabulary that a recipe asks for."""
    if recipe.tokenizer_source in (None, "first", "pad"):
        return
    rules = recipe.tokens.rows if recipe.tokens else ()
    multiple = (recipe.tokens.multiple if recipe.tokens else None) or 1
    tokens = source.tokenizer.load().get_vocab()
    rows, kept = rows_of(source), -(-len(tokens) // multiple) * multiple
    if rows != kept:
        yield f"tokenizer: mergekit 0.1.5 writes {kept} rows for {len(tokens)} tokens, and evomerge keeps all {rows}"
    inner = original(source)
    further = tokens.keys() - (inner.tokenizer.load().get_vocab().keys() if inner.tokenizer.files else tokens.keys())
    if recipe.tokenizer_source == "union" and len(further) > 1:
        yield "tokenizer: mergekit 0.1.5 puts the further tokens of a union in another order in each process"
    if recipe.tokenizer_source == "base" and further:
        yield f"tokenizer.tokens: mergekit 0.1.5 stops where a token is new to the base's vocabulary ({min(further)})"
    elif any(rule.model is None and not rule.zero and rule.token in further for rule in rules):
        yield "tokenizer.tokens: mergekit 0.1.5 stops at a token without a source"


def _buffers(source: Source, recipe: Recipe) -> Iterator[str]:
    """Yield that mergekit rounds numbers that evomerge keeps, as transformers does (see `StoredBuffer`)."""
    for name in filter(None, (recipe.dtype, recipe.out_dtype)):
        dtype: torch.dtype = getattr(torch, name)
        if with_buffers(dtype, source) != dtype:
            yield f"mergekit 0.1.5 rounds {min(source.outline.stored_buffers)} and its like to {name}"
            return


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
