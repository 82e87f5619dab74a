"""What mergekit makes otherwise of a merge's vocabulary and buffers: each was seen with mergekit 0.1.5."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from evomerge.merging.output.for_mergekit import _buffers, as_mergekit_finds
from evomerge.merging.sources.open_sources import open_sources
from evomerge.merging.sources.source import Source
from search_spaces.recipes import mergekit_export, mergekit_yaml
from tests.merging.sources.test_vocabulary import BASE, save

A_NEW_TOKEN = {"<new>": {"source": {"kind": "zero"}}}
CASES = {
    "the same vocabulary": ("base", None, "other", {}, ""),
    "as many rows as tokens": ("base", None, "expert", {}, ""),
    "rows without a token": ("base", 8, "other", {}, "writes 5 rows for 5 tokens, and evomerge keeps all 8"),
    "rows for a multiple": ("base", 8, "other", {"pad_to_multiple_of": 8}, ""),
    "a union with one more token": ("union", None, "other", {}, ""),
    "a union with more": ("union", None, "expert", {}, "in another order in each process"),
    "a token that is new to the base": ("base", None, "other", {"tokens": A_NEW_TOKEN}, "new to the base's vocabulary"),
    "a token without a source": ("union", None, "base", {"tokens": {"<new>": {}}}, "at a token without a source"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_vocabularies(case: str, tmp_path: Path) -> None:
    policy, rows, other, rules, said = CASES[case]
    base = str(save(tmp_path / "a", BASE, rows, seed=1))
    tokens = {"base": BASE, "other": [*BASE, "d"], "expert": [*BASE, "d", "e"]}[other]
    expert = str(save(tmp_path / "b", tokens, rows, seed=2))
    tokenizer = {"tokenizer": {"source": policy, **rules}} if rules else {"tokenizer_source": policy}
    models = [{"model": expert, "parameters": {"weight": 0.5}}]
    recipe = mergekit_yaml.build({"merge_method": "ties", "base_model": base, "models": models, **tokenizer})
    sources = {model: model for model in recipe.models}
    opened = open_sources(sources, base, vocabulary=recipe.tokenizer_source, tokens=recipe.tokens)
    obstacles = mergekit_export.model_obstacles(recipe, as_mergekit_finds(opened[base], recipe))
    assert (len(obstacles), said in "".join(obstacles)) == (1 if said else 0, True)


@pytest.mark.parametrize(("dtype", "out_dtype"), [("float32", "bfloat16"), ("bfloat16", None), ("float32", None)])
def test_buffers_that_mergekit_rounds(dtype: str, out_dtype: str | None) -> None:
    outline = SimpleNamespace(stored_buffers=frozenset({"gate.bias"}))
    source = cast("Source", SimpleNamespace(outline=outline, buffer_dtype=torch.float32))
    data: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": "a"}], "dtype": dtype}
    found = [*_buffers(source, mergekit_yaml.build(data | ({"out_dtype": out_dtype} if out_dtype else {})))]
    half = "bfloat16" in (dtype, out_dtype)
    assert found == (["mergekit 0.1.5 rounds gate.bias and its like to bfloat16"] if half else [])
