"""Statistics of several models together, each on its own text: of a model's tensors, after its number and a colon.

Letters: T models, S tokens of a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.merging.calibration.inputs import watched_grams
from evomerge.merging.calibration.layer_walk import LayerWalk
from evomerge.merging.calibration.parts import WHOLE, Part
from evomerge.merging.calibration.texts import without_padding
from evomerge.merging.methods.regmean import REDUCTION_PLUS_PLUS, RIDGE, least_squares, reduced
from evomerge.merging.sources.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = 4
"""Windows of each text on which models' logits are compared."""


@dataclass(frozen=True)
class Members:
    """The models that are measured together.

    Attributes
    ----------
    sources, windows
        The models, and their texts' token ids.
    load
        Gives one with its weights, by number; the module of an earlier call is overwritten.
    """

    sources: Sequence[Source]
    windows: Sequence[Tensor]
    load: Callable[[int], PreTrainedModel]


def disagreement(members: Members) -> Iterator[Part]:
    """Yield Σ_j mean ‖z_t − z_j‖, float32[1], for each model t: z are logits on the first windows of the text of j."""
    totals = [0.0] * len(members.sources)
    for own, windows in enumerate(members.windows):
        model = members.load(own)
        texts = without_padding(windows[:COMPARED], model.device)
        with torch.inference_mode():
            logits = [_logits(model, ids).cpu() for ids in texts]
            for other in range(len(totals)):
                if other == own:
                    continue
                model = members.load(other)
                distances = [
                    (_logits(model, ids) - kept.to(model.device)).norm(dim=-1)
                    for ids, kept in zip(texts, logits, strict=True)
                ]
                totals[other] += float(torch.cat(distances).mean())
    yield Part({f"{at}:{WHOLE}": torch.tensor([total]) for at, total in enumerate(totals)})


def merged_grams(members: Members) -> Iterator[Part]:
    """Yield the Gram matrices that each model's layers have on what the merged layers before them put out.

    RegMean++: layer by layer, every model's layer reads the hidden states of its own text that come from the merged
    layers before; then the layer is merged by `least_squares` with equal weights. All other tensors are averaged.
    Memory holds all texts' hidden states, one layer's matrices of all models, and one model.
    """
    sources = members.sources
    model = members.load(0)
    layout = sources[0].layout
    parameters = dict(model.named_parameters())

    def mean(name: str) -> Tensor:
        return torch.stack([source.tensor(name).double() for source in sources]).mean(0)

    def put(name: str, values: Tensor) -> None:
        if name in parameters:
            parameters[name].data.copy_(values)

    with torch.inference_mode():
        for name in (*layout.embeddings, *layout.final):
            put(name, mean(name))
    texts = [without_padding(windows, model.device) for windows in members.windows]
    walks = [LayerWalk(model, layout, own) for own in texts]
    for layer, names in enumerate(layout.layers):
        full = [layout.layer_tensor(layer, name) for name in names]
        parts = []
        for source, walk, own in zip(sources, walks, texts, strict=True):
            with torch.inference_mode():
                for name in full:
                    put(name, source.tensor(name))
                with watched_grams(walk.layers[layer], layout.layer_tensor(layer, "")) as sums:
                    for hidden in walk.hidden:
                        walk.run(layer, walk.layers[layer], hidden)
            parts.append(sums.part(sum(map(len, own))))
        with torch.inference_mode():
            for name in full:
                put(name, _merged(name, [source.tensor(name) for source in sources], parts))
        for walk in walks:
            walk.advance(layer)
        yield Part(
            {f"{at}:{name}": values for at, part in enumerate(parts) for name, values in part.values.items()},
            {f"{at}:{name}": f"{at}:{other}" for at, part in enumerate(parts) for name, other in part.same.items()},
        )


def _merged(name: str, models: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """Return one tensor of the merged layer."""
    values = [tensor.double() for tensor in models]
    keys = [part.same.get(name, name) for part in parts]
    if any(key not in part.values for key, part in zip(keys, parts, strict=True)):
        return torch.stack(values).mean(0)
    grams = [reduced(part.values[key], REDUCTION_PLUS_PLUS) for key, part in zip(keys, parts, strict=True)]
    return least_squares(values, grams, RIDGE)


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits of all tokens of a window, float32[S, V]."""
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return logits
