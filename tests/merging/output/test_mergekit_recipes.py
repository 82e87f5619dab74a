"""Recipes as mergekit's documentation teaches to write them, run unmodified by `evomerge merge`.

The recipes are in `documented_recipes`. Where the methods are the same, the slow test lets mergekit 0.1.5 merge these
files, too, and compares the tensors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from evomerge.cli.main import main
from search_spaces.recipes.methods import METHODS
from tests.conftest import required
from tests.merging.output.documented_recipes import RECIPES, SEQUENCES
from tests.merging.output.ulps import ulps_apart

LAYERS = 4
MODELS = ("origin", "chat", "math", "code")

COMPARED = [name for name in RECIPES if not name.startswith(("dare", "della", "model_stock"))]
"""All but those that draw masks, of which mergekit draws others, and model stock of models that disagree."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_models: Any, make_adapter: Any) -> Path:
    """Return a folder with four tiny models that share a tokenizer, two with a chat template, and an adapter."""
    folder = tmp_path_factory.mktemp("recipes")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(16)}, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    for name, path in zip(MODELS, make_models(folder, config, len(MODELS), dtype=torch.float32), strict=True):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1", unk_token="w2")
        if name in ("math", "code"):
            tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(path)
        Path(path).rename(folder / name)
    make_adapter(str(folder / "origin"), folder / "style", r=4, target_modules=["q_proj", "up_proj"])
    return folder


@pytest.fixture
def merge(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return `evomerge merge`, run in this process in the folder of the models."""

    def run(text: str, out: Path, *options: str) -> Path:
        recipe = out.with_suffix(".yaml")
        recipe.write_text(text, encoding="utf-8")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["evomerge", "merge", str(recipe), str(out), *options])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr().err
        return out

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_unmodified(name: str, merge: Any, tmp_path: Path) -> None:
    text = RECIPES[name]
    out = merge(text, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.config.num_hidden_layers == {"passthrough": 6, "passthrough scaled": 5}.get(name, LAYERS)
    lines = [line.split(":")[1].strip() for line in text.splitlines() if line.strip().startswith(("dtype", "out_dt"))]
    assert str(model.dtype) == f"torch.{lines[-1]}"
    assert torch.isfinite(model(torch.tensor([[1, 5, 3]])).logits).all()
    assert len(AutoTokenizer.from_pretrained(out)) == {"tokens": 18}.get(name, 16)
    assert model.config.vocab_size == {"tokens": 24}.get(name, 16)


def test_recipes_cover_the_methods() -> None:
    lines = [line.split() for text in RECIPES.values() for line in text.splitlines()]
    methods = {line[1] for line in lines if line and line[0] == "merge_method:"}
    assert methods == {name for name, spec in METHODS.items() if spec.in_mergekit}


def test_templates_of_the_recipes(merge: Any, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "w3"}]
    named = AutoTokenizer.from_pretrained(merge(RECIPES["references and tokenizer"], tmp_path / "named"))
    rendered = named.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nw3<|im_end|>\n<|im_start|>assistant\n"
    common = AutoTokenizer.from_pretrained(merge(RECIPES["tokenizer section"], tmp_path / "common"))
    assert common.apply_chat_template(messages, tokenize=False) == "w3"  # of math; chat has none


@pytest.mark.parametrize("name", SEQUENCES)
def test_documents_are_merged_in_turn(name: str, merge: Any, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", merge(_documents(SEQUENCES[name]), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.yaml"]  # nothing else is left
    again = merge((out / "recipe.yaml").read_text(), tmp_path / "again", "--intermediates", str(kept))
    assert _tensors(again).keys() == _tensors(out).keys()
    assert all(torch.equal(values, _tensors(again)[key]) for key, values in _tensors(out).items())
    named = {"out": ["first-merge", "second-merge"], "deeper": ["mixed"], "layers": ["lower", "upper"]}[name]
    assert sorted(path.name for path in kept.iterdir()) == named
    assert str(tmp_path) not in (out / "recipe.yaml").read_text() + (out / "README.md").read_text()
    assert "name: " + named[0] in (out / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == {"deeper": 6}.get(name, LAYERS)


def _documents(text: str) -> str:
    return textwrap.dedent(text)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


_MERGE_ALL = """
import sys
from pathlib import Path
import yaml
from mergekit.scripts.multimerge import main
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
folder = Path(sys.argv[1])
for recipe in sorted(folder.glob("*.yaml")):
    if "---" in recipe.read_text():
        places = ["-I", str(folder / recipe.stem), "--out-path", str(folder / recipe.stem / "out")]
        loras = ["--lora-merge-cache", str(folder / "loras")]
        main([str(recipe), *places, *loras, "--no-write-model-card"], standalone_mode=False)
        continue
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    options = MergeOptions(write_model_card=False, copy_tokenizer=False, lora_merge_cache=str(folder / "loras"))
    run_merge(config, str(folder / recipe.stem), options)
"""


@pytest.mark.slow
def test_mergekit_makes_the_same_of_them(merge: Any, folder: Path, tmp_path: Path) -> None:
    required("mergekit")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    texts = {name: RECIPES[name] for name in COMPARED} | {name: _documents(text) for name, text in SEQUENCES.items()}
    for index, text in enumerate(texts.values()):
        (theirs / f"{index}.yaml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _MERGE_ALL, str(theirs)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    distances = {}
    for index, (name, text) in enumerate(texts.items()):
        place = theirs / str(index) / (name if name in SEQUENCES else "")
        ours, other = _tensors(merge(text, tmp_path / f"ours{index}")), _tensors(place)
        assert ours.keys() == other.keys(), name
        assert AutoConfig.from_pretrained(place).num_hidden_layers
        distances[name] = max(ulps_apart(values, other[key]) for key, values in ours.items())
    assert max(distances.values()) <= 1, distances  # what was seen: 0
