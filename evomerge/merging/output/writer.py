"""Writing a merged model: everything into a temporary folder, then one rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.card import model_card
from evomerge.merging.output.shards import stored_tensors, write_shards
from evomerge.merging.sources.architecture import quiet, tied_names
from evomerge.merging.sources.chat_templates import chat_template
from evomerge.merging.sources.checkpoints import Checkpoint
from search_spaces.recipes.documents import Stage, to_yaml
from search_spaces.recipes.recipe import VOCABULARIES, Recipe

MARGIN = 16 << 20  # bytes beside the weights: tokenizer, configuration, file system


class OutputError(ValueError):
    """Something that cannot be written as asked; one line that says what to ask for instead."""


class WriteError(RuntimeError):
    """A checkpoint that the disk could not take; nothing of it is left. One line that says what to do."""


def write_checkpoint(
    engine: MergeEngine,
    recipe: Recipe,
    out: Path,
    *,
    tokenizer_from: str | None = None,
    card: str | None = None,
    notes: Sequence[str] = (),
    stages: Sequence[Stage] = (),
) -> Path:
    """Write the recipe's model: safetensors, config, tokenizer, recipe.yaml, model card.

    The folder appears complete or not at all.

    Parameters
    ----------
    engine
        Holds the opened sources.
    recipe
        What to write, in its `out_dtype`.
    out
        A folder that does not exist yet, or is empty.
    tokenizer_from
        Reference of the model whose tokenizer is copied; None: the recipe's `tokenizer_source`, else its
        base.
    card
        Text of README.md; None writes one from the recipe.
    notes
        Paragraphs for that card.
    stages
        The documents that recipe.yaml holds where the recipe rests on other merges: those, then itself with their
        names in place of the folders they lie in. None: the recipe.

    Raises
    ------
    WriteError
        If the folder exists and is not empty, the disk is too small or fails while writing, or the recipe
        asks for a tokenizer that has to be built.
    """
    out = out.expanduser().absolute()
    stages = stages or (Stage(None, recipe),)
    donor = _tokenizer_donor(engine, recipe, tokenizer_from)
    template = chat_template(recipe.chat_template, [engine.checkpoint(model) for model in recipe.models])
    check_place(out)
    _check_space(out, engine.footprint(recipe).parameters * engine.out_dtype(recipe).itemsize)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _write(
            engine,
            recipe,
            temporary,
            donor=donor,
            template=template,
            card=card or model_card(recipe, engine.checkpoints, notes, stages),
            stages=stages,
        )
        if out.is_dir():
            out.rmdir()  # empty, or it fails
        os.replace(temporary, out)
        _sync(out.parent)
    except Exception as error:
        # safetensors reports a full disk in an exception of its own
        if isinstance(error, OSError) or "os error" in str(error).lower() or "No space left" in str(error):
            raise WriteError(_failure(out, error)) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write(
    engine: MergeEngine,
    recipe: Recipe,
    folder: Path,
    *,
    donor: Checkpoint,
    template: str | None,
    card: str,
    stages: Sequence[Stage],
) -> None:
    folder.mkdir(parents=True)
    _write_model(engine, recipe, folder)
    for path in donor.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "recipe.yaml").write_text(to_yaml(stages), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    mode = (folder / "config.json").stat().st_mode  # the user's own; safetensors makes its files private
    for path in folder.iterdir():
        path.chmod(mode)
        _sync(path)
    _sync(folder)


def _write_model(engine: MergeEngine, recipe: Recipe, folder: Path) -> None:
    """Write configurations and weights, tensor by tensor; whole where transformers rearranges tensors to store them."""
    outline = engine.outline(recipe)
    tensors = stored_tensors(outline, tied_names(outline))
    with quiet():
        if tensors is None:
            engine.materialize(recipe).save_pretrained(folder)
            return
        outline.save_pretrained(folder, state_dict={})  # all but the weights
    write_shards(folder, tensors, partial(engine.stream, recipe))


def _tokenizer_donor(engine: MergeEngine, recipe: Recipe, tokenizer_from: str | None) -> Checkpoint:
    wanted = tokenizer_from or recipe.tokenizer_source or "base"
    return engine.checkpoint(recipe.donor if wanted in VOCABULARIES else wanted)


def check_place(out: Path) -> None:
    """Refuse a folder that is not new or empty.

    Raises
    ------
    OutputError
        If something is there.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise OutputError(f"{out}: the folder exists and is not empty; name a new one or remove it")
    elif out.exists():
        raise OutputError(f"{out}: a file of that name exists; name a new folder")


def _check_space(out: Path, weights: int) -> None:
    place = next(parent for parent in out.parents if parent.is_dir())
    free, needed = shutil.disk_usage(place).free, weights + MARGIN
    if free < needed:
        raise WriteError(
            f"{out}: the disk has {free / 1e9:.2f} GB free and the model needs {needed / 1e9:.2f} GB; "
            "free some space or name a folder on another disk"
        )


def _failure(out: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full:
        return f"{out}: the disk became full while writing; free some space or name a folder on another disk"
    return f"{out}: cannot be written ({error}); check the folder's permissions and its disk"


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
