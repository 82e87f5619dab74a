"""The memory that a recipe needs, computed from plans and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.merging.engine.placed_sources import PlacedSources, sources_of
from evomerge.merging.engine.prepared import Key, prepared_key
from evomerge.merging.engine.threads import MergeThreads
from evomerge.merging.methods import implementation
from search_spaces.recipes.resolve import TensorPlan

OTHER_BUFFERS = 8
"""Buffers per block beyond the sources': base, result, rounded result, and at most five that a method asks for."""

COPIES_OF_STEPS = 3
"""Buffers per model for methods that mergekit's steps merge on whole tensors: vectors, directions, tangents."""


@dataclass(frozen=True)
class Footprint:
    """The memory that a recipe needs and touches, in bytes, known before it is merged.

    Attributes
    ----------
    source_bytes
        Distinct source tensors: memory-mapped, shared by processes, best kept in the page cache.
    prepared_bytes
        State prepared once, beyond the sources.
    resident_bytes
        The resident model's parameters.
    touched_bytes
        Read and written per candidate: every source once, the prepared state once, the parameters once.
    parameters
        Number of parameters of the merged model, tied ones counted once.
    buffer_bytes
        The threads' blocks, and the largest tensor for methods that take whole ones; it does not grow with the number
        of tensors.
    calibration_bytes
        What measuring models on calibration texts needs at most, beside one model and one window's activations;
        nothing once it is in the cache.
    """

    source_bytes: int
    prepared_bytes: int
    resident_bytes: int
    touched_bytes: int
    parameters: int
    buffer_bytes: int = 0
    calibration_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Peak memory of a merge: the sources' pages, prepared state, 1.3 models and buffers."""
        return self.source_bytes + self.prepared_bytes + int(1.3 * self.resident_bytes) + self.buffer_bytes


def footprint(
    plans: Sequence[TensorPlan], sources: PlacedSources, threads: MergeThreads, parameter_bytes: int
) -> Footprint:
    """Return the memory that merging the plans needs.

    Parameters
    ----------
    plans
        The recipe, tensor by tensor.
    sources
        Give shapes and sizes; no tensor is read.
    threads
        Give the size of the buffers.
    parameter_bytes
        Bytes per parameter of the resident model.
    """
    source_bytes: dict[tuple[str, str], int] = {}
    prepared_bytes: dict[Key, int] = {}
    read = parameters = rows = largest_matrix = 0
    for plan in plans:
        for part in sources_of(plan):
            size = source_bytes[part.model, part.tensor] = sources.nbytes(part)
            read += size
        shape = sources.shape(sources_of(plan)[-1])
        size = math.prod(shape)
        parameters += size
        method, info = implementation(plan.method), sources.info(plan, shape)
        copies = COPIES_OF_STEPS if method.stepwise_in_float32 else 1
        rows = max(rows, copies * len(plan.contributions) + OTHER_BUFFERS)
        if method.stepwise_in_float32 or method.decomposes(info):
            largest_matrix = max(largest_matrix, size)
        states = {
            prepared_key(method.prepare or method.prepare_all, plan, (part,)): method.prepared_size(info)
            for part in plan.contributions
        }
        states["shared", prepared_key(method.prepare_all, plan, plan.contributions)] = method.shared_size(info)
        read += method.prepared_size(info) * len(plan.contributions) + method.shared_size(info)
        prepared_bytes |= states
    resident = parameters * parameter_bytes
    return Footprint(
        source_bytes=sum(source_bytes.values()),
        prepared_bytes=sum(prepared_bytes.values()),
        resident_bytes=resident,
        touched_bytes=read + resident,
        parameters=parameters,
        buffer_bytes=threads.buffer_bytes(rows, largest_matrix),
    )
