"""Opening the models that a search or a recipe names: checkpoints, and adapters on the base that they share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.files.messages import reason
from evomerge.merging.sources.adapters import AdapterSource, is_adapter, read_config
from evomerge.merging.sources.aligned import align
from evomerge.merging.sources.checkpoints import Checkpoint, locate
from evomerge.merging.sources.dequantised import dequantised
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.gguf import converted, is_gguf
from evomerge.merging.sources.source import Source, fingerprint
from search_spaces.recipes.references import adapted, is_dequantized, parts, spelled
from search_spaces.recipes.token_rules import TokenRules


def open_sources(
    models: Mapping[str, str],
    base: str | None,
    *,
    vocabulary: str | None = None,
    tokens: TokenRules | None = None,
) -> dict[str, Source]:
    """Open the sources by name, each once: adapters on the base (or their own base), and all in one vocabulary.

    Parameters
    ----------
    models
        Name to reference.
    base
        The name of the base; None: adapters name theirs, and otherwise the first model takes its role.
    vocabulary
        A policy of `evomerge.merging.sources.vocabulary`; None: leave the vocabularies as they are.
    tokens
        Rules for single tokens.

    Raises
    ------
    CheckpointError
        If a source cannot be opened, an adapter was trained on another base, or vocabularies cannot be joined.
    """
    opened: dict[str, Source] = {}
    shared: dict[Path, Source] = {}
    if base is not None:
        opened[base] = open_source(models[base], None, shared)
    for name, reference in models.items():
        if name not in opened:
            opened[name] = open_source(reference, opened[base] if base is not None else None, shared)
    opened = _with_equal_heads({name: opened[name] for name in models})
    return opened if vocabulary is None else align(opened, vocabulary, base or next(iter(models)), tokens)


def _with_equal_heads(opened: dict[str, Source]) -> dict[str, Source]:
    """Return the models with heads of one form: all tied to the embeddings, or all matrices of their own.

    Where only some are tied, all become tied if every head equals its embeddings; otherwise none is, and the head of a
    tied model is a copy of its embeddings. No model computes anything else in its new form.
    """
    if len({source.outline.tied for source in opened.values()}) < 2:
        return opened
    apart = [source for source in opened.values() if not source.outline.tied]
    tied = all(_head_is_embeddings(source) for source in apart)
    changed: dict[Source, Source] = {}

    def retied(source: Source) -> Source:
        if source.outline.tied == tied:
            return source
        if source not in changed:
            if isinstance(source, AdapterSource):
                changed[source] = AdapterSource(source.reference, source.path, retied(source.base))
            else:
                assert isinstance(source, Checkpoint), "sources are aligned later"
                changed[source] = source.retied(tied)
        return changed[source]

    return {name: retied(source) for name, source in opened.items()}


def _head_is_embeddings(source: Source) -> bool:
    head, embeddings = source.layout.head, source.outline.embeddings
    if head is None or source.shape(head) != source.shape(embeddings):
        return False
    extra = [name for name in source.layout.final if name.startswith(head.removesuffix("weight")) and name != head]
    return not extra and torch.equal(source.tensor(head), source.tensor(embeddings))


def open_source(reference: str, base: Source | None = None, shared: dict[Path, Source] | None = None) -> Source:
    """Open one source.

    Parameters
    ----------
    reference
        A local folder or a hub id, of a checkpoint or of an adapter; or a local GGUF file; or a model with an adapter
        on it (see `search_spaces.recipes.references`).
    base
        The base for an adapter that is named without one; None, or itself an adapter: the base that the adapter's
        configuration names.
    shared
        Bases opened so far, by folder; bases opened here are added.

    Raises
    ------
    CheckpointError
        If it cannot be opened, or the configuration of an adapter without a base in its reference names another base.
    """
    try:
        return _open(reference, base, {} if shared is None else shared)
    except OSError as error:  # folders and files without the right to read them, failing disks
        place = error.filename or "a file"
        raise CheckpointError(
            f"{reference}: {place} cannot be read ({error.strerror or reason(error)}); check its permissions and its "
            "disk"
        ) from error


def _open(reference: str, base: Source | None, known: dict[Path, Source]) -> Source:
    model, adapter = parts(reference)
    if adapter is not None:
        base_model = adapted(model, None, dequantize=is_dequantized(reference))
        return AdapterSource(reference, _adapter_folder(reference, adapter), _opened(base_model, known))
    path = _folder(reference)
    if not is_adapter(path):
        checkpoint = Checkpoint(reference, path)
        known.setdefault(path, checkpoint)
        return checkpoint
    if isinstance(base, AdapterSource):
        base = base.base
    if base is not None:
        _check_base(reference, path, base)
        return AdapterSource(reference, path, base)
    return AdapterSource(reference, path, _opened(_named_base(reference, path), known))


def typed(model: str) -> str:
    """Return the reference that a user typed on the command line: MODEL, or MODEL+ADAPTER."""
    return spelled(model, lambda text: Path(text).exists())


def folder_of(model: str) -> Path:
    """Return the folder of a checkpoint or an adapter; downloads from the hub or converts where necessary.

    Raises
    ------
    CheckpointError
        If there is no such folder or model.
    """
    return converted(model) if is_gguf(model) else locate(model)


def _folder(reference: str) -> Path:
    """Return the folder of a reference's model, dequantised where the reference asks for it."""
    model = parts(reference)[0]
    folder = folder_of(model)
    return dequantised(model, folder) if is_dequantized(reference) else folder


def _opened(model: str, known: dict[Path, Source]) -> Source:
    """Return the base of adapters, opened once."""
    folder = _folder(model)
    if is_adapter(folder):
        raise CheckpointError(
            f"{model}: it is an adapter, and an adapter needs a whole model as its base; name its base instead"
        )
    if folder not in known:
        known[folder] = Checkpoint(model, folder)
    return known[folder]


def _adapter_folder(reference: str, adapter: str) -> Path:
    folder = locate(adapter)
    if not is_adapter(folder):
        raise CheckpointError(f"{reference}: {adapter} is not a LoRA adapter; name a folder with adapter_config.json")
    return folder


def _named_base(reference: str, path: Path) -> str:
    """Return the base that an adapter's configuration names; a folder may be relative to the adapter's own."""
    named = read_config(reference, path).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{reference}: adapter_config.json does not name its base; name it in the recipe (base_model: BASE)"
        )
    folder = _local_base(path, named)
    if folder is not None:
        return str(folder.resolve())
    try:
        locate(named)
    except CheckpointError as error:
        raise CheckpointError(
            f"{reference}: its base {named} is not on this machine; download it, or name another folder of it in the "
            "recipe (base_model: BASE)"
        ) from error
    return named


def _check_base(reference: str, path: Path, base: Source) -> None:
    """Refuse a base that is certainly not the adapter's: another folder with other weights.

    Names alone prove little (folders move, copies are renamed), so where both are on this disk, contents decide.
    """
    named = read_config(reference, path).get("base_model_name_or_path")
    folder = _local_base(path, named)
    if folder is None or not isinstance(named, str):
        return  # a hub id, or a folder that has moved: shapes are checked, and the preflight warns about other names
    if _holds_same(folder, base) is False:
        raise CheckpointError(
            f"{reference}: the adapter was trained on {named}, whose weights are not those of {base.reference}; name "
            f"{named} as the base"
        )


def unverified_base(checkpoint: Source) -> str | None:
    """Return the base that an adapter names, where nothing shows that it is the same model as the base in use.

    A recipe may put an adapter on another model on purpose (``MODEL+ADAPTER``).
    """
    if not isinstance(checkpoint, AdapterSource):
        return None
    named = checkpoint.adapter_config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    folder = _local_base(checkpoint.path, named)
    if folder is not None:
        return None if _holds_same(folder, checkpoint.base) else named
    return None if _stem(named) == _stem(checkpoint.base.reference) else named


def _local_base(path: Path, named: object) -> Path | None:
    """Return the folder that an adapter in `path` names as its base; None when it is not on this disk."""
    if not isinstance(named, str) or not named:
        return None
    return next((place for place in (path / named, Path(named).expanduser()) if place.is_dir()), None)


def _stem(reference: str) -> str:
    return reference.partition("@")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def _holds_same(folder: Path, checkpoint: Source) -> bool | None:
    """Whether a folder holds a checkpoint's weights; None where it cannot be opened, as a quantised model."""
    if folder.resolve() in (checkpoint.path, folder_of(parts(checkpoint.reference)[0])):
        return True
    try:
        named = Checkpoint(str(folder), folder)
    except CheckpointError:
        return None
    return _weights(named) == _weights(checkpoint)


def _weights(checkpoint: Source) -> object:
    files = fingerprint(checkpoint)["files"]
    return sorted(file["sha256"] for name, file in files.items() if name != "config.json")
