"""Which settings of config.json are compared, and what is said of templates and ends of texts that differ."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import CONFIG_MAPPING, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from evomerge.merging.checks.behaviour import behaviour, check_chat_template, differing_statements
from evomerge.merging.checks.preflight import check
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.chat_templates import chat_template
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_sources
from search_spaces.recipes.baselines import source_recipe, uniform_recipe

Values = dict[str, Any]


def configured(config: PretrainedConfig) -> Any:
    """Return as much of a source as the comparison of settings looks at."""
    return SimpleNamespace(config=config, outline=SimpleNamespace(stated=None))


def named(kind: str, own: Values, base: Values) -> list[str]:
    """Return the settings that are named as different."""
    sources = [configured(CONFIG_MAPPING[kind].from_dict(dict(values))) for values in (own, base)]
    lines = list(behaviour("expert", sources[0], "base", sources[1]))
    assert all(line.startswith("expert: ") and line.endswith("; a merge has the base's") for line in lines)
    return [line.split()[1] for line in lines]


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"num_attention_heads": 8}),
        ("llama", {"max_position_embeddings": 99}),
        ("gemma2", {"query_pre_attn_scalar": 1}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": 1.0}),
        ("gemma2", {"sliding_window": 99}),
        ("granite", {"embedding_multiplier": 2.0}),
        ("granite", {"logits_scaling": 2.0}),
        ("granite", {"residual_multiplier": 2.0}),
        ("granite", {"attention_multiplier": 2.0}),
        ("cohere", {"logit_scale": 2.0}),
        ("qwen3_moe", {"num_experts_per_tok": 3}),
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("llama", {"some_scale_that_a_fork_reads": 2}),
    ],
)
def test_what_changes_a_computation_is_named(kind: str, own: Values) -> None:
    assert next(iter(own)) in named(kind, own, {})
    assert named(kind, own, own) == []


def test_kinds_of_layers_are_named() -> None:
    own = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    base = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    assert named("gemma2", own, base) == ["layer_types"]


def test_rotary_settings_in_their_old_and_their_new_form() -> None:
    """As files before transformers 5 write them, and since."""
    theta = {"rope_type": "default", "rope_theta": 5e5}
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert named("llama", {"rope_theta": 5e5}, {"rope_parameters": theta}) == []
    assert named("llama", {"rope_theta": 5e5}, {}) == ["rope_parameters"]
    old = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert named("llama", old, {"rope_parameters": linear}) == []
    assert named("llama", old, {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert named("llama", old, {}) == ["rope_parameters"]


@pytest.mark.parametrize(
    "own",
    [
        {"attention_bias": False, "mlp_bias": False, "head_dim": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
        {"attention_dropout": 0.1, "use_cache": False, "dtype": "float16", "initializer_range": 0.5},
        {"transformers_version": "4.1", "unsloth_fixed": True, "some_tool_version": 3, "_name_or_path": "x"},
        {"architectures": ["Mine"], "pretraining_tp": 2, "bos_token_id": 7, "tie_word_embeddings": True},
    ],
)
def test_defaults_and_what_changes_nothing_are_not(own: Values) -> None:
    assert named("llama", own, {}) == []


def test_long_values_are_cut() -> None:
    sources = [configured(CONFIG_MAPPING["llama"](x=list(range(n)))) for n in (900, 901)]
    (line,) = behaviour("expert", sources[0], "base", sources[1])
    assert len(line) < 400


# --- ends of texts, chat templates ---


def with_tokenizer(source: str, folder: Path, *, eos: int = 2, config: Values | None = None) -> Path:
    """Copy a model; give it a tokenizer whose tokens are t0, t1, ..., which ends texts with number `eos`."""
    shutil.copytree(source, folder)
    (folder / "generation_config.json").unlink()
    backend = Tokenizer(models.WordLevel({f"t{n}": n for n in range(64)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=f"t{eos}").save_pretrained(folder)
    known = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(known | (config or {})))
    return folder


def generation(folder: Path, **values: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def lines(base: Path, expert: Path, **options: Any) -> list[str]:
    return list(
        differing_statements(open_sources({"base": str(base), "expert": str(expert)}, "base", **options), "base")
    )


@pytest.mark.parametrize(
    ("own", "same"),
    [
        ({"eos_token_id": 2}, True),
        ({"eos_token_id": [2]}, True),
        (None, True),  # config.json has it
        ({"eos_token_id": [5, 2]}, False),
        ({"bos_token_id": 1}, False),  # transformers then asks config.json for nothing
    ],
)
def test_ids_of_the_end_as_transformers_reads_them(llama: Any, tmp_path: Path, own: Values | None, same: bool) -> None:
    base = with_tokenizer(llama.references[0], tmp_path / "base")
    expert = with_tokenizer(llama.references[1], tmp_path / "expert")
    generation(base, eos_token_id=2)
    if own is not None:
        generation(expert, **own)
    assert any(line.startswith("expert: its texts end with") for line in lines(base, expert)) is not same


def test_a_tokenizer_that_ends_texts_elsewhere(llama: Any, tmp_path: Path) -> None:
    base = with_tokenizer(llama.references[0], tmp_path / "base", eos=5)
    expert = with_tokenizer(llama.references[1], tmp_path / "expert", eos=5)
    said = (
        "base: its tokenizer ends texts with token 5 (eos_token), and its generation_config.json or config.json with 2"
    )
    assert [line for line in lines(base, expert) if line.startswith(said)]
    generation(base, eos_token_id=[2, 5])
    generation(expert, eos_token_id=[2, 5])
    assert lines(base, expert) == []


NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]


def test_templates_wherever_they_are_stored(llama: Any, tmp_path: Path) -> None:
    """In tokenizer_config.json, one or a list; in a file of their own; in a folder of named ones."""
    listed = with_tokenizer(llama.references[0], tmp_path / "listed", config={"chat_template": NAMED})
    files = with_tokenizer(llama.references[1], tmp_path / "files")
    (files / "chat_template.jinja").write_text("D")
    (files / "additional_chat_templates").mkdir()
    (files / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    assert lines(listed, files) == []
    (files / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert ["its chat template named tool_use differs from that of base" in line for line in lines(listed, files)] == [
        True
    ]
    one = with_tokenizer(llama.references[1], tmp_path / "one", config={"chat_template": "other"})
    (line,) = lines(listed, one)
    assert "its chat template differs from that of base" in line
    both = with_tokenizer(llama.references[1], tmp_path / "both", config={"chat_template": "not read"})
    (both / "chat_template.jinja").write_text("D")
    sources = open_sources({"listed": str(listed), "both": str(both), "one": str(one)}, "listed")
    check_chat_template(sources, "listed")
    assert [source.tokenizer.chat_template() for source in sources.values()] == ["D", "D", "other"]
    assert sources["both"].tokenizer.load().chat_template == "D"
    assert sources["listed"].tokenizer.load().chat_template == {"default": "D", "tool_use": "T"}
    assert chat_template("auto", sources.values()) == "D"


def test_a_source_in_a_list_of_named_templates_alone(llama: Any, tmp_path: Path) -> None:
    base = with_tokenizer(llama.references[0], tmp_path / "base", config={"chat_template": NAMED[1:]})
    with pytest.raises(CheckpointError, match=r"of base has no chat template, and none of the models has one"):
        check_chat_template(open_sources({"base": str(base), "expert": llama.references[1]}, "base"), "base")


@pytest.mark.parametrize("policy", [None, "base", "first"])
def test_candidates_source_rows_and_exports_end_texts_alike(llama: Any, tmp_path: Path, policy: str | None) -> None:
    """One rule: a merge as its base, a source's row as the source; with a policy all as the model that it names."""
    base = with_tokenizer(llama.references[0], tmp_path / "base", config={"chat_template": "B"})
    expert = with_tokenizer(llama.references[1], tmp_path / "expert", config={"chat_template": "E"})
    generation(base, eos_token_id=2)
    generation(expert, eos_token_id=[2, 5], do_sample=True, temperature=0.5)
    sources = open_sources({str(path): str(path) for path in (base, expert)}, str(base), vocabulary=policy)
    engine = MergeEngine(sources, base=str(base))
    layout = sources[str(base)].layout
    own, several = 2, [2, 5]
    rows = {
        source_recipe(str(base), layout): several if policy == "first" else own,
        source_recipe(str(expert), layout): own if policy == "base" else several,
        uniform_recipe({"base": str(base), "expert": str(expert)}, layout): several if policy == "first" else own,
    }
    for number, (model, ids) in enumerate(rows.items()):
        recipe = replace(model, tokenizer_source=policy)
        out = write_checkpoint(engine, recipe, tmp_path / f"out{number}")
        scored, written = engine.apply(recipe).generation_config, GenerationConfig.from_pretrained(out)
        assert scored.eos_token_id == written.eos_token_id == ids
        assert scored.temperature == written.temperature == (0.5 if number == 1 else None)
        template = AutoTokenizer.from_pretrained(out).chat_template
        assert template == sources[recipe.donor].tokenizer.load().chat_template
        assert template == {None: "E" if number == 1 else "B", "base": "B", "first": "E"}[policy]


# --- reserved tokens with other names ---


def renamed(folder: Path) -> Path:
    """Call row 9 by another name, as trainers do with reserved tokens."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["<|im_start|>"] = vocabulary.pop("t9")
    path.write_text(json.dumps(data))
    return folder


def test_renamed_tokens_merge_row_by_row_under_the_policies_that_the_message_names(llama: Any, tmp_path: Path) -> None:
    base = with_tokenizer(llama.references[0], tmp_path / "base")
    expert = renamed(with_tokenizer(llama.references[1], tmp_path / "expert"))
    both = {"base": str(base), "expert": str(expert)}
    with pytest.raises(
        CheckpointError,
        match=r"expert: its tokenizer calls row 9 '<\|im_start\|>', and that of base calls it 't9' .*vocabulary: pad "
        r"to merge them row by row .*\(in a recipe evomerge: \{vocabulary: pad\} or \{vocabulary: first\}; in init",
    ):
        check(open_sources(both, "base"), "base")
    for policy, name in (("pad", "t9"), ("first", "<|im_start|>")):
        sources = open_sources(both, "base", vocabulary=policy)
        check(sources, "base")
        own = open_sources(both, "base")
        assert all(source.tokenizer.load().get_vocab()[name] == 9 for source in sources.values())
        for row in range(64):
            expected = "base" if row != 9 or policy == "pad" else "expert"
            embeddings = sources["base"].tensor("model.embed_tokens.weight")
            assert embeddings[row].equal(own[expected].tensor("model.embed_tokens.weight")[row])
        rows = sources["expert"].tensor("model.embed_tokens.weight")
        assert rows.equal(own["expert"].tensor("model.embed_tokens.weight"))


def test_tokens_that_no_model_has_a_row_for(llama: Any, tmp_path: Path) -> None:
    """A tokenizer may have more tokens than its model's matrices have rows; a union gives each of them one."""
    base = with_tokenizer(llama.references[0], tmp_path / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_tokens(["<|never trained|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    expert = with_tokenizer(llama.references[1], tmp_path / "expert")
    sources = open_sources({"base": str(base), "expert": str(expert)}, "base", vocabulary="union")
    for source in sources.values():
        rows = source.tensor("model.embed_tokens.weight")
        assert len(rows) == 65
        assert rows[64].equal(rows[:64].float().mean(0).to(rows.dtype))
        assert rows[64].any()
