"""A checkpoint with its units in another order, written tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evomerge.files.atomic import atomic_folder
from evomerge.merging.checks.preflight import check_form
from evomerge.merging.engine.placement import Share, free_memory
from evomerge.merging.matching.assignment import Match, match, memory
from evomerge.merging.matching.units import Order, Units, units_of
from evomerge.merging.output.shards import write_shards
from evomerge.merging.output.writer import MARGIN
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.dequantised import copy_others
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source, typed
from evomerge.merging.sources.source import Source


def write_matched(
    model: str, reference: str, out: Path, swept: Callable[[int, float], None] = lambda *_: None
) -> tuple[Match, int]:
    """Write a model with its units in the order that brings it nearest to a reference; nothing if it has it already.

    Parameters
    ----------
    model, reference
        Folders or hub ids.
    out
        A folder that does not exist yet, or is empty.
    swept
        As for `match`.

    Returns
    -------
    What was found, and how many units were moved: 0 if nothing was written.

    Raises
    ------
    CheckpointError
        If the models have other shapes, units that are not known, or need more memory than is free.
    FileError
        If the folder cannot be written.
    """
    own, other = open_source(typed(model)), open_source(typed(reference))
    if not isinstance(own, Checkpoint):
        raise CheckpointError(f"{model}: it is an adapter on a model; merge them first (evomerge merge)")
    if own.config.get_text_config() is not own.config:
        raise CheckpointError(f"{model}: it has parts other than its language model; match text-only models")
    check_form(model, own, reference, other)
    units = units_of(own)
    _check_memory(model, own, units)
    with torch.inference_mode():
        found = match(own, other, swept)
        if moved := found.order.moved():
            with atomic_folder(out, size=_bytes(own) + MARGIN) as temporary:
                copy_others(own.path, temporary)
                _write_weights(own, units, found.order, temporary)
    return found, moved


def _write_weights(model: Source, units: Units, order: Order, folder: Path) -> None:
    def stream(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, order.applied(model.tensor(name), units.axes[name])

    meta = {name: torch.empty(model.shape(name), dtype=model.tensor(name).dtype, device="meta") for name in model.names}
    write_shards(folder, meta, stream)


def _check_memory(name: str, model: Source, units: Units) -> None:
    need = memory(units, max(math.prod(model.shape(tensor)) for tensor in model.names))
    room = free_memory(torch.device("cpu"), Share()).host
    if need > room:
        raise CheckpointError(
            f"{name}: matching needs {need / 1e9:.1f} GB beside the mapped models, and {room / 1e9:.1f} GB are free; "
            "free memory, or match it on a larger machine"
        )


def _bytes(model: Source) -> int:
    return sum(math.prod(model.shape(name)) * model.tensor(name).dtype.itemsize for name in model.names)
