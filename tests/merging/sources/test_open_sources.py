"""Models that say different things about one head: tied to the embeddings, or a matrix of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig

from evomerge.cli.merge import merge
from evomerge.merging.checks.preflight import check
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source, open_sources
from evomerge.merging.sources.source import Source
from tests.merging.tiny import TINY

WEIGHTS = "model.safetensors"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def written(source: str, folder: Path, *, tied: bool | None, head: Tensor | None) -> str:
    """Copy a tied checkpoint; say `tied` in its config.json (None: nothing) and store `head` (None: none)."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    said = {} if tied is None else {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config | said))
    stored = {} if head is None else {HEAD: head.clone()}
    save_file(load_file(folder / WEIGHTS) | stored, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def embeddings_of(folder: str) -> Tensor:
    return load_file(Path(folder) / WEIGHTS)[EMBEDDINGS]


@pytest.fixture
def tied(families: Any) -> Any:
    return families("llama_tied")


def opened(base: str, expert: str) -> tuple[Source, Source]:
    sources = open_sources({"base": base, "expert": expert}, "base")
    check(sources, "base")
    return sources["base"], sources["expert"]


@pytest.mark.parametrize("untied_is_base", [True, False])
def test_equal_heads_are_tied(tied: Any, tmp_path: Path, untied_is_base: bool, read: Any) -> None:
    """As a trainer saves a copy of the embeddings, and says that it is a head of its own."""
    first, second = tied.references[:2]
    own = written(first, tmp_path / "own", tied=False, head=embeddings_of(first))
    base, expert = opened(*((own, second) if untied_is_base else (second, own)))
    assert base.outline.tied
    assert expert.outline.tied
    assert HEAD not in base.names
    recipe = tmp_path / "recipe.yaml"
    models = "\n".join(f"- {{model: {model}, parameters: {{weight: 0.5}}}}" for model in (own, second))
    recipe.write_text(f"merge_method: linear\ndtype: float32\nmodels:\n{models}\n")
    merge(recipe, tmp_path / "out", "cpu")
    mean = (embeddings_of(first).float() + embeddings_of(second).float()) / 2
    assert torch.allclose(read(tmp_path / "out")[EMBEDDINGS], mean, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("untied_is_base", [True, False])
def test_where_one_head_differs_none_is_tied(tied: Any, tmp_path: Path, untied_is_base: bool, read: Any) -> None:
    first, second = tied.references[:2]
    head = embeddings_of(first) + 0.25
    own = written(first, tmp_path / "own", tied=False, head=head)
    base, expert = opened(*((own, second) if untied_is_base else (second, own)))
    assert not base.outline.tied
    assert not expert.outline.tied
    said = "its head is its embedding matrix, and a merge has a head of its own, as another model has"
    assert (said in base.left_out, said in expert.left_out) == (not untied_is_base, untied_is_base)
    recipe = tmp_path / "recipe.yaml"
    models = "\n".join(f"- {{model: {model}, parameters: {{weight: 0.5}}}}" for model in (second, own))
    recipe.write_text(f"merge_method: linear\ndtype: float32\nmodels:\n{models}\n")
    merge(recipe, tmp_path / "out", "cpu")
    merged = read(tmp_path / "out")
    assert torch.allclose(merged[HEAD], (head.float() + embeddings_of(second).float()) / 2, atol=1e-6)
    mean = (embeddings_of(first).float() + embeddings_of(second).float()) / 2
    assert torch.allclose(merged[EMBEDDINGS], mean, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_tied_models_whose_experts_transformers_fuses(tmp_path: Path) -> None:
    """Their weights are loaded through transformers."""
    sizes = {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    for name, tied in (("tied", True), ("own", False)):
        config = MixtralConfig(**sizes, num_hidden_layers=1, num_local_experts=2, tie_word_embeddings=tied)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    sources = open_sources({"base": str(tmp_path / "tied"), "own": str(tmp_path / "own")}, "base")
    assert not any(source.outline.tied for source in sources.values())
    assert torch.equal(sources["base"].tensor(HEAD), sources["base"].tensor(EMBEDDINGS))
    assert not torch.equal(sources["own"].tensor(HEAD), sources["own"].tensor(EMBEDDINGS))


def test_a_head_that_config_json_ties_and_the_file_holds_again(tied: Any, tmp_path: Path) -> None:
    own = embeddings_of(tied.base)
    source = open_source(written(tied.base, tmp_path / "copy", tied=True, head=own))
    assert source.outline.tied
    assert HEAD not in source.names
    other = written(tied.base, tmp_path / "other", tied=True, head=own + 1)
    with pytest.raises(CheckpointError, match=r"differs from .*; set tie_word_embeddings to false there"):
        open_source(other)


@pytest.mark.parametrize("said", [False, None])
def test_no_head_and_no_word_that_it_is_tied(tied: Any, tmp_path: Path, said: bool | None) -> None:
    """transformers would draw a random head."""
    with pytest.raises(CheckpointError, match=r"no tensor for lm_head.weight; set tie_word_embeddings to true in conf"):
        open_source(written(tied.base, tmp_path / "copy", tied=said, head=None))


def test_a_file_that_may_not_be_read(tied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is played."""

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path / "x"))

    monkeypatch.setattr("evomerge.merging.sources.open_sources.is_adapter", refuse)
    with pytest.raises(CheckpointError, match=r"/x cannot be read \(Permission denied\); check its permissions"):
        open_source(tied.base)


def test_a_folder_of_the_hubs_cache(tied: Any, tmp_path: Path) -> None:
    """With refs, blobs and snapshots; the snapshot is the model."""
    cache = tmp_path / "models--org--name"
    snapshot = Path(shutil.copytree(tied.base, cache / "snapshots" / "0a1b"))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a1b")
    assert open_source(str(snapshot)).names
    with pytest.raises(CheckpointError, match=r"a model's folder in the hub's cache: name .*snapshots/0a1b, or"):
        open_source(str(cache))


def test_an_adapter_of_a_tied_base_and_a_model_with_a_head(tied: Any, make_adapter: Any, tmp_path: Path) -> None:
    path, merged = make_adapter(tied.base, tmp_path / "adapter", r=2, target_modules=["q_proj"])
    own = written(tied.references[1], tmp_path / "own", tied=False, head=embeddings_of(tied.references[1]) + 0.25)
    sources = open_sources({"base": tied.base, "adapter": str(path), "own": own}, "base")
    check(sources, "base")
    assert not any(source.outline.tied for source in sources.values())
    adapter = sources["adapter"]
    assert torch.equal(adapter.tensor(HEAD), adapter.tensor(EMBEDDINGS))
    assert all(torch.equal(adapter.tensor(name), values) for name, values in merged.items())
