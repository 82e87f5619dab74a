"""Writing a merge of adapters as one adapter that PEFT loads.

Letters: M rows, N columns of a weight; K rank of the written adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from evomerge.files.atomic import atomic_folder, check_place
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.card import README, RECIPE, adapter_card
from evomerge.merging.output.provenance import Provenance
from evomerge.merging.output.writer import MARGIN, OutputError, finite
from evomerge.merging.sources.adapters import CONFIG, WEIGHTS, AdapterSource, Factors
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter that was written.

    Attributes
    ----------
    rank
        The largest rank of its modules.
    parameters
        Number of entries of all its matrices.
    error
        Frobenius norm of the part of the merged task vectors that the rank leaves out, over the norm of the whole.
    """

    rank: int
    parameters: int
    error: float


def write_adapter(
    engine: MergeEngine,
    recipe: Recipe,
    out: Path,
    *,
    rank: int | None = None,
    provenance: Provenance | None = None,
) -> WrittenAdapter:
    """Write the recipe's model as a LoRA adapter of the sources' base.

    The folder appears complete or not at all. Matrices are float32, scaled by 1 (alpha equal to the rank).

    Parameters
    ----------
    engine
        Holds the opened sources.
    recipe
        One with ``adapters: core``, or with a method for which that makes no difference.
    out
        A folder that does not exist yet, or is empty.
    rank
        Keep so many singular directions per module, the largest ones; None: all, which is the sum of the ranks.
    provenance
        What the search that found the recipe says about it, for the model card.

    Raises
    ------
    FileError
        If the folder exists and is not empty, or the disk is too small or fails while writing.
    OutputError
        If the recipe's merge is not a low-rank one, it moves layers, or a merged weight is infinite or NaN.
    CheckpointError
        If no source is an adapter.
    """
    out = out.expanduser().absolute()
    check_place(out)
    recipe = _in_core(engine, recipe)
    origin = _origin(engine, recipe)
    merged = dict(engine.factors(recipe))
    if not merged:
        raise OutputError(f"{', '.join(recipe.models)}: none of them has a low-rank tensor; merge without --adapter")
    kept = {name: _truncated(factors, rank) for name, factors in merged.items()}
    tensors = {key: values for name, factors in kept.items() for key, values in _pair(origin, name, factors).items()}
    whole = _replaced(engine, recipe)
    tensors |= {f"base_model.model.{name}": values for name, values in whole.items()}
    tensors = dict(finite(tensors.items()))
    config = _config(origin, kept, sorted({name.rpartition(".")[0] for name in whole}))
    card = adapter_card(recipe, engine.checkpoints, origin.base.reference, provenance)
    _write(out, tensors, config, recipe, card)
    return WrittenAdapter(
        rank=max(factors.rank for factors in kept.values()),
        parameters=sum(values.numel() for values in tensors.values()),
        error=_error(merged, kept),
    )


def _in_core(engine: MergeEngine, recipe: Recipe) -> Recipe:
    if recipe.adapters is None and any(spec.core_space != "exact" for spec in recipe.specs):
        raise OutputError(
            f"merge_method: {recipe.merge_method} on full weights gives no low-rank merge; write evomerge: "
            "{adapters: core} into the recipe, or merge without --adapter"
        )
    recipe = replace(recipe.expanded(engine.layout.num_layers), adapters="core")
    start = 0
    for part in recipe.slices:
        if part.num_layers and any(source.start != start for source in part.sources):
            raise OutputError(_MOVED)
        start += part.num_layers
    if start != engine.layout.num_layers:
        raise OutputError(_MOVED)
    return recipe


_MOVED = "slices: the recipe moves or drops layers, which an adapter cannot do; merge without --adapter"


def _origin(engine: MergeEngine, recipe: Recipe) -> AdapterSource:
    """Return one of the adapters: they share their base."""
    for model in recipe.models:
        checkpoint = engine.checkpoint(model)
        if isinstance(checkpoint, AdapterSource):
            return checkpoint
    raise CheckpointError(f"{', '.join(recipe.models)}: none of them is an adapter; merge without --adapter")


def _truncated(factors: Factors, rank: int | None) -> Factors:
    if rank is None or rank >= factors.rank:
        return factors
    return Factors(factors.left[:, :rank], factors.right[:rank], factors.scale)


def _error(merged: Mapping[str, Factors], kept: Mapping[str, Factors]) -> float:
    """Return the relative error; the columns of `left` are orthogonal, and each is as long as its row of `right`."""
    total = left_out = 0.0
    for name, factors in merged.items():
        squares_K = (factors.left.double().norm(dim=0) * factors.right.double().norm(dim=1)).square()
        total += float(squares_K.sum())
        left_out += float(squares_K[kept[name].rank :].sum())
    return math.sqrt(left_out / total) if total else 0.0


def _pair(origin: AdapterSource, name: str, factors: Factors) -> dict[str, Tensor]:
    """Return a module's two matrices under PEFT's keys."""
    module = name.removesuffix(".weight")
    kind = origin.outline.module_of(name)
    left, right = factors.left, factors.right
    a, b = (right, left) if isinstance(kind, nn.Linear) else (left.T, right.T)  # an embedding, or GPT-2's Conv1D
    keys = ("lora_embedding_A", "lora_embedding_B") if isinstance(kind, nn.Embedding) else _LINEAR_KEYS
    return {f"base_model.model.{module}.{key}": values.contiguous() for key, values in zip(keys, (a, b), strict=True)}


_LINEAR_KEYS = ("lora_A.weight", "lora_B.weight")


def _replaced(engine: MergeEngine, recipe: Recipe) -> dict[str, Tensor]:
    """Return the merged values of the tensors that an adapter stores whole (modules_to_save)."""
    adapters = [engine.checkpoint(model) for model in recipe.models]
    names = {name for adapter in adapters if isinstance(adapter, AdapterSource) for name in adapter.replaced}
    if any(name.endswith(".bias") for name in names):
        raise OutputError(f"{min(names)}: an adapter trains biases, which cannot be exported; merge without --adapter")
    if not names:
        return {}
    module = engine.apply(recipe)
    return {name: module.get_parameter(name).detach().to("cpu").float().clone() for name in sorted(names)}


def _config(origin: AdapterSource, kept: Mapping[str, Factors], whole: list[str]) -> dict[str, Any]:
    ranks = {name.removesuffix(".weight"): factors.rank for name, factors in kept.items()}
    rank = max(ranks.values())
    others = {re.escape(module): own for module, own in ranks.items() if own != rank}
    modules = [origin.outline.module_of(name) for name in kept]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": origin.base.reference,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "modules_to_save": whole or None,
        "fan_in_fan_out": any(not isinstance(module, (nn.Linear, nn.Embedding)) for module in modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _write(out: Path, tensors: dict[str, Tensor], config: dict[str, Any], recipe: Recipe, card: str) -> None:
    size = sum(values.nbytes for values in tensors.values()) + MARGIN
    with atomic_folder(out, size=size) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / RECIPE).write_text(mergekit_yaml.dump(recipe), encoding="utf-8")
        (temporary / README).write_text(card, encoding="utf-8")
