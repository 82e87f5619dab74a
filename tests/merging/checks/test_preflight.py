"""What must be refused before a search starts, and what is only worth a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evomerge.merging.checks.behaviour import check_chat_template
from evomerge.merging.checks.preflight import Report, check
from evomerge.merging.sources.chat_templates import chat_template
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_sources


@pytest.fixture
def other(make_models: Callable[..., tuple[str, ...]], configs: dict[str, Callable[[], Any]], tmp_path: Path) -> Any:
    """Open a model of another configuration: ``other("llama", vocab_size=80)``."""

    def build(name: str, **changes: Any) -> Checkpoint:
        config = configs[name]()
        for key, value in changes.items():
            setattr(config, key, value)
        return Checkpoint.open(make_models(tmp_path / name, config, 1)[0])

    return build


def compare(llama: Any, expert: Checkpoint) -> Report:
    return check({"base": llama.checkpoints[llama.base], "expert": expert}, "base")


def test_report(family: Any) -> None:
    named = dict(zip(("base", "a", "b"), family.checkpoints.values(), strict=True))
    report = check(named, "base")
    assert report.layers == 4
    assert report.tied == named["base"].outline.tied
    assert report.parameters == named["base"].outline.num_parameters
    assert report.architecture == named["base"].outline.architecture
    assert report.dtypes == dict.fromkeys(named, "bfloat16")
    assert report.warnings == ()


def test_architectures_differ(llama: Any, families: Any) -> None:
    mistral = families("mistral")
    with pytest.raises(
        CheckpointError,
        match=r"its architecture is MistralForCausalLM, and that of base is Llama",
    ):
        compare(llama, mistral.checkpoints[mistral.base])


def test_tied_against_untied(llama: Any, families: Any) -> None:
    tied = families("llama_tied")
    with pytest.raises(CheckpointError, match=r"head of expert is tied.*and the head of base is not; save expert with"):
        compare(llama, tied.checkpoints[tied.base])


def test_depth_differs(llama: Any, other: Any) -> None:
    with pytest.raises(CheckpointError, match=r"expert: it has 3 layers, and base has 4; name models of the same"):
        compare(llama, other("llama", num_hidden_layers=3))


def test_shapes_differ(llama: Any, other: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"expert: .*mlp.gate_proj.weight has shape \[64, 32\] here and \[48, 32\]"
    ):
        compare(llama, other("llama", intermediate_size=64))


def test_vocabulary_sizes_differ(llama: Any, other: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"\(lm_head.weight likewise\): the vocabularies differ in size; set vocabulary:"
    ):
        compare(llama, other("llama", vocab_size=80))


def test_tensors_differ(llama: Any, other: Any) -> None:
    with pytest.raises(CheckpointError, match=r"expert has the tensor .*k_proj.bias, and base does not"):
        compare(llama, other("llama", attention_bias=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(llama: Any, tmp_path: Path, bad: float) -> None:
    shutil.copytree(llama.references[1], tmp_path, dirs_exist_ok=True)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.2.mlp.up_proj.weight"][3, 4] = bad
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expert = Checkpoint.open(str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"expert: model.layers.2.mlp.up_proj.weight contains NaN.*\(1 found\); use"
    ):
        compare(llama, expert)
    check({"base": llama.checkpoints[llama.base], "expert": expert}, "base", scan=False)


def with_tokenizer(source: str, folder: Path, tokens: list[str]) -> Checkpoint:
    shutil.copytree(source, folder)
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a").save_pretrained(folder)
    return Checkpoint.open(str(folder))


def test_tokenizers_are_compared(llama: Any, tmp_path: Path) -> None:
    base = with_tokenizer(llama.references[0], tmp_path / "base", ["a", "b", "c"])
    same = with_tokenizer(llama.references[1], tmp_path / "same", ["a", "b", "c"])
    check({"base": base, "expert": same}, "base")
    swapped = with_tokenizer(llama.references[1], tmp_path / "swapped", ["a", "c", "b"])
    with pytest.raises(
        CheckpointError,
        match=r"expert: its tokenizer gives 'b' the id 2, and that of base gives it the id 1; set",
    ):
        check({"base": base, "expert": swapped}, "base")


def test_another_rotary_base_is_a_warning(llama: Any, other: Any) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0}
    report = compare(llama, other("llama", rope_parameters=rope))
    assert any("rope" in line and "a merge has the base's" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("num_attention_heads", 2), ("max_position_embeddings", 99)],
)
def test_every_other_setting_is_a_warning(llama: Any, tmp_path: Path, key: str, value: Any) -> None:
    shutil.copytree(llama.references[1], tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {key: value, "attention_dropout": 0.1, "some_tool_version": 3, "use_cache": False}
    if key == "num_attention_heads":
        values["num_key_value_heads"], values["head_dim"] = 1, 16  # of the same shapes
    (tmp_path / "config.json").write_text(json.dumps(values))
    named = {line.split()[1] for line in compare(llama, Checkpoint.open(str(tmp_path))).warnings}
    assert key in named
    assert named <= {key, "num_key_value_heads", "head_dim"}


def test_mixed_precision_is_a_warning(
    llama: Any, make_models: Callable[..., tuple[str, ...]], configs: Any, tmp_path: Path
) -> None:
    (path,) = make_models(tmp_path, configs["llama"](), 1, dtype=torch.float32)
    report = compare(llama, Checkpoint.open(path))
    assert report.warnings == ("weights are stored in different precisions: base bfloat16, expert float32",)


# --- where texts end ---

CHATML = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture
def bare_and_chat(llama: Any, tmp_path: Path) -> dict[str, Path]:
    """A base that ends with token 2, and a chat model of the same tokens that ends with 2 or 5 and has a template."""
    folders = {}
    for index, name in enumerate(("base", "chat")):
        with_tokenizer(llama.references[index], tmp_path / name, [f"t{n}" if n else "a" for n in range(64)])
        folders[name] = tmp_path / name
    (folders["chat"] / "chat_template.jinja").write_text(CHATML)
    generation = {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6}
    (folders["chat"] / "generation_config.json").write_text(json.dumps(generation))
    (folders["base"] / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folders


def test_differences_in_ending_a_text_are_named_with_the_key_that_decides(bare_and_chat: dict[str, Path]) -> None:
    models = {name: str(folder) for name, folder in bare_and_chat.items()}
    warnings = check(open_sources(models, "base"), "base").warnings
    assert [line for line in warnings if "chat: its texts end with token 2 or 5 (eos_token_id), and those of" in line]
    assert [line for line in warnings if "chat: it has a chat template and base has none" in line]
    assert [line for line in warnings if "differs in do_sample, temperature; a merge has the base's" in line]
    assert all("vocabulary: first in a search file, or tokenizer_source: MODEL" in line for line in warnings[:2])


def test_a_policy_decides_ending_a_text_too(bare_and_chat: dict[str, Path]) -> None:
    """Although both models have the same tokens in the same rows."""
    models = {name: str(folder) for name, folder in bare_and_chat.items()}
    sources = open_sources(models, "base", vocabulary="first")
    assert sources["base"].generation_config() == {"eos_token_id": [2, 5]}
    assert sources["base"].tokenizer.chat_template() == CHATML
    warnings = check(sources, "base").warnings
    assert [line for line in warnings if line.startswith("base: its texts end with token 2 (eos_token_id)")]
    assert not [line for line in warnings if line.startswith("chat: its texts")]
    check_chat_template(sources, "base")


def test_a_merge_without_a_chat_template_names_a_model_that_has_one(bare_and_chat: dict[str, Path], llama: Any) -> None:
    models = {name: str(folder) for name, folder in bare_and_chat.items()}
    with pytest.raises(CheckpointError, match=r"of base has no chat template, and chat has one: set vocabulary: first"):
        check_chat_template(open_sources(models, "base"), "base")
    models = {"base": models["base"], "other": llama.references[2], "chat": models["chat"]}
    with pytest.raises(
        CheckpointError, match=r"chat has one: list it first among the models and set vocabulary: first"
    ):
        check_chat_template(open_sources(models, "base"), "base")
    del models["chat"]
    with pytest.raises(CheckpointError, match=r"none of the models has one: set fitness.apply_chat_template: false"):
        check_chat_template(open_sources(models, "base"), "base")


def test_automatic_templates_are_the_models_own(bare_and_chat: dict[str, Path]) -> None:
    models = {name: str(folder) for name, folder in bare_and_chat.items()}
    sources = open_sources(models, "base", vocabulary="base")
    assert chat_template("auto", sources.values()) == CHATML
