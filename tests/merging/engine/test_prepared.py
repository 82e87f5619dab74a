"""Prepared state: kept by `prepare` and `apply`, not by `stream`, which other calls may interrupt."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.merging.engine import engine as engine_module
from evomerge.merging.engine.engine import MergeEngine
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe


def recipe(llama: Any, density: float) -> Recipe:
    models = [{"model": path, "parameters": {"weight": 0.7, "density": density}} for path in llama.references[1:]]
    return mergekit_yaml.build({"merge_method": "ties", "base_model": llama.base, "models": models, "dtype": "float32"})


def test_streams_may_run_side_by_side(llama: Any) -> None:
    names = llama.checkpoints[llama.base].names
    engine, wanted = llama.engine(), [recipe(llama, 0.3), recipe(llama, 0.6)]
    expected = [dict(llama.engine().materialize(each).named_parameters()) for each in wanted]
    streams = [engine.stream(each, names) for each in wanted]
    for pair in zip_longest(*streams):
        for (name, values), whole in zip(pair, expected, strict=True):
            assert torch.equal(values, whole[name]), name
    assert len(engine._prepared) == 0
    assert not engine._sources._tensors, "a source tensor that is merged once is not kept"


def test_large_tensors_are_merged_in_the_memory_of_earlier_ones(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LARGE_PAGE", 1)
    whole = dict(llama.engine().materialize(recipe(llama, 0.3)).named_parameters())
    places: dict[int, set[int]] = {}
    for name, values in llama.engine().stream(recipe(llama, 0.3), list(whole)):
        assert torch.equal(values, whole[name]), name
        places.setdefault(values.nbytes, set()).add(values.data_ptr())
    matrices = whole["model.layers.0.mlp.up_proj.weight"].nbytes
    assert len(places[matrices]) <= torch.get_num_threads() + 2
    assert sum(values.nbytes == matrices for values in whole.values()) > len(places[matrices])


def test_what_is_prepared_while_streaming_stays(llama: Any) -> None:
    engine = llama.engine()
    stream = engine.stream(recipe(llama, 0.3), llama.checkpoints[llama.base].names)
    next(stream)
    engine.prepare(recipe(llama, 0.6))
    held = len(engine._prepared)
    assert held > 0
    for _ in stream:
        pass
    assert len(engine._prepared) == held


def test_a_recipe_with_another_seed_has_its_own_random_masks(llama: Any) -> None:
    """Whatever the engine has merged before: the recipe alone must rebuild the weights."""
    models = [{"model": path, "parameters": {"weight": 0.7, "density": 0.5}} for path in llama.references[1:]]
    data = {"merge_method": "dare_linear", "base_model": llama.base, "models": models, "dtype": "float32"}
    first, second = (mergekit_yaml.build({**data, "evomerge": {"seed": seed}}) for seed in (1, 2))
    fresh = {name: values.clone() for name, values in llama.engine().apply(second).named_parameters()}
    engine = llama.engine()
    before = {name: values.clone() for name, values in engine.apply(first).named_parameters()}
    after = dict(engine.apply(second).named_parameters())
    assert all(torch.equal(after[name], values) for name, values in fresh.items())
    assert any(not torch.equal(before[name], values) for name, values in fresh.items())


@pytest.mark.parametrize("method", ["fisher", "obim", "task_arithmetic"])
def test_a_recipe_with_another_text_has_its_own_statistics(
    zoo: dict[str, Any], text: Path, tmp_path: Path, method: str
) -> None:
    """For methods that prepare them by model (fisher) and for all models (obim), and for activations of any method."""
    base, ops, ja = zoo
    other = tmp_path / "other.txt"
    other.write_text("copy one = one\n" * 60, encoding="utf-8")
    data: dict[str, Any] = {"merge_method": method, "models": [{"model": each} for each in (ops, ja)]}
    if method != "fisher":
        data |= {"base_model": base, "parameters": {"weight": 0.5}}
    first, second = (
        mergekit_yaml.build({**data, "dtype": "float32", "evomerge": {"calibration_text": str(each)}})
        for each in (text, other)
    )
    if method == "task_arithmetic":
        settings = (("activation_informed", constant(0.2)), *first.parameters)
        first, second = (replace(each, parameters=settings) for each in (first, second))

    def merged(engine: MergeEngine, recipe: Recipe) -> dict[str, torch.Tensor]:
        engine.prepare(recipe)
        return {name: values.clone() for name, values in engine.apply(recipe).named_parameters()}

    fresh, engine = merged(MergeEngine(zoo, base=base), second), MergeEngine(zoo, base=base)
    before, after = merged(engine, first), merged(engine, second)
    assert all(torch.equal(after[name], values) for name, values in fresh.items())
    assert any(not torch.equal(before[name], values) for name, values in fresh.items())
