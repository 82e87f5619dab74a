"""Streaming: the bytes that safetensors and transformers write, and memory for one tensor."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.merging.output.shards import stored_tensors, write_shards
from evomerge.merging.output.writer import write_checkpoint
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe


def average(references: Any, base: str) -> Recipe:
    models = [{"model": path, "parameters": {"weight": 0.4, "density": 0.6}} for path in references[1:]]
    return mergekit_yaml.build(
        {
            "merge_method": "dare_ties",
            "base_model": base,
            "models": models,
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }
    )


def test_bytes_are_those_of_save_pretrained(family: Any, tmp_path: Path) -> None:
    recipe, engine = average(family.references, family.base), family.engine()
    engine.materialize(recipe).save_pretrained(tmp_path / "whole")
    out = write_checkpoint(engine, recipe, tmp_path / "streamed")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).bfloat16(),
        "ä": torch.randn(()),
        "a": torch.arange(7),
        "c": torch.ones(2, 2, dtype=torch.bool),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_shards(tmp_path, tensors, lambda names: ((name, tensors[name]) for name in names))
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_shards_have_an_index(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.full((100,), float(index)) for index in range(5)}
    write_shards(tmp_path, tensors, lambda names: ((name, tensors[name]) for name in names), shard=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_experts_that_are_stored_apart_are_not_streamed() -> None:
    from transformers import MixtralConfig

    from evomerge.merging.sources.architecture import meta_module

    config = MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    assert stored_tensors(meta_module(config), {}) is None


def test_a_tensor_is_gone_when_the_next_is_made(llama: Any) -> None:
    engine, seen = llama.engine(), []
    for _, values in engine.stream(average(llama.references, llama.base), llama.checkpoints[llama.base].names):
        assert not any(reference() is not None for reference in seen[:-1])
        seen.append(weakref.ref(values))
    assert len(seen) == len(llama.checkpoints[llama.base].names)
    assert len(engine._prepared) == 0
    assert engine._resident is None


MEASURE = """
import sys, threading
from pathlib import Path
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from search_spaces.recipes import mergekit_yaml

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

recipe = mergekit_yaml.read(sys.argv[1])
engine = MergeEngine({path: Checkpoint.open(path) for path in recipe.models}, base=recipe.donor)
start, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
write_checkpoint(engine, recipe, Path(sys.argv[2]))
done.set()
thread.join()
print(peak - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_model(tmp_path: Path, make_models: Any) -> None:
    """Anonymous memory: the pages of the sources are mapped files, which the system takes back when it needs them."""
    from transformers import LlamaConfig

    peaks, sizes = [], []
    for layers in (2, 24):
        config = LlamaConfig(
            hidden_size=512, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=8, vocab_size=256
        )
        folder = tmp_path / str(layers)
        paths = make_models(folder, config, 3)
        (folder / "recipe.yaml").write_text(mergekit_yaml.dump(average(paths, paths[0])))
        program = [sys.executable, "-c", MEASURE, str(folder / "recipe.yaml"), str(folder / "out")]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024)
        sizes.append((folder / "out" / "model.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] > 150e6
    assert peaks[1] - peaks[0] < 0.15 * (sizes[1] - sizes[0])
