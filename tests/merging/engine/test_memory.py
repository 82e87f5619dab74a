"""A worker's memory without the libraries: measured in its own process, compared with the footprint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search_spaces.recipes import mergekit_yaml

COMPILED = 48 << 20  # bytes of compiled kernels and buffers, whatever the model's size

MEASURE = """
import sys
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.engine.engine import MergeEngine
from search_spaces.recipes import mergekit_yaml

def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

recipe = mergekit_yaml.read(sys.argv[1])
engine = MergeEngine({path: Checkpoint.open(path) for path in recipe.models}, base=recipe.donor)
import transformers.models.llama.modeling_llama
try:
    import numba
except ImportError:
    pass
start = resident("VmRSS")
engine.prepare(recipe)
for _ in range(3):
    engine.apply(recipe)
cost = engine.footprint(recipe)
print(resident("VmHWM") - start, cost.peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_ties"])
def test_a_worker_holds_no_more_than_the_footprint_says(method: str, tmp_path: Path, make_models: Any) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, vocab_size=8192
    )
    base, *experts = make_models(tmp_path, config, 3)
    models = [{"model": path, "parameters": {"weight": 0.4}} for path in experts]
    recipe = mergekit_yaml.build({"merge_method": method, "base_model": base, "models": models, "dtype": "float32"})
    (tmp_path / "recipe.yaml").write_text(mergekit_yaml.dump(recipe))
    program = [sys.executable, "-c", MEASURE, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    held, said = map(int, done.stdout.split())
    assert said / 3 < held <= said + COMPILED
