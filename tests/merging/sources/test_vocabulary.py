"""Vocabularies that differ: which row comes from where, by every policy; tokenizers joined; written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from evomerge.cli.merge import merge
from evomerge.merging.checks.preflight import check
from evomerge.merging.sources import vocabulary
from evomerge.merging.sources.aligned import align
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes.token_rules import TokenRow, TokenRules

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = ["<s>", "</s>", "a", "b", "c"]
EXPERT = ["<s>", "</s>", "b", "d", "a", "e"]  # no c; d and e are new; a and b have other ids
OTHER = ["<s>", "</s>", "a", "b", "c", "d"]


def save(folder: Path, tokens: list[str], rows: int | None = None, *, seed: int, tied: bool = False) -> Path:
    """Save a model whose embedding row i is i + seed / 10, and a tokenizer of `tokens`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=rows or len(tokens),
        bos_token_id=tokens.index("<s>"),
        eos_token_id=tokens.index("</s>"),
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        weight.data.copy_(torch.arange(len(weight))[:, None].expand_as(weight) + seed / 10)
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Checkpoint]:
    paths = {
        "base": save(tmp_path / "base", BASE, seed=1),
        "expert": save(tmp_path / "expert", EXPERT, seed=2),
        "other": save(tmp_path / "other", OTHER, seed=3),
    }
    return {name: Checkpoint.open(str(path)) for name, path in paths.items()}


def rows(checkpoint: Checkpoint, name: str = EMBED) -> list[float]:
    values = checkpoint.tensor(name)
    assert tuple(values.shape) == checkpoint.shape(name)
    assert torch.equal(values, values[:, :1].expand_as(values))
    return [round(float(value), 4) for value in values[:, 0]]


def test_without_a_policy_they_are_refused_and_the_tensors_named(sources: dict[str, Checkpoint]) -> None:
    pattern = r"expert: model.embed_tokens.weight has shape \[6, 16\] here and \[5, 16\] in base \(lm_head.weight likew"
    with pytest.raises(CheckpointError, match=pattern):
        check(sources, "base")


@pytest.mark.parametrize("name", [EMBED, HEAD])
def test_base(sources: dict[str, Checkpoint], name: str) -> None:
    aligned = align(sources, "base", "base")
    assert aligned["base"] is sources["base"]
    assert rows(aligned["base"], name) == [0.1, 1.1, 2.1, 3.1, 4.1]
    #                                        <s>  </s>  a    b    c: the base's
    assert rows(aligned["expert"], name) == [0.2, 1.2, 4.2, 2.2, 4.1]
    assert rows(aligned["other"], name) == [0.3, 1.3, 2.3, 3.3, 4.3]
    assert check(aligned, "base", allow_unrelated=True).parameters == sources["base"].outline.num_parameters
    for checkpoint in aligned.values():
        assert checkpoint.tokenizer.load().get_vocab() == sources["base"].tokenizer.load().get_vocab()
        assert checkpoint.config.vocab_size == 5


def test_union(sources: dict[str, Checkpoint]) -> None:
    aligned = align(sources, "union", "base")
    #                                  <s>  </s> a    b    c    d: mean of the two that have it   e: the expert's
    assert rows(aligned["base"]) == [0.1, 1.1, 2.1, 3.1, 4.1, pytest.approx((3.2 + 5.3) / 2), 5.2]
    assert rows(aligned["expert"]) == [0.2, 1.2, 4.2, 2.2, 4.1, 3.2, 5.2]
    assert rows(aligned["other"]) == [0.3, 1.3, 2.3, 3.3, 4.3, 5.3, 5.2]
    tokenizer = aligned["base"].tokenizer.load()
    assert tokenizer.get_vocab() == dict(zip([*BASE, "d", "e"], range(7), strict=True))
    assert tokenizer("e a d").input_ids == [6, 2, 5]
    assert check(aligned, "base", allow_unrelated=True)


def test_union_recognises_another_models_marks(tmp_path: Path) -> None:
    """A chat mark is an added token: it is found within a word, where tokens of the model are not."""
    paths = {
        "base": save(tmp_path / "base", BASE, seed=1),
        "expert": save(tmp_path / "expert", [*EXPERT, "<mark>"], seed=2),
    }
    tokenizer = Checkpoint.open(str(paths["expert"])).tokenizer.load()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    tokenizer.save_pretrained(paths["expert"])
    aligned = align({name: Checkpoint.open(str(path)) for name, path in paths.items()}, "union", "base")
    joined = aligned["base"].tokenizer.load()
    assert joined("a<mark>b d").input_ids == [
        joined.convert_tokens_to_ids(token) for token in ("a", "<mark>", "b", "d")
    ]


def test_first_and_a_named_model(sources: dict[str, Checkpoint]) -> None:
    aligned = align(sources, "first", "base")
    assert aligned["expert"] is sources["expert"]
    #                                 <s>  </s> b    d: mean            a    e: the expert's
    assert rows(aligned["base"]) == [0.1, 1.1, 3.1, pytest.approx((3.2 + 5.3) / 2), 2.1, 5.2]
    assert rows(aligned["other"]) == [0.3, 1.3, 3.3, 5.3, 2.3, 5.2]
    assert aligned["base"].tokenizer.load()("b d").input_ids == [2, 3]
    named = align(sources, sources["other"].reference, "base")
    assert named["other"] is sources["other"]
    assert rows(named["expert"]) == [0.2, 1.2, 4.2, 2.2, 4.1, 3.2]
    with pytest.raises(
        CheckpointError, match=r"tokenizer_source: nobody is not one of the models; write base, union, or one"
    ):
        align(sources, "nobody", "base")


def test_special_tokens_are_those_of_the_vocabularys_owner(tmp_path: Path) -> None:
    paths = {
        "base": save(tmp_path / "base", BASE, seed=1),
        "expert": save(tmp_path / "expert", ["a", "b", "</s>", "<s>"], seed=2),
    }
    sources = {name: Checkpoint.open(str(path)) for name, path in paths.items()}
    aligned = align(sources, "first", "base")
    assert aligned["base"].config.eos_token_id == 2
    assert aligned["base"].config.bos_token_id == 3
    assert (aligned["base"].generation_config() or {})["eos_token_id"] == 2
    assert sources["base"].config.eos_token_id == 1


def test_pad(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    padded = save(tmp_path / "padded", BASE, rows=8, seed=4, tied=False)
    models_ = {"base": sources["base"], "other": sources["other"], "padded": Checkpoint.open(str(padded))}
    aligned = align(models_, "pad", "base")
    assert torch.equal(aligned["padded"].tensor(EMBED), models_["padded"].tensor(EMBED))
    #                                                          d: mean of the others      padding: of the padded alone
    assert rows(aligned["base"]) == [0.1, 1.1, 2.1, 3.1, 4.1, pytest.approx((5.3 + 5.4) / 2), 6.4, 7.4]
    assert rows(aligned["other"]) == [0.3, 1.3, 2.3, 3.3, 4.3, 5.3, 6.4, 7.4]
    for checkpoint in aligned.values():
        assert checkpoint.tokenizer.load().get_vocab() == sources["other"].tokenizer.load().get_vocab()
    with pytest.raises(
        CheckpointError, match=r"pad matches rows by id, and .* is . here and .* in expert; write union"
    ):
        align(sources, "pad", "base")


def test_padding_rows_of_the_base_stay(tmp_path: Path) -> None:
    paths = {
        "base": save(tmp_path / "base", BASE, rows=8, seed=1, tied=True),
        "expert": save(tmp_path / "expert", EXPERT, seed=2, tied=True),
    }
    sources = {name: Checkpoint.open(str(path)) for name, path in paths.items()}
    aligned = align(sources, "base", "base")
    assert rows(aligned["expert"]) == [0.2, 1.2, 4.2, 2.2, 4.1, 5.1, 6.1, 7.1]
    joined = align(sources, "union", "base")
    assert rows(joined["base"]) == [0.1, 1.1, 2.1, 3.1, 4.1, 3.2, 5.2, 7.1]
    assert rows(joined["expert"]) == [0.2, 1.2, 4.2, 2.2, 4.1, 3.2, 5.2, 7.1]


def test_a_model_without_a_tokenizer_has_the_bases(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    bare = Path(shutil.copytree(sources["base"].path, tmp_path / "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    aligned = align(sources | {"bare": Checkpoint.open(str(bare))}, "union", "base")
    assert rows(aligned["bare"]) == rows(aligned["base"])


@pytest.mark.parametrize("spelling", ["union", "model:expert", "expert"])
def test_a_recipe_is_honoured(tmp_path: Path, sources: dict[str, Checkpoint], spelling: str) -> None:
    """The written model and tokenizer load with transformers, and rows are where their tokens are."""
    base, expert = (sources[name].path for name in ("base", "expert"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: linear\nbase_model: {base}\ntokenizer_source: {spelling.replace('expert', str(expert))}\n"
        "models:\n" + "".join(f"- {{model: {model}, parameters: {{weight: 0.5}}}}\n" for model in (base, expert))
    )
    merge(recipe, tmp_path / "out", "cpu", False, None, allow_unrelated=True)
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    place = tokenizer.get_vocab()
    weight = model.get_input_embeddings().weight[:, 0].detach()
    assert model.config.vocab_size == len(place) == len(weight) == (7 if spelling == "union" else 6)
    for token in place:
        has = [seed + tokens.index(token) for seed, tokens in ((0.1, BASE), (0.2, EXPERT)) if token in tokens]
        assert float(weight[place[token]]) == pytest.approx(sum(has) / len(has), rel=1e-5)
    assert model(torch.tensor([tokenizer("e a").input_ids])).logits.shape[-1] == len(place)


def test_single_tokens_take_the_rows_that_a_recipe_names(sources: dict[str, Checkpoint]) -> None:
    rules = TokenRules(
        (
            TokenRow("d", "other"),  # base lacks it; expert has its own
            TokenRow("b", "base", force=True),
            TokenRow("c", zero=True),  # expert lacks it
            TokenRow("new", "expert", "e"),
            TokenRow("newer", sources["base"].reference, 4),
            TokenRow("newest"),
        ),
        4,
    )
    aligned = align(sources, "union", "base", rules)
    # <s> </s> a b c | d e | new newer newest | two rows more
    assert rows(aligned["base"])[:9] == [0.1, 1.1, 2.1, 3.1, 4.1, 5.3, 5.2, 5.2, 4.1]
    assert rows(aligned["expert"])[:9] == [0.2, 1.2, 4.2, 3.1, 0, 3.2, 5.2, 5.2, 4.1]
    assert rows(aligned["other"])[:9] == [0.3, 1.3, 2.3, 3.1, 4.3, 5.3, 5.2, 5.2, 4.1]
    for source in aligned.values():  # no model has a row for the newest token, and none for padding
        assert rows(source)[9:] == [pytest.approx(sum(rows(source)[:9]) / 9, abs=1e-4)] * 3
    assert aligned["base"].config.vocab_size == 12
    assert aligned["base"].tokenizer.load()("a new newest")["input_ids"] == [2, 7, 9]
    assert check(aligned, "base", allow_unrelated=True)


def test_rows_are_padded_without_other_changes(sources: dict[str, Checkpoint]) -> None:
    aligned = align({"base": sources["base"]}, "base", "base", TokenRules(multiple=8))
    assert rows(aligned["base"]) == [0.1, 1.1, 2.1, 3.1, 4.1, 2.1, 2.1, 2.1]
    same = align({"base": sources["base"]}, "base", "base", TokenRules(multiple=5))
    assert same["base"] is sources["base"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            TokenRow("d", "nobody"),
            "tokenizer.tokens.d: nobody is not one of the models; write source: one of base",
        ),
        (TokenRow("d", "base"), "tokenizer.tokens.d: base has no token 'd'; name a model that has it"),
        (TokenRow("d", "base", 5), "tokenizer.tokens.d: base has no row 5; write a token_id below 5"),
    ],
)
def test_rows_that_are_not_there(sources: dict[str, Checkpoint], rule: TokenRow, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        align(sources, "union", "base", TokenRules((rule,)))


def test_a_token_beyond_the_common_rows_hides_none_after_it() -> None:
    found = vocabulary._index({"beyond": 9, "a": 0, "b": 1}, {"a": 2, "b": 7}, 2, 5, is_owner=False)
    assert found.tolist() == [2, vocabulary.MISSING]  # "b" has no row in a model of 5
