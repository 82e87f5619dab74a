"""What must be refused before a search starts, and what is only worth a warning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.preflight import Report, check


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
    with pytest.raises(CheckpointError, match=r"expert: model.layers.2.mlp.up_proj.weight holds NaN.*\(1 found\); use"):
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
        match=r"expert: its tokenizer gives 'b' the id 2, and that of base gives it 1; set",
    ):
        check({"base": base, "expert": swapped}, "base")


def test_another_rotary_base_is_a_warning(llama: Any, other: Any) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0}
    report = compare(llama, other("llama", rope_parameters=rope))
    assert any("rope" in line and "a merge has the base's" in line for line in report.warnings)


def test_mixed_precision_is_a_warning(
    llama: Any, make_models: Callable[..., tuple[str, ...]], configs: Any, tmp_path: Path
) -> None:
    (path,) = make_models(tmp_path, configs["llama"](), 1, dtype=torch.float32)
    report = compare(llama, Checkpoint.open(path))
    assert report.warnings == ("weights are stored in different precisions: base bfloat16, expert float32",)
