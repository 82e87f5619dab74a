"""Layers that are computed again, and how much memory activations take, against what autograd holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from evomerge.merging.derivatives.activations import OF_LAYER, measure
from evomerge.merging.derivatives.checkpointing import recomputed
from evomerge.merging.derivatives.watched import watched
from tests.merging.derivatives.test_watched import loss_of, recipe_of

FAMILIES = ["llama", "llama_tied", "gpt2", "gemma3", "gpt_neox", "qwen2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_and_the_model_is_left_as_it_was(families: Any, name: str) -> None:
    family = families(name)
    engine, recipe = family.engine(), recipe_of(family, "task_arithmetic")
    with watched(engine, recipe) as plain:
        loss_of(plain.module).backward()
    with watched(engine, recipe) as again:
        forward = [layer.forward for layer in again.module.modules()]
        with recomputed(again.module, engine.layout):
            loss_of(again.module).backward()
        assert [layer.forward for layer in again.module.modules()] == forward
    assert again.derivatives == pytest.approx(plain.derivatives, rel=1e-4, abs=1e-4)


def held(module: Any, rows: int, width: int) -> int:
    """Return the bytes that autograd keeps after a forward pass, without parameters; logits of the last token only."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(values: torch.Tensor) -> torch.Tensor:
        if values.untyped_storage().data_ptr() not in own:
            kept.setdefault(values.untyped_storage().data_ptr(), values)
        return values

    with saved_tensors_hooks(keep, lambda values: values):
        module(input_ids=torch.zeros(rows, width, dtype=torch.int64), use_cache=False, logits_to_keep=1)
    return sum(values.untyped_storage().nbytes() for values in kept.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_of_larger_batches_follow_from_small_ones(families: Any, name: str) -> None:
    family = families(name)
    engine = family.engine()
    with watched(engine, recipe_of(family, "task_arithmetic")) as model:
        measured = measure(model.module, engine.layout)
        model.module.requires_grad_(True)
        for rows, width in ((1, 24), (3, 10), (5, 31)):
            found = measured.bytes(rows=rows, width=width, kept=0, scored=0, recomputed=False)
            saved = sum(c * width**p for c, p in zip(measured.layers, (2, 1, 0), strict=True))
            working = OF_LAYER * rows * saved / measured.count
            assert found - working == pytest.approx(held(model.module, rows, width), rel=0.12)
            less = measured.bytes(rows=rows, width=width, kept=0, scored=0, recomputed=True)
            assert less < found
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
