"""The patterns of published recipes: read with the right warnings, merged to mergekit's weights, or refused.

mergekit gets the very same recipes. Agreement is counted in units in the last place (ulp) of each entry; what was seen
is equality to the bit, of every entry of every pattern.
"""

from __future__ import annotations

import copy
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from evomerge.cli.merge import merge
from search_spaces.recipes import mergekit_export
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import parse_documents
from search_spaces.recipes.methods import METHODS
from tests.conftest import required
from tests.merging.output.published_recipes import PATTERNS, Pattern
from tests.merging.output.random_recipes import Draw, with_adapters
from tests.merging.output.ulps import ulps_apart

LAYERS, WORDS = 4, 16
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ADAPTERS: dict[str, dict[str, Any]] = {
    "style": {"r": 4, "target_modules": ["q_proj", "up_proj"]},
    "wide": {"r": 3, "target_modules": "all-linear", "use_rslora": True, "stored": torch.bfloat16},
    "words": {
        **{"r": 2, "target_modules": ["embed_tokens", "v_proj"], "modules_to_save": ["lm_head", "norm"]},
        **{"lora_alpha": 3, "stored": torch.float16},
    },
    "dora": {"r": 4, "target_modules": ["down_proj", "k_proj"], "use_dora": True},
}
"""Kinds of adapters of `origin`; each is merged into models of three precisions."""
AT_MERGE = (
    "passthrough beyond the model",
    "linear with a weight beside the model",
    "della with a spread that mergekit refuses",
)
"""Patterns that are refused when the models are known."""


def parsed(pattern: Pattern) -> tuple[Any, list[str]]:
    notes: list[str] = []
    (document,) = parse_documents(textwrap.dedent(pattern.text), "recipe.yaml", notes)
    return document.recipe, notes


def test_there_are_sixty() -> None:
    assert len(PATTERNS) >= 60
    methods = {found[1] for p in PATTERNS.values() if (found := re.search(r"merge_method: (\w+)", p.text))}
    assert {name for name, spec in METHODS.items() if spec.in_mergekit} <= methods


@pytest.mark.parametrize("name", PATTERNS)
def test_read_or_refused(name: str) -> None:
    pattern = PATTERNS[name]
    if pattern.refused is not None and name not in AT_MERGE:
        with pytest.raises(RecipeError, match=pattern.refused):
            parsed(pattern)
        return
    recipe, notes = parsed(pattern)
    assert len(notes) == pattern.warnings
    assert all(re.match(r"recipe.yaml:\d+: .*has no effect: ", note) for note in notes)
    differences = mergekit_export.differences(recipe)
    assert any((pattern.differs or "") in sentence for sentence in differences) == (pattern.differs is not None)
    if pattern.warnings:
        with pytest.raises(RecipeError):
            parse_documents(textwrap.dedent(pattern.text), "recipe.yaml")


# --- merged ---


def _tokenizer(more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([f"w{index}" for index in range(WORDS)] + [*more])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1", unk_token="w2")


def _save_models(folder: Path, dtype: torch.dtype) -> None:
    """Save the patterns' models: fine-tunes of one base that have something in common, as real ones do."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=LAYERS, vocab_size=WORDS, bos_token_id=0, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    origin = AutoModelForCausalLM.from_config(config)
    common = [torch.randn_like(values) * 2e-3 for values in origin.parameters()]
    for name in ("origin", "chat", "math", "code", "story", "chatml"):
        model = copy.deepcopy(origin)
        if name != "origin":
            for values, shared in zip(model.parameters(), common, strict=True):
                values.data += shared + torch.randn_like(values) * 2e-3
        more = ("<|im_start|>", "<|im_end|>") if name == "chatml" else ()
        if more:
            model.resize_token_embeddings(WORDS + 2, mean_resizing=False)
        model.to(dtype).save_pretrained(folder / name)
        _tokenizer(more).save_pretrained(folder / name)


@pytest.fixture(scope="module", params=STORED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_adapter: Any) -> Path:
    """Return the patterns' models, stored in one precision."""
    folder = tmp_path_factory.mktemp(request.param)
    _save_models(folder, STORED[request.param])
    for name, settings in ADAPTERS.items():
        make_adapter(str(folder / "origin"), folder / name, seed=len(name), **settings)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    yield folder


@pytest.fixture(scope="session")
def mergekit() -> Callable[[dict[str, Any], Path], dict[str, Tensor]]:
    """Return mergekit 0.1.5's merge of plain data."""
    required("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def run(data: dict[str, Any], out: Path) -> dict[str, Tensor]:
        LoaderCache().loaders.clear()  # models of another folder have the same names
        options = MergeOptions(
            write_model_card=False,
            copy_tokenizer=False,
            quiet=True,
            lora_merge_cache=str(out.parent / "loras"),
        )
        run_merge(MergeConfiguration.model_validate(data), str(out), options)
        return tensors(out)

    return run


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def ours(text: str, out: Path) -> dict[str, Tensor]:
    """Return what `evomerge merge` makes of a recipe."""
    file = out.with_suffix(".yaml")
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    merge(file, out, "cpu", allow_unrelated=True)
    return tensors(out)


def _stored(folder: Path) -> str:
    return next(name for name in STORED if folder.name.startswith(name))


def test_ulps_apart() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        one, eps = torch.ones(3, dtype=dtype), torch.finfo(dtype).eps
        assert ulps_apart(one, one) == 0
        assert ulps_apart(one, one + eps) == ulps_apart(-one, -one - eps) == 1
        assert ulps_apart(256 * one, 256 * one + 256 * eps) == 1
        smallest = torch.zeros(3, dtype=dtype) + torch.finfo(dtype).smallest_normal * eps
        assert ulps_apart(smallest, -smallest) == 2


def by_token(theirs: dict[str, Tensor], ours_at: Path, theirs_at: Path) -> dict[str, Tensor]:
    """Return mergekit's tensors with the rows of tokens in our order: it adds tokens in an order of chance."""
    if not (theirs_at / "tokenizer.json").is_file():
        return theirs
    vocabulary = [AutoTokenizer.from_pretrained(place).get_vocab() for place in (ours_at, theirs_at)]
    order = torch.tensor([vocabulary[1][token] for token, _ in sorted(vocabulary[0].items(), key=lambda pair: pair[1])])
    assert sorted(order.tolist()) == list(range(len(order)))
    embeddings = ("model.embed_tokens.weight", "lm_head.weight")
    return theirs | {name: theirs[name][order] for name in embeddings}


def compare(found: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert found.keys() == theirs.keys()
    apart = {name: ulps_apart(values, theirs[name]) for name, values in found.items()}
    assert max(apart.values()) <= 1, {name: ulps for name, ulps in apart.items() if ulps > 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_merged_as_mergekit_does(
    name: str, here: Path, mergekit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = PATTERNS[name]
    if pattern.refused is not None:
        with pytest.raises(RecipeError, match=pattern.refused):
            ours(pattern.text, tmp_path / "ours")
        return
    found = ours(pattern.text, tmp_path / "ours")
    errors = capsys.readouterr().err
    assert errors.count("has no effect") == pattern.warnings
    assert (pattern.differs or "") in errors
    if pattern.differs and not name.startswith(("model_stock", "arcee_fusion")):
        assert all(torch.isfinite(values).all() for values in found.values())
        return
    data = yaml.safe_load(textwrap.dedent(pattern.text))
    compare(found, by_token(mergekit(data, tmp_path / "theirs"), tmp_path / "ours", tmp_path / "theirs"))


# --- drawn at random ---

DRAWS, CHUNK = 210, 21


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, DRAWS, CHUNK))
def test_random_recipes_agree(first: int, here: Path, mergekit: Any, tmp_path: Path) -> None:
    """Both refuse a recipe, or both make the same of it; each precision of the models has a third of the recipes."""
    third = list(STORED).index(_stored(here))
    for seed in range(first + third, first + CHUNK, len(STORED)):
        data = with_adapters(Draw(seed).recipe(), random.Random(seed))
        said = yaml.safe_dump(data, sort_keys=False)
        refused = ""
        try:
            found: dict[str, Tensor] | None = ours(said, tmp_path / f"ours{seed}")
        except (RecipeError, ValueError) as error:
            found, refused = None, str(error)
        try:
            theirs: dict[str, Tensor] | None = mergekit(copy.deepcopy(data), tmp_path / f"theirs{seed}")
        except (RuntimeError, ValueError):
            theirs = None
        recipe = parse_documents(said, "recipe.yaml", [])[0].recipe if found is not None else None
        # By design: other random masks, and ratios that are kept within [0, 1] where task vectors disagree.
        if recipe is not None and re.search("masks|its ratio is kept", " ".join(mergekit_export.differences(recipe))):
            continue
        if found is None or theirs is None:
            assert found is theirs, (said, "mergekit merges it" if found is None else "mergekit refuses it", refused)
            continue
        try:
            if data["merge_method"] in ("arcee_fusion", "ramplus_tl") and "out_dtype" not in data:
                theirs = {key: values.to(found[key].dtype) for key, values in theirs.items()}  # left in float32
            compare(found, theirs)
        except AssertionError as error:
            raise AssertionError(f"{said}\n{error}") from None
