"""LoRA adapters as sources: what peft's own merge gives, tensor by tensor; and every kind that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.merging.checks.preflight import check
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.adapters import AdapterSource
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source, open_sources
from evomerge.merging.sources.source import architecture_key, fingerprint
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.references import adapted
from tests.conftest import required

peft = required("peft")

STORED = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", PLAIN),
    "rslora": ("llama", PLAIN | {"use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        "llama",
        PLAIN | {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {r"layers.[12].*.q_proj": 5}},
    ),
    "some layers": ("llama", PLAIN | {"layers_to_transform": [0, 2], "bias": "lora_only"}),
    "saved": ("llama", PLAIN | {"modules_to_save": ["lm_head", "norm"]}),
    "biases": ("qwen2", PLAIN | {"bias": "all"}),
    "embeddings": ("llama", {"r": 3, "target_modules": ["embed_tokens", "v_proj"]}),
    "transposed": ("gpt2", {"r": 4, "target_modules": ["c_attn"]}),
    "dora": ("llama", PLAIN | {"use_dora": True, "use_rslora": True}),
    "dora, embeddings": ("llama", {"r": 3, "target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "dora, transposed": ("gpt2", {"r": 4, "target_modules": ["c_attn"], "use_dora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_what_peft_merges(families: Any, make_adapter: Any, tmp_path: Path, kind: str) -> None:
    """To the bit, in the base's dtype, also where the adapter is stored in another."""
    name, settings = KINDS[kind]
    base = families(name).base
    path, expected = make_adapter(base, tmp_path / "adapter", stored=STORED[len(kind) % 3], **settings)
    adapter = open_source(str(path), Checkpoint.open(base))
    assert isinstance(adapter, AdapterSource)
    plain = Checkpoint.open(base)
    changed = {*adapter.adapted, *adapter.replaced}
    assert changed
    for tensor in adapter.names:
        assert adapter.tensor(tensor).dtype == expected[tensor].dtype == torch.bfloat16
        assert torch.equal(adapter.tensor(tensor), expected[tensor]), tensor
        assert torch.equal(adapter.tensor(tensor), plain.tensor(tensor)) == (tensor not in changed)
        assert adapter.shape(tensor) == tuple(expected[tensor].shape)
    if settings.get("use_dora"):
        with pytest.raises(
            CheckpointError, match=r"it is a DoRA adapter, so its change of .* is not of low rank; write"
        ):
            adapter.factors(adapter.adapted[0])


@pytest.mark.parametrize(
    ("first", "rest"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32")],
)
def test_the_base_decides_the_dtype(llama: Any, make_adapter: Any, tmp_path: Path, first: str, rest: str) -> None:
    """Where its tensors differ, the first one does, as in transformers; what is rounded is another source to a run."""
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    cast = {
        name: values.to(getattr(torch, rest if index else first))
        for index, (name, values) in enumerate(sorted(weights.items()))
    }
    save_file(cast, base / "model.safetensors", metadata={"format": "pt"})
    stored = torch.float64 if first == "float64" else torch.bfloat16
    settings = PLAIN | {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"]}
    path, expected = make_adapter(str(base), tmp_path / "adapter", stored=stored, **settings)
    adapter = open_source(str(path), Checkpoint.open(str(base)))
    assert adapter.dtype == getattr(torch, first)
    for tensor in adapter.names:
        assert adapter.tensor(tensor).dtype == expected[tensor].dtype == adapter.dtype
        assert torch.equal(adapter.tensor(tensor), expected[tensor]), tensor
    merged_in = fingerprint(adapter)["files"]["adapter_model.safetensors"].get("merged_in")
    assert merged_in == (first if first in ("float16", "bfloat16") else None)


def test_the_engine_takes_an_adapter_for_a_checkpoint(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, expected = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    sources = open_sources({"base": llama.base, "expert": str(path)}, "base")
    assert check(sources, "base").warnings == ()
    expert = sources["expert"]
    engine = MergeEngine({c.reference: c for c in sources.values()}, base=llama.base)
    merged = engine.apply(source_recipe(expert.reference, expert.layout, out_dtype="float32"))
    for name, values in merged.named_parameters():
        assert torch.equal(values, expected[name].float())
    assert expert.tokenizer.files == sources["base"].tokenizer.files
    assert architecture_key(expert, expert.config) == architecture_key(sources["base"], expert.config)
    own, base = {"adapter_config.json", "adapter_model.safetensors"}, {"config.json", "model.safetensors"}
    assert set(fingerprint(expert)["files"]) == own | base


def test_the_base_is_found_through_the_adapter(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    shutil.copytree(llama.base, tmp_path / "base")
    path, expected = make_adapter(str(tmp_path / "base"), tmp_path / "adapter", **PLAIN)
    edit(path, base_model_name_or_path="../base")
    adapter = open_source(str(path))
    assert torch.equal(adapter.tensor(adapter.adapted[0]), expected[adapter.adapted[0]])
    edit(path, base_model_name_or_path="nowhere/at-all")
    with pytest.raises(CheckpointError, match=r"its base nowhere/at-all is not on this machine; download it, or"):
        open_source(str(path))
    edit(path, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match=r"does not name its base; name it in the recipe \(base_model: BASE\)"):
        open_source(str(path))


def test_another_base_is_refused(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    with pytest.raises(
        CheckpointError, match=r"was trained on .*base, whose weights are not those of .*; name .* as the"
    ):
        open_source(str(path), Checkpoint.open(llama.references[1]))
    moved = Path(shutil.copytree(llama.base, tmp_path / "copy"))
    assert open_source(str(path), Checkpoint.open(str(moved))).names


def test_a_base_that_cannot_be_verified_is_a_warning(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    edit(path, base_model_name_or_path="org/model-7b")
    sources = open_sources({"base": llama.base, "expert": str(path)}, "base")
    assert any("trained on org/model-7b; evomerge cannot" in line for line in check(sources, "base").warnings)


def test_an_adapter_goes_on_the_model_that_the_reference_names(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, expected = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    pair, other = adapted(llama.base, str(path)), adapted(llama.references[1], str(path))
    sources = open_sources({"base": llama.base, "pair": pair, "other": other}, "base")
    assert sources["pair"].base is sources["base"]
    for tensor in sources["pair"].names:
        assert torch.equal(sources["pair"].tensor(tensor), expected[tensor])
        delta = sources["pair"].tensor(tensor).float() - sources["base"].tensor(tensor).float()
        moved = sources["other"].tensor(tensor).float() - sources["other"].base.tensor(tensor).float()
        assert torch.allclose(moved, delta, rtol=0.02, atol=0.002)  # both are rounded to bfloat16
    assert fingerprint(sources["pair"])["files"] != fingerprint(sources["other"])["files"]
    warnings = check(sources, "base").warnings
    (warning,) = (line for line in warnings if "was trained on" in line)
    assert warning.startswith("other: ")
    assert warning.endswith(f"evomerge cannot tell whether {llama.references[1]} is the same model")
    with pytest.raises(CheckpointError, match=r"is not a LoRA adapter; name a folder with adapter_config.json"):
        open_source(adapted(llama.base, llama.references[1]))
    with pytest.raises(CheckpointError, match=r"an adapter needs a whole model as its base; name its base instead"):
        open_source(adapted(str(path), str(path)))


def edit(path: Path, **values: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, r"its peft_type is IA3, and only LORA can be merged; merge the adapter into its model"),
        ({"use_dora": True}, r"has no lora_magnitude_vector, and adapter_config.json has use_dora: true; use the con"),
        ({"lora_bias": True}, r"sets lora_bias"),
        ({"target_parameters": ["experts"]}, r"sets target_parameters"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            r"init_lora_weights=pissa_niter_4 changed .*; save it with path_",
        ),
        (
            {"alpha_pattern": {"(": 3}},
            r"alpha_pattern '\(' in adapter_config.json is not a regular expression; correct it",
        ),
        (
            {"rank_pattern": {"(": 3}},
            r"rank_pattern '\(' in adapter_config.json is not a regular expression",
        ),
        ({"alpha_pattern": [1]}, r"alpha_pattern in adapter_config.json is not a mapping; correct it"),
        ({"lora_alpha": "16"}, r"alpha_pattern or its default in adapter_config.json is '16'; write a number"),
        ({"r": 8}, r"is 4, and adapter_config.json has 8 \(r, rank_pattern\), which also decides its scale; use the"),
        ({"peft_type": "PROMPT_TUNING"}, r"its peft_type is PROMPT_TUNING, and only LORA can be merged; merge the"),
        ({"trainable_token_indices": [1]}, r"sets trainable_token_indices"),
    ],
)
def test_other_kinds_are_refused(llama: Any, make_adapter: Any, tmp_path: Path, values: Any, message: str) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    edit(path, **values)
    with pytest.raises(CheckpointError, match=message):
        open_source(str(path), Checkpoint.open(llama.base))


def test_an_adapter_folder_with_a_chat_template_alone(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    """It has no tokenizer of its own."""
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    sources = open_sources({"base": llama.base, "expert": str(path)}, "base")
    assert sources["expert"].tokenizer.files == ()
    check(sources, "base")


def test_a_configuration_nested_too_deeply(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    (path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"adapter_config.json is damaged .*; save the adapter again"):
        open_source(str(path), Checkpoint.open(llama.base))


def test_pickles_and_damage_are_refused(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    base, weights = Checkpoint.open(llama.base), path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"is damaged or cut short \(.*\); download or save it again"):
        open_source(str(path), base)
    weights.rename(path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"its weights are pickled, which can run code when they are read; save"):
        open_source(str(path), base)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is damaged .*; save the adapter again"):
        open_source(str(path), base)


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(key for key in t if "lora_A" in key)), r"has lora_B without its other half; save"),
        (
            lambda t: t.update({k: v[:, :-1].contiguous() for k, v in t.items() if "lora_A" in k}),
            r"its delta for",
        ),
        (
            lambda t: t.update({"base_model.model.model.mystery.weight": torch.ones(3)}),
            r"has no such tensor; name the base",
        ),
        (lambda t: t.update({"base_model.model.x.ia3_l": torch.ones(3)}), r"x.ia3_l is not a tensor of a LoRA; merge"),
        (
            lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()}),
            r"is stored as I8, and a merge needs",
        ),
        (lambda t: t.update({k: v[None].clone() for k, v in t.items()}), r"the halves of .* are not matrices; merge"),
        (lambda t: t.update({k: v[:0].clone() for k, v in t.items()}), r"the halves of .* are not matrices; merge"),
        (lambda t: t.clear(), r"adapter_model.safetensors contains no tensors; save the adapter again"),
        (
            lambda t: t.update({k.replace("A.", "A.default."): t.pop(k) for k in list(t) if "lora_A" in k}),
            r"has the name of an adapter in it \(default\), so that peft does not load it; save the adapter again",
        ),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(70, 32)}), r"shape \[70, 32\] .*vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(
    llama: Any, make_adapter: Any, tmp_path: Path, change: Change, message: str
) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    tensors = load_file(path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_source(str(path), Checkpoint.open(llama.base))


def test_a_tensor_that_is_both_adapted_and_stored(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    """peft stores a copy of its base's embeddings beside their adapter; it adapts that copy, whatever the model."""
    path, merged = make_adapter(llama.base, tmp_path / "adapter", r=3, target_modules=["embed_tokens"])
    key, name = "base_model.model.model.embed_tokens.base_layer.weight", "model.embed_tokens.weight"
    tensors = load_file(path / "adapter_model.safetensors")
    own = llama.tensors(0)[name].float().contiguous()
    save_file({**tensors, key: own.clone()}, path / "adapter_model.safetensors")
    source = open_source(str(path), llama.checkpoints[llama.base])
    assert torch.equal(source.tensor(name), merged[name])
    save_file({**tensors, key: own + 1}, path / "adapter_model.safetensors")
    source = open_source(str(path), llama.checkpoints[llama.base])
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base, dtype=None), str(path))
    assert torch.equal(source.tensor(name), loaded.merge_and_unload().get_parameter(name))
    assert isinstance(source, AdapterSource)
    assert (source.adapted, source.replaced) == ((name,), ())
    with pytest.raises(CheckpointError, match=r"was trained on another model.embed_tokens.weight, so .*adapters: full"):
        source.factors(name)


def test_tied_embeddings_are_not_adapted(families: Any, make_adapter: Any, tmp_path: Path) -> None:
    base = families("llama_tied").base
    path, _ = make_adapter(base, tmp_path / "adapter", r=2, target_modules=["embed_tokens"])
    with pytest.raises(CheckpointError, match=r"is tied, and it is unclear whether the head should change, too; merge"):
        open_source(str(path), Checkpoint.open(base))


def test_config_json_beside_an_adapter(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, merged = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    shutil.copyfile(Path(llama.base) / "config.json", path / "config.json")  # trainers leave it there
    source = open_source(str(path), llama.checkpoints[llama.base])
    assert all(torch.equal(source.tensor(name), values) for name, values in merged.items())


def test_an_untouched_head_beside_an_adapter_of_a_tied_base(families: Any, make_adapter: Any, tmp_path: Path) -> None:
    tied = families("llama_tied")
    path, merged = make_adapter(tied.base, tmp_path / "adapter", **PLAIN)
    tensors = load_file(path / "adapter_model.safetensors")
    head = tied.tensors(0)["model.embed_tokens.weight"].float().contiguous()
    tensors["base_model.model.lm_head.weight"] = head.clone()
    save_file(tensors, path / "adapter_model.safetensors")
    source = open_source(str(path), tied.checkpoints[tied.base])
    assert all(torch.equal(source.tensor(name), values) for name, values in merged.items())
    tensors["base_model.model.lm_head.weight"] = head + 1
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"changes lm_head.weight, which .* ties to model.embed_tokens.weight"):
        open_source(str(path), tied.checkpoints[tied.base])


def test_an_adapter_with_more_tokens_than_the_base(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, _ = make_adapter(llama.base, tmp_path / "adapter", **PLAIN)
    tensors = load_file(path / "adapter_model.safetensors")
    for name in ("lm_head", "lm_head.original_module", "model.embed_tokens", "model.embed_tokens.original_module"):
        tensors[f"base_model.model.{name}.weight"] = torch.ones(72, 32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"a vocabulary of 72 rows; .*token_embeddings\(72\).*vocabulary:"):
        open_source(str(path), llama.checkpoints[llama.base])
