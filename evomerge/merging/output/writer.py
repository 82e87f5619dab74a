"""Writing a merged model as a folder that transformers loads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evomerge.files.atomic import atomic_folder
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.card import model_card
from evomerge.merging.output.shards import stored_tensors, write_shards
from evomerge.merging.sources.architecture import quiet, tied_names
from evomerge.merging.sources.chat_templates import chat_template
from evomerge.merging.sources.source import Source
from search_spaces.recipes.documents import Document, dump
from search_spaces.recipes.fields import VOCABULARIES
from search_spaces.recipes.recipe import Recipe

MARGIN = 16 << 20  # bytes for all but the weights: tokenizer, configuration, file system


class OutputError(ValueError):
    """A request for output that cannot be met; one line that says what to ask for instead."""


def write_checkpoint(
    engine: MergeEngine,
    recipe: Recipe,
    out: Path,
    *,
    tokenizer_from: str | None = None,
    card: str | None = None,
    notes: Sequence[str] = (),
    documents: Sequence[Document] = (),
) -> Path:
    """Write the recipe's model: safetensors, config, tokenizer, recipe.yaml, model card.

    The folder appears complete or not at all.

    Parameters
    ----------
    engine
        Holds the opened sources.
    recipe
        The recipe; the weights are written in its `out_dtype`.
    out
        A folder that does not exist yet, or is empty.
    tokenizer_from
        Reference of the model whose tokenizer is copied; None: the recipe's `tokenizer_source`, else its
        base.
    card
        Text of README.md; None writes one from the recipe.
    notes
        Paragraphs for that card.
    documents
        The documents for recipe.yaml where the recipe uses the results of other merges: those merges' documents, then
        the recipe itself, with their names in place of folders. Empty: the recipe alone.

    Raises
    ------
    FileError
        If the folder exists and is not empty, or the disk is too small or fails while writing.
    """
    out = out.expanduser().absolute()
    documents = documents or (Document(None, recipe),)
    donor = _tokenizer_donor(engine, recipe, tokenizer_from)
    template = chat_template(recipe.chat_template, [engine.checkpoint(model) for model in recipe.models])
    size = engine.footprint(recipe).parameters * engine.out_dtype(recipe).itemsize + MARGIN
    with atomic_folder(out, size=size) as temporary:
        _write(
            engine,
            recipe,
            temporary,
            donor=donor,
            template=template,
            card=card or model_card(recipe, engine.checkpoints, notes, documents),
            documents=documents,
        )
    return out


def _write(
    engine: MergeEngine,
    recipe: Recipe,
    folder: Path,
    *,
    donor: Source,
    template: str | None,
    card: str,
    documents: Sequence[Document],
) -> None:
    _write_model(engine, recipe, folder)
    for path in donor.tokenizer.files:
        shutil.copyfile(path, folder / path.name)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "recipe.yaml").write_text(dump(documents), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_model(engine: MergeEngine, recipe: Recipe, folder: Path) -> None:
    """Write configurations and weights tensor by tensor; at once where transformers stores other tensors."""
    outline = engine.outline(recipe)
    tensors = stored_tensors(outline, tied_names(outline))
    with quiet():
        if tensors is None:
            engine.materialize(recipe).save_pretrained(folder)
            return
        outline.save_pretrained(folder, state_dict={})  # everything but the weights
    write_shards(folder, tensors, partial(engine.stream, recipe))


def _tokenizer_donor(engine: MergeEngine, recipe: Recipe, tokenizer_from: str | None) -> Source:
    wanted = tokenizer_from or recipe.tokenizer_source or "base"
    return engine.checkpoint(recipe.donor if wanted in VOCABULARIES else wanted)
