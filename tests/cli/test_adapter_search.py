"""A search over LoRA adapters with the installed command, from the search file to an adapter that peft loads."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.conftest import required

peft = required("peft")

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
BASE = ZOO / "models" / "base"
COMMAND = Path(sys.executable).parent / "evomerge"


def save_adapter(folder, seed):
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(module, config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "core"])
def test_search_export_merge(tmp_path, way, evomerge, tasks):
    for index in (1, 2):
        save_adapter(tmp_path / f"adapter{index}", index)
    search = {
        "models": {"base": str(BASE), "one": "adapter1", "two": "adapter2"},
        "space": {"method": "ties", "layers_per_group": 3},
        "adapters": way,
        "strategy": {"kind": "cma_es", "population": 4, "score_mean_every": 2},
        "fitness": {
            "tasks": [{"task": "zoo_target_gen"}],
            "include_path": [str(tasks)],
            "subset": {"items": 8},
            "held_out": "test",
        },
        "budget": {"evaluations": 8},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search), encoding="utf-8")

    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    evomerge("export", "run", "--rank", "1", "-o", "recipe.yaml", cwd=tmp_path)
    assert ("adapters: core" in (tmp_path / "recipe.yaml").read_text()) == (way == "core")
    evomerge("merge", "recipe.yaml", "merged", cwd=tmp_path)
    command = ("merge", "recipe.yaml", "adapter", "--adapter")
    if way == "full":
        refused = evomerge(*command, cwd=tmp_path, code=2)
        assert "ties on full weights gives no low-rank merge" in refused
        return
    assert "an adapter of rank 8" in evomerge(*command, cwd=tmp_path)
    tokens = torch.arange(24).view(2, 12)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.inference_mode():  # the checkpoint is rounded to bfloat16, the adapter is not
        assert torch.allclose(adapted(tokens).logits, merged(tokens).logits, atol=0.2)
