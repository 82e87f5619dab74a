"""The kinds of statistics: what measures each, and the most that it holds in memory and on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from evomerge.merging.calibration import gradients, inputs, joint
from evomerge.merging.calibration.gradients import OUTPUT_BYTES, PARTS, VOTES
from evomerge.merging.calibration.joint import COMPARED, Members
from evomerge.merging.calibration.parts import Part
from evomerge.merging.calibration.texts import WINDOW
from evomerge.merging.sources.source import Source
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Measure: TypeAlias = "Callable[[PreTrainedModel, ModelLayout, Tensor], Iterator[Part]]"
Sizes: TypeAlias = Callable[[Source, int, int], int]
"""Bytes for a model, a number of tokens and the bytes of one hidden number."""


@dataclass(frozen=True)
class Kind:
    """A kind of statistic.

    Attributes
    ----------
    measure
        Yields it in parts.
    memory
        The most that it holds beside the model and one window's activations.
    disk
        The most that the cache holds.
    """

    measure: Measure
    memory: Sizes
    disk: Sizes


def _entries(source: Source) -> int:
    return sum(math.prod(source.shape(name)) for name in source.names)


def _widths(source: Source, layer: int) -> list[int]:
    """Return the input channels of a layer's matrices."""
    names = (source.layout.layer_tensor(layer, name) for name in source.layout.layers[layer])
    return [shape[1] for shape in map(source.shape, names) if len(shape) == 2]


def _gram_bytes(source: Source) -> list[int]:
    """Return the bytes of each layer's Gram matrices, as if no maps shared one."""
    return [sum(4 * width**2 for width in _widths(source, layer)) for layer in range(source.layout.num_layers)]


def _gram_memory(source: Source, tokens: int, number: int) -> int:
    width = int(source.config.get_text_config().hidden_size)
    return max(_gram_bytes(source)) + tokens * width * number


def _by_channel(source: Source, tokens: int, number: int) -> int:
    return sum(8 * source.shape(name)[-1] for name in source.names)


def _per_entry(number: int) -> Sizes:
    return lambda source, *_: number * _entries(source)


def _largest_tensor(source: Source, *_: int) -> int:
    return 8 * max(math.prod(source.shape(name)) for name in source.names)


def _votes(source: Source, *_: int) -> int:
    """Return the votes of one part, and the same in float32 for its largest tensor."""
    return 2 * VOTES * (_entries(source) // PARTS) + 6 * VOTES * _largest_tensor(source) // 8


def _output_bytes(source: Source) -> list[int]:
    """Return the bytes of each linear map's matrix of outputs."""
    names = (source.layout.layer_tensor(at, name) for at, names in enumerate(source.layout.layers) for name in names)
    return [4 * shape[0] ** 2 for shape in map(source.shape, names) if len(shape) == 2]


def _outputs_at_once(source: Source, *_: int) -> int:
    sizes = _output_bytes(source)
    return 2 * min(sum(sizes), max(OUTPUT_BYTES, *sizes))


@dataclass(frozen=True)
class JointKind:
    """A kind of statistic of several models together; sizes are by model, and added up.

    Attributes
    ----------
    measure, memory, disk
        As in `Kind`.
    """

    measure: Callable[[Members], Iterator[Part]]
    memory: Sizes
    disk: Sizes


def _logits(source: Source, tokens: int, _: int) -> int:
    """Return the bytes of the logits that are compared; of one text at a time, counted for each."""
    return 8 * min(tokens, COMPARED * WINDOW) * int(source.config.get_text_config().vocab_size)


JOINT: Mapping[str, JointKind] = {
    "disagreement": JointKind(joint.disagreement, _logits, lambda *_: 4),
    "merged_gram": JointKind(joint.merged_grams, _gram_memory, lambda source, *_: sum(_gram_bytes(source))),
}

KINDS: Mapping[str, Kind] = {
    "activations": Kind(inputs.activations, _by_channel, _by_channel),
    "energies": Kind(inputs.energies, _by_channel, _by_channel),
    "gram": Kind(inputs.grams, _gram_memory, lambda source, *_: sum(_gram_bytes(source))),
    "fisher": Kind(gradients.fisher, _per_entry(6), _per_entry(2)),
    "sensitivity": Kind(gradients.sensitivity, _per_entry(6), _per_entry(2)),
    "importance": Kind(gradients.importance, _per_entry(6), _per_entry(2)),
    "layer_sensitivity": Kind(gradients.layer_sensitivity, _largest_tensor, _by_channel),
    "push": Kind(gradients.push, _votes, _per_entry(2)),
    "loss": Kind(gradients.losses, lambda *_: 0, lambda *_: 4),
    "output_gram": Kind(gradients.output_grams, _outputs_at_once, lambda source, *_: sum(_output_bytes(source))),
}
