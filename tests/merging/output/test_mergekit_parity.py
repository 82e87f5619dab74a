"""Parity with the authority: `mergekit-yaml` (mergekit 0.1.5) run on our recipes, tensor by tensor.

The exported form is the canonical one: a slice per layer, zero-length head and tail slices, coefficients per
layer and module, float32 arithmetic, bfloat16 result. mergekit's command runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.checkpoints import Checkpoint
from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.parameter_values import Condition, constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from tests.conftest import required
from tests.merging.output.ulps import ulps_apart

required("mergekit")
pytestmark = pytest.mark.slow

METHODS = ("linear", "task_arithmetic", "slerp", "ties")
LAYERS = 12  # two digits, so that an order by name is not the order by number


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_models: Callable[..., tuple[str, ...]]) -> tuple[str, ...]:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
    )
    return make_models(tmp_path_factory.mktemp("parity"), config, 4)


def modules(attention: float, mlp: float, other: float) -> tuple[Condition, ...]:
    return (Condition(attention, ".self_attn."), Condition(mlp, ".mlp."), Condition(other))


def exported(method: str, sources: tuple[str, ...]) -> Recipe:
    base, *experts = sources
    cuts = [(0, 0), *((layer, layer + 1) for layer in range(LAYERS)), (LAYERS, LAYERS)]
    slices = []
    for place, cut in enumerate(cuts):
        if method == "slerp":
            t = (("t", modules(0.1 + 0.05 * place, 0.9 - 0.06 * place, 0.37)),)
            slices.append(Slice((Source(experts[0], cut), Source(base, cut)), t, base_model=base))
            continue
        parts = []
        for index, expert in enumerate(experts):
            weight = modules(0.31 + 0.03 * place - 0.1 * index, 0.77 - 0.05 * place, 0.123 * (index + 1))
            density = constant(0.15 + 0.05 * place + 0.07 * index)
            parts.append(
                Source(
                    expert,
                    cut,
                    (("density", density), ("weight", weight)) if method == "ties" else (("weight", weight),),
                )
            )
        own = (("weight", constant(0.4)),) if method == "linear" else ()
        slices.append(Slice((*parts, Source(base, cut, own)), base_model=base))
    shared = {
        "linear": (("normalize", constant(False)),),
        "task_arithmetic": (("lambda", constant(0.9)), ("normalize", constant(False))),
        "ties": (("lambda", constant(1.1)), ("normalize", constant(True))),
        "slerp": (),
    }[method]
    return Recipe(method, tuple(slices), base, shared, dtype="float32", out_dtype="bfloat16")


_MERGE_ALL = """
import sys
from pathlib import Path
from mergekit.scripts.run_yaml import main
for recipe in sorted(Path(sys.argv[1]).glob("*.yaml")):
    main([str(recipe), str(recipe.with_suffix("")), "--no-write-model-card"], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def theirs(sources: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors that `mergekit-yaml` makes of each method's recipe, all in one process."""
    folder = tmp_path_factory.mktemp("mergekit")
    for method in METHODS:
        recipe = exported(method, sources)
        assert mergekit_export.obstacles(recipe) == ()
        (folder / f"{method}.yaml").write_text(mergekit_yaml.dump(recipe), encoding="utf-8")
    command = [sys.executable, "-c", _MERGE_ALL, str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    tensors: dict[str, dict[str, torch.Tensor]] = {method: {} for method in METHODS}
    for method, found in tensors.items():
        for file in sorted((folder / method).glob("*.safetensors")):
            found.update(load_file(file))
    return tensors


@pytest.mark.parametrize("method", METHODS)
def test_mergekit_rebuilds_the_same_weights(
    method: str, sources: tuple[str, ...], theirs: dict[str, dict[str, torch.Tensor]]
) -> None:
    recipe = exported(method, sources)
    engine = MergeEngine({path: Checkpoint.open(path) for path in sources}, base=sources[0])
    resident = {name: values.data for name, values in engine.apply(recipe).named_parameters()}
    assert resident.keys() == theirs[method].keys()
    for name, values in theirs[method].items():
        assert values.dtype == torch.bfloat16
        assert torch.equal(resident[name].bfloat16().float(), resident[name])
        assert ulps_apart(resident[name].bfloat16(), values) <= 1  # what was seen: equal to the bit
