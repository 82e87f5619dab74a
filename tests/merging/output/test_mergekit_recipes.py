"""Recipes as mergekit's documentation teaches to write them, run unmodified by `evomerge merge`.

Each is written here, for tiny models in the current folder; its comment says which documented feature it covers. Where
the methods are the same, the slow test lets mergekit 0.1.5 merge the very same files and compares the tensors.
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

LAYERS = 4
MODELS = ("origin", "chat", "math", "code")

RECIPES = {
    # A weight for each model, a precision, no base.
    "linear": """
        merge_method: linear
        models:
          - model: chat
            parameters: {weight: 1.0}
          - model: math
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.5}
        dtype: float16
        """,
    # A shared parameter switched off; a number that YAML 1.1 reads as text.
    "linear without normalising": """
        merge_method: linear
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 5e-1}
        parameters: {normalize: false}
        dtype: float32
        """,
    # Slices over all layers; gradients by filter, with a fallback for the rest.
    "slerp gradient": """
        merge_method: slerp
        base_model: chat
        slices:
          - sources:
              - {model: chat, layer_range: [0, 4]}
              - {model: math, layer_range: [0, 4]}
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: float16
        """,
    # The same as whole models; the base need not be listed.
    "slerp models": """
        merge_method: slerp
        base_model: chat
        models:
          - model: math
        parameters: {t: 0.4}
        dtype: bfloat16
        """,
    # Two models without a base, as one vector per tensor.
    "nuslerp": """
        merge_method: nuslerp
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.5}
        dtype: float32
        """,
    # Task vectors on a base, by columns and by rows.
    "nuslerp on a base, by column": """
        merge_method: nuslerp
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.5}
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: false}
        dtype: float32
        """,
    "nuslerp by row": """
        merge_method: nuslerp
        models:
          - model: chat
            parameters: {weight: 0.2}
          - model: code
            parameters: {weight: 0.6}
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
        dtype: float32
        """,
    # More than two models; all shared parameters written out.
    "multislerp": """
        merge_method: multislerp
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.4}
        parameters: {normalize_weights: true, eps: 1.0e-8}
        dtype: float32
        """,
    "multislerp on a base": """
        merge_method: multislerp
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        dtype: float32
        """,
    "karcher": """
        merge_method: karcher
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {max_iter: 20, tol: 1.0e-6}
        dtype: float32
        """,
    # A factor for the sum, and a weight for all models in the outermost scope.
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
          - model: math
        parameters: {weight: 0.4, lambda: 0.9}
        dtype: float32
        """,
    # Densities and weights as gradients and by filter, masks in 8 bits; the base listed among the models.
    "ties": """
        merge_method: ties
        base_model: origin
        models:
          - model: origin
          - model: chat
            parameters:
              density: [1, 0.7, 0.1]
              weight: 1.0
          - model: math
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1]
          - model: code
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        """,
    "ties without normalising": """
        merge_method: ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.5, weight: 0.5}
          - model: math
            parameters: {density: 0.5, weight: 0.5}
        parameters: {normalize: false, int8_mask: true, lambda: 1.2}
        dtype: float32
        """,
    "dare_linear": """
        merge_method: dare_linear
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.6, weight: 0.5}
          - model: math
            parameters: {density: 0.8, weight: 0.5}
        parameters: {rescale: true, normalize: false}
        dtype: bfloat16
        """,
    "dare_ties": """
        merge_method: dare_ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.53, weight: 0.4}
          - model: math
            parameters: {density: 0.53, weight: 0.3}
          - model: code
            parameters: {density: 0.53, weight: 0.3}
        parameters: {int8_mask: true, lambda: 1.1}
        dtype: bfloat16
        """,
    "della": """
        merge_method: della
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.5, weight: 0.6, epsilon: 0.1}
          - model: math
            parameters: {density: 0.6, weight: 0.4, epsilon: 0.05}
        parameters: {lambda: 1.0, normalize: true, int8_mask: true}
        dtype: bfloat16
        """,
    "della_linear": """
        merge_method: della_linear
        base_model: origin
        models:
          - model: chat
            parameters: {density: [0.4, 0.6], weight: 0.6, epsilon: 0.1}
          - model: math
            parameters: {density: 0.6, weight: 0.4, epsilon: 0.05}
        parameters: {lambda: 1.0}
        dtype: bfloat16
        """,
    "breadcrumbs": """
        merge_method: breadcrumbs
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.9, gamma: 0.01, weight: 0.5}
          - model: math
            parameters: {density: 0.8, gamma: 0.05, weight: 0.5}
        dtype: float32
        """,
    "breadcrumbs_ties": """
        merge_method: breadcrumbs_ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.9, gamma: 0.01, weight: 0.5}
          - model: math
            parameters: {density: 0.8, gamma: 0.05, weight: 0.5}
        parameters: {lambda: 0.8}
        dtype: float32
        """,
    "sce": """
        merge_method: sce
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {select_topk: 0.1}
        dtype: float32
        """,
    "model_stock": """
        merge_method: model_stock
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        dtype: float32
        """,
    "model_stock by row": """
        merge_method: model_stock
        base_model: origin
        models:
          - model: chat
          - model: math
        parameters: {filter_wise: true}
        dtype: float32
        """,
    # Two models, entry by entry.
    "nearswap": """
        merge_method: nearswap
        base_model: chat
        models:
          - model: math
        parameters: {t: 0.005}
        dtype: float32
        """,
    "arcee_fusion": """
        merge_method: arcee_fusion
        base_model: chat
        models:
          - model: chat
          - model: math
        dtype: float32
        """,
    "ram": """
        merge_method: ram
        base_model: origin
        models:
          - model: chat
          - model: math
        dtype: float32
        """,
    "ramplus_tl": """
        merge_method: ramplus_tl
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {r: 0.1, alpha: 0.2, epsilon: 1.0e-3}
        dtype: float32
        """,
    # A deeper model out of overlapping parts, with no base named.
    "passthrough": """
        merge_method: passthrough
        slices:
          - sources:
              - model: chat
                layer_range: [0, 3]
          - sources:
              - model: math
                layer_range: [1, 4]
        dtype: float16
        """,
    # Some tensors of a slice scaled, by filter.
    "passthrough scaled": """
        merge_method: passthrough
        base_model: chat
        slices:
          - sources: [{model: chat, layer_range: [0, 2]}]
          - sources:
              - model: chat
                layer_range: [1, 4]
                parameters:
                  scale:
                    - filter: o_proj
                      value: 0.0
                    - filter: down_proj
                      value: 0.5
                    - value: 1.0
        dtype: bfloat16
        """,
    # Parameters in every scope: source, slice, whole; the narrowest that says anything wins.
    "scopes": """
        merge_method: task_arithmetic
        base_model: origin
        slices:
          - sources:
              - {model: origin, layer_range: [0, 2]}
              - {model: chat, layer_range: [0, 2], parameters: {weight: [0.2, 0.8]}}
              - {model: math, layer_range: [0, 2]}
            parameters: {weight: [{filter: mlp, value: 0.7}]}
          - sources:
              - {model: origin, layer_range: [2, 4]}
              - {model: chat, layer_range: [2, 4]}
              - {model: math, layer_range: [2, 4], parameters: {weight: 0.1}}
        parameters: {weight: 0.3, normalize: false}
        dtype: float32
        """,
    # The one module of a language model named; a result in another precision than the arithmetic.
    "modules": """
        merge_method: linear
        base_model: chat
        modules:
          default:
            slices:
              - sources:
                  - {model: chat, layer_range: [0, 4], parameters: {weight: 0.6}}
                  - {model: math, layer_range: [0, 4], parameters: {weight: 0.4}}
        dtype: float32
        out_dtype: bfloat16
        """,
    # A model as a mapping; a condition that is no list; the tokenizer and template of a model that is not the base.
    "references and tokenizer": """
        merge_method: linear
        base_model: chat
        models:
          - model: {model: {path: chat}}
            parameters: {weight: {filter: "*", value: 0.5}}
          - model: math
            parameters: {weight: 0.5}
        tokenizer_source: math
        chat_template: chatml
        dtype: float32
        """,
    # LoRA adapters put on a model by name; the same adapter on a model that it was not trained on.
    "adapters": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: origin+style
            parameters: {weight: 0.6}
          - model: {model: {path: math}, lora: {path: style}}
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.2}
        dtype: float32
        """,
    "adapter as base": """
        merge_method: slerp
        base_model: chat+style
        models:
          - model: code
        parameters: {t: [0.2, 0.8]}
        dtype: float32
        """,
    # The newer spelling of a tokenizer, and the most common template among the models.
    "tokenizer section": """
        merge_method: linear
        base_model: chat
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        tokenizer: {source: base}
        chat_template: auto
        dtype: float32
        """,
    # Rows of single tokens: of one model for all, of another token, zeros; tokens that no model has; padding.
    "tokens": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        tokenizer:
          source: union
          tokens:
            w7:
              source: math
              force: true
            w9:
              source:
                kind: zero
              force: true
            <|im_start|>:
              source:
                kind: "model_token"
                model: chat
                token: w5
            <|im_end|>:
              source:
                kind: "model_token"
                model: math
                token_id: 3
          pad_to_multiple_of: 8
        dtype: float32
        """,
}

# Files of several documents, as mergekit-multi reads them; a key is the folder of the result.
STAGES = {
    # Two named merges, the second on the first, and a last one without a name.
    "out": """
        name: first-merge
        merge_method: linear
        models:
          - model: chat
          - model: math
        parameters: {weight: 0.5}
        dtype: float32
        ---
        name: second-merge
        merge_method: slerp
        base_model: first-merge  # the one before
        models:
          - model: code+style
        parameters: {t: 0.3}
        dtype: float32
        ---
        merge_method: ties
        base_model: origin
        models:
          - model: second-merge
            parameters: {density: 0.7, weight: 0.5}
          - model: first-merge+style
            parameters: {density: 0.8, weight: 0.5}
        tokenizer_source: base
        dtype: float32
        """,
    # All have names, and the order is not that of their use: layers of a merge are repeated.
    "deeper": """
        name: mixed
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.4}
        dtype: float32
        ---
        name: deeper
        merge_method: passthrough
        slices:
          - sources: [{model: mixed, layer_range: [0, 3]}]
          - sources: [{model: mixed, layer_range: [1, 4]}]
        dtype: float32
        """,
    # A method for the lower layers and the ends, another for the upper ones.
    "layers": """
        name: lower
        merge_method: ties
        base_model: origin
        models:
          - model: math
            parameters: {weight: 0.8, density: 0.5}
          - model: code
            parameters: {weight: 0.6, density: 0.5}
        dtype: float32
        ---
        name: upper
        merge_method: slerp
        base_model: math
        models:
          - model: code
        parameters: {t: 0.4}
        dtype: float32
        ---
        name: layers
        merge_method: passthrough
        base_model: origin
        slices:
          - sources: [{model: lower, layer_range: [0, 2]}]
          - sources: [{model: upper, layer_range: [2, 4]}]
          - sources: [{model: lower, layer_range: [4, 4]}]
        dtype: float32
        """,
}

# How far mergekit's weights may be from ours, with the reason. Not compared are the methods that draw masks (mergekit
# has a generator of its own and rescales otherwise) and the two where it differs on purpose: see the table of methods.
SAME, ROUNDED = 1e-6, 4e-3
"""Float32 throughout; half precision, to which mergekit rounds after every step and we once."""
PARITY = {
    "linear": ROUNDED,
    "linear without normalising": SAME,
    "slerp gradient": ROUNDED,
    "slerp models": 2e-2,  # bfloat16
    "nuslerp": SAME,
    "nuslerp on a base, by column": SAME,
    "nuslerp by row": SAME,
    "multislerp": SAME,
    "multislerp on a base": SAME,
    "karcher": 1e-5,
    "task_arithmetic": SAME,
    "ties without normalising": SAME,
    "sce": SAME,
    "nearswap": SAME,
    "arcee_fusion": SAME,
    "ram": SAME,
    "ramplus_tl": SAME,
    "passthrough": SAME,
    "passthrough scaled": SAME,
    "scopes": SAME,
    "modules": 4e-3,
    "references and tokenizer": SAME,
    "adapters": SAME,
    "adapter as base": SAME,
    "tokenizer section": SAME,
    "tokens": SAME,
}


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


@pytest.mark.parametrize("name", STAGES)
def test_documents_are_merged_in_turn(name: str, merge: Any, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", merge(_documents(STAGES[name]), tmp_path / "out")
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
    texts = {name: RECIPES[name] for name in PARITY} | {name: _documents(text) for name, text in STAGES.items()}
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
        place = theirs / str(index) / (name if name in STAGES else "")
        ours, other = _tensors(merge(text, tmp_path / f"ours{index}")), _tensors(place)
        assert ours.keys() == other.keys(), name
        assert AutoConfig.from_pretrained(place).num_hidden_layers
        distance = max(float((ours[key].double() - other[key].double()).abs().max()) for key in ours)
        if distance > PARITY.get(name, SAME):
            distances[name] = distance
    assert not distances
