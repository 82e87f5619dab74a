"""Slices with merge methods of their own, in the engine: each is merged as by a recipe of that method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evomerge.merging.output.writer import write_checkpoint
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.method_groups import MethodGroupsSpace

METHODS = ("task_arithmetic", "dare_ties", "linear")


def merged(engine: Any, recipe: Recipe) -> dict[str, torch.Tensor]:
    engine.prepare(recipe)
    return {name: values.data.clone() for name, values in engine.apply(recipe).named_parameters()}


def test_each_group_is_merged_as_by_its_method_alone(llama: Any, tmp_path: Path) -> None:
    models = dict(zip(("base", "a", "b"), llama.references, strict=True))
    engine = llama.engine()
    config = CoefficientConfig(method=METHODS, method_scope="layers", layers_per_group=2)
    space = MethodGroupsSpace(config, models, engine.layout, seed=3)
    point = space.start.copy()
    chosen = ("linear", "dare_ties", "task_arithmetic", "dare_ties")  # embeddings, two runs of layers, the end
    for group, method in enumerate(chosen):
        point[group] = space.genes[group].coordinate(method)
    recipe = replace(space.decode(point), out_dtype="float32")
    found = merged(engine, recipe)
    alone = {}
    for method in METHODS:
        one = point.copy()
        one[:4] = space.genes[0].coordinate(method)
        alone[method] = merged(llama.engine(), replace(space.decode(one), out_dtype="float32"))
    groups = {name: 0 for name in engine.layout.embeddings} | {name: 3 for name in engine.layout.final}
    for layer, names in enumerate(engine.layout.layers):
        groups |= {engine.layout.layer_tensor(layer, name): 1 + layer // 2 for name in names}
    for name, values in found.items():
        assert torch.equal(values, alone[chosen[groups[name]]][name]), name
    assert any(not torch.equal(values, alone["linear"][name]) for name, values in found.items())
    out = write_checkpoint(engine, recipe, tmp_path / "out")
    assert mergekit_yaml.read(out / "recipe.yaml") == recipe
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], values) for name, values in found.items())
    assert "method `dare_ties`" in (out / "README.md").read_text()
