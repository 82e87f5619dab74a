"""Opening what a search or a recipe names: checkpoints, and adapters on the base they share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.merging.adapters import AdapterCheckpoint, is_adapter, read_config
from evomerge.merging.checkpoints import Checkpoint, CheckpointError, locate
from evomerge.merging.gguf import converted, is_gguf
from evomerge.merging.vocabulary import align


def open_sources(
    models: Mapping[str, str], base: str | None, *, vocabulary: str | None = None
) -> dict[str, Checkpoint]:
    """Open the sources by name: each once, adapters on the base, all in one vocabulary.

    Parameters
    ----------
    models
        Name to reference.
    base
        The name of the base; None: adapters name it themselves, and the first model stands for it otherwise.
    vocabulary
        A policy of `evomerge.merging.vocabulary`; None: as they are.

    Raises
    ------
    CheckpointError
        If one cannot be opened, an adapter was trained on another base, or vocabularies cannot be brought together.
    """
    opened: dict[str, Checkpoint] = {}
    if base is not None:
        opened[base] = open_source(models[base])
    shared: dict[Path, Checkpoint] = {checkpoint.path: checkpoint for checkpoint in opened.values()}
    for name, reference in models.items():
        if name not in opened:
            opened[name] = open_source(reference, opened[base] if base is not None else None, shared)
    opened = {name: opened[name] for name in models}
    return opened if vocabulary is None else align(opened, vocabulary, base or next(iter(models)))


def open_source(
    reference: str, base: Checkpoint | None = None, shared: dict[Path, Checkpoint] | None = None
) -> Checkpoint:
    """Open one source.

    Parameters
    ----------
    reference
        A local folder or a hub id, of a checkpoint or of an adapter; or a local GGUF file.
    base
        What an adapter is put on; None, or an adapter itself: the base that its configuration names.
    shared
        Bases opened so far, by folder; what is opened here is added.

    Raises
    ------
    CheckpointError
        If it cannot be opened, or an adapter's configuration names another base.
    """
    path = converted(reference) if is_gguf(reference) else locate(reference)
    if not is_adapter(path):
        return Checkpoint(reference, path)
    if isinstance(base, AdapterCheckpoint):
        base = base.base
    if base is not None:
        _check_base(reference, path, base)
        return AdapterCheckpoint(reference, path, base)
    named = _named_base(reference, path)
    folder = locate(named)
    known = {} if shared is None else shared
    if folder not in known:
        known[folder] = Checkpoint(named, folder)
    return AdapterCheckpoint(reference, path, known[folder])


def _named_base(reference: str, path: Path) -> str:
    """Return the base that an adapter's configuration names; a folder may be relative to the adapter's own."""
    named = read_config(reference, path).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{reference}: adapter_config.json names no base; name it as the base of the merge (base_model: BASE)"
        )
    folder = _local_base(path, named)
    if folder is not None:
        return str(folder.resolve())
    try:
        locate(named)
    except CheckpointError as error:
        raise CheckpointError(
            f"{reference}: its base {named} is not here; name the base of the merge (base_model: BASE), or download it"
        ) from error
    return named


def _check_base(reference: str, path: Path, base: Checkpoint) -> None:
    """Refuse a base that is certainly not the adapter's: another folder with other weights, or another hub id.

    Names alone say little (folders move, copies are renamed): where both lie on this disk, contents decide.
    """
    named = read_config(reference, path).get("base_model_name_or_path")
    folder = _local_base(path, named)
    if folder is None or not isinstance(named, str):
        return  # a hub id, or a folder that has moved: shapes are checked, and the preflight warns of other names
    if folder.resolve() != base.path and _weights(Checkpoint(named, folder)) != _weights(base):
        raise CheckpointError(
            f"{reference}: the adapter was trained on {named}, whose weights are not those of {base.reference}; name "
            f"{named} as the base"
        )


def unverified_base(checkpoint: Checkpoint) -> str | None:
    """Return the base that an adapter names where nothing shows that it is the one it was put on."""
    if not isinstance(checkpoint, AdapterCheckpoint):
        return None
    named = checkpoint.adapter_config.get("base_model_name_or_path")
    if _local_base(checkpoint.path, named) is not None or not isinstance(named, str) or not named:
        return None
    return None if _stem(named) == _stem(checkpoint.base.reference) else named


def _local_base(path: Path, named: object) -> Path | None:
    """Return the folder that an adapter in `path` names as its base, where it is one of this disk."""
    if not isinstance(named, str) or not named:
        return None
    return next((place for place in (path / named, Path(named).expanduser()) if place.is_dir()), None)


def _stem(reference: str) -> str:
    return reference.partition("@")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def _weights(checkpoint: Checkpoint) -> object:
    files = checkpoint.fingerprint()["files"]
    return sorted(file["sha256"] for name, file in files.items() if name != "config.json")
