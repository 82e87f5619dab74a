"""Writing a merged model as a folder that transformers loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.files.atomic import atomic_folder, disk_errors
from evomerge.files.messages import reason
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.resident import build_resident
from evomerge.merging.output.card import MERGEKIT_CONFIG, README, RECIPE, model_card
from evomerge.merging.output.for_mergekit import as_mergekit_finds, obstacles
from evomerge.merging.output.provenance import Provenance
from evomerge.merging.output.shards import stored_tensors, write_shards
from evomerge.merging.sources.architecture import quiet, tied_names
from evomerge.merging.sources.chat_templates import chat_template
from evomerge.merging.sources.layers import is_in_place
from evomerge.merging.sources.source import Source, all_finite
from evomerge.merging.sources.statements import usable_generation_config
from search_spaces.recipes.fields import VOCABULARIES
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.mergekit.documents import Document, dump
from search_spaces.recipes.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    provenance: Provenance | None = None,
    documents: Sequence[Document] = (),
) -> Path:
    """Write the recipe's model: safetensors, config, tokenizer, recipe.yaml, model card.

    Where mergekit builds the same model, the recipe is there as mergekit_config.yml, too. The folder appears complete
    or not at all.

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
    provenance
        What the search that found the recipe says about it, for that card.
    documents
        The documents for recipe.yaml where the recipe uses the results of other merges: those merges' documents, then
        the recipe itself, with their names in place of folders. Empty: the recipe alone.

    Raises
    ------
    FileError
        If the folder exists and is not empty, or the disk is too small or fails while writing.
    OutputError
        If a merged weight is infinite or NaN.
    """
    out = out.expanduser().absolute()
    documents = documents or (Document(None, recipe),)
    donor = _tokenizer_donor(engine, recipe, tokenizer_from)
    template = chat_template(recipe.chat_template, [engine.checkpoint(model) for model in recipe.models])
    # the donor has the architecture of the merge, whosever tokenizer it gets
    found = as_mergekit_finds(engine.checkpoint(recipe.donor), recipe)
    with atomic_folder(out, size=written_size(engine, recipe)) as temporary:
        _write(
            engine,
            recipe,
            temporary,
            donor=donor,
            template=template,
            card=card
            or model_card(
                recipe,
                engine.checkpoints,
                provenance,
                documents,
                name=out.name,
                donor=found,
            ),
            documents=documents,
            files=recipe_files(documents, found),
        )
    return out


def written_size(engine: MergeEngine, recipe: Recipe) -> int:
    """Return the bytes that the recipe's model takes on the disk; no weight is read."""
    return engine.footprint(recipe).parameters * engine.out_dtype(recipe).itemsize + MARGIN


def _write(
    engine: MergeEngine,
    recipe: Recipe,
    folder: Path,
    *,
    donor: Source,
    template: str | None,
    card: str,
    documents: Sequence[Document],
    files: Sequence[str],
) -> None:
    _write_model(engine, recipe, folder)
    donor.tokenizer.copy_to(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for file in files:
        (folder / file).write_text(dump(documents), encoding="utf-8")
    (folder / README).write_text(card, encoding="utf-8")


def recipe_files(documents: Sequence[Document], donor: Model | None) -> tuple[str, ...]:
    """Return the names of the files that hold the recipe beside its weights, those of models like the donor."""
    return (RECIPE,) if obstacles(documents, donor) else (RECIPE, MERGEKIT_CONFIG)


def rehearse(donor: Source) -> None:
    """Write all but the weights of a merge to a temporary folder, so that nothing stops the last step of a search.

    Parameters
    ----------
    donor
        The model that gives the merge its configuration, generation settings and tokenizer.

    Raises
    ------
    OutputError
        If transformers does not save the configurations.
    FileError
        If the temporary folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-rehearsal-") as folder, disk_errors(Path(folder)):
        module = build_resident(donor.config, donor, donor.dtype, torch.device("meta")).module
        _save_without_weights(module, donor.reference, Path(folder))
        donor.tokenizer.copy_to(Path(folder))


def _write_model(engine: MergeEngine, recipe: Recipe, folder: Path) -> None:
    """Write configurations and weights tensor by tensor; at once where transformers stores other tensors."""
    donor = engine.checkpoint(recipe.donor)
    if donor.outline.stated is not None and is_in_place(recipe, donor.layout.num_layers):
        dtype = engine.out_dtype(recipe)
        _write_statements(donor, donor.outline.stated, dtype, folder)
        known = {name: torch.empty(donor.outline.shapes[name], dtype=dtype, device="meta") for name in donor.names}
        write_shards(folder, known, lambda names: finite(engine.stream(recipe, names)))
        return
    outline = engine.outline(recipe)
    tensors = stored_tensors(outline, tied_names(outline))
    if tensors is None:
        module = engine.materialize(recipe)
        for _ in finite(module.named_parameters()):
            pass
    else:
        module = outline
    if tensors is None:
        _drop_unsaveable(module, recipe.donor)
        with quiet():
            module.save_pretrained(folder)
        return
    _save_without_weights(module, recipe.donor, folder)
    buffers = frozenset(name for name, _ in outline.named_buffers())
    write_shards(folder, tensors, lambda names: finite(engine.stream(recipe, names), buffers))


def _write_statements(donor: Source, stated: Mapping[str, Any], dtype: torch.dtype, folder: Path) -> None:
    """Write the configurations of a well-known donor, whose layers stay in place: its own, in another dtype."""
    config = {key: value for key, value in stated.items() if key != "torch_dtype"}
    files = {"config.json": config | {"dtype": str(dtype).removeprefix("torch.")}}
    generation = donor.generation_config()
    if generation is not None:
        files["generation_config.json"] = generation
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def finite(
    tensors: Iterable[tuple[str, Tensor]], buffers: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Tensor]]:
    """Yield merged tensors on; buffers may hold infinity, weights may not.

    Raises
    ------
    OutputError
        If a weight is NaN or infinite: a dtype with a small range cannot hold it, or the recipe's weights are extreme.
    """
    for name, values in tensors:
        if name not in buffers and not all_finite(values.detach()):
            bad = int((~torch.isfinite(values.detach())).sum())
            kind = str(values.dtype).removeprefix("torch.")
            raise OutputError(
                f"{name}: {bad} merged weights are infinite or NaN in {kind}, so nothing is written; set "
                "out_dtype to bfloat16 or float32, which have a larger range, or use smaller weights"
            )
        yield name, values


def _save_without_weights(module: PreTrainedModel, donor: str, folder: Path) -> None:
    _drop_unsaveable(module, donor)
    try:
        with quiet():
            module.save_pretrained(folder, state_dict={})
    except (ValueError, TypeError) as error:  # OSErrors are the disk's
        raise OutputError(
            f"{donor}: transformers does not save its configuration ({reason(error)}); correct its config.json or "
            "generation_config.json"
        ) from error


def _drop_unsaveable(module: PreTrainedModel, donor: str) -> None:
    """Remove settings that the merge does not take over (see `evomerge.merging.sources.statements`)."""
    module.config.__dict__.pop("auto_map", None)
    settings = module.generation_config
    if settings is not None:
        usable, dropped = usable_generation_config(donor, settings.to_diff_dict())
        if dropped:
            from transformers import GenerationConfig

            module.generation_config = GenerationConfig.from_dict(usable)


def _tokenizer_donor(engine: MergeEngine, recipe: Recipe, tokenizer_from: str | None) -> Source:
    wanted = tokenizer_from or recipe.tokenizer_source or "base"
    return engine.checkpoint(recipe.donor if wanted in VOCABULARIES else wanted)
