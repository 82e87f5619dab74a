"""Each kind of source answers all that the engine asks, on its own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import floats, integers, lists, sampled_from

from evomerge.merging.sources.adapters import AdapterSource
from evomerge.merging.sources.aligned import AlignedSource, align
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.open_sources import open_source
from evomerge.merging.sources.source import Source, all_finite, architecture_key, fingerprint
from search_spaces.recipes.token_rules import TokenRow, TokenRules
from tests.conftest import required

MEMBERS = sorted(name for name in vars(Source) if not name.startswith("_"))
ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"


@pytest.fixture(scope="module")
def sources(make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[type, Source]:
    required("peft")
    plain = open_source(str(ZOO / "base"))
    folder, _ = make_adapter(str(ZOO / "base"), tmp_path_factory.mktemp("lora"), r=2, target_modules=["q_proj"])
    adapter = open_source(str(folder), plain)
    aligned = align({"base": plain}, "base", "base", TokenRules((TokenRow("<new>"),), None))["base"]
    return {type(source): source for source in (plain, adapter, aligned)}


def test_there_are_three_kinds_and_none_inherits(sources: dict[type, Source]) -> None:
    assert list(sources) == [Checkpoint, AdapterSource, AlignedSource]
    for kind in sources:
        assert kind.__mro__ == (kind, object)


@pytest.mark.parametrize("kind", [Checkpoint, AdapterSource, AlignedSource])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_is_there(sources: dict[type, Source], kind: type, member: str) -> None:
    source = sources[kind]
    assert hasattr(source, member), f"{kind.__name__} lacks {member}"
    wanted = getattr(Source, member)
    if inspect.isfunction(wanted):
        own = inspect.signature(getattr(kind, member)).parameters
        assert list(own) == list(inspect.signature(wanted).parameters)


@pytest.mark.parametrize("kind", [Checkpoint, AdapterSource, AlignedSource])
def test_members_agree(sources: dict[type, Source], kind: type) -> None:
    source = sources[kind]
    assert source.names == source.layout.tensors() == source.outline.layout.tensors()
    assert source.config is source.outline.config
    wanted = dict(source.outline.module.named_parameters())
    for name in source.names:
        assert source.shape(name) == tuple(source.tensor(name).shape) == tuple(wanted[name].shape)
        stored = source.stored(name)
        assert stored is not None
        assert torch.equal(stored, source.tensor(name))
    assert source.stored("no.such.tensor") is None
    assert set(source.weight_files) <= set(source.files)
    assert set(fingerprint(source)["files"]) == {path.name for path in source.files}
    assert len(source.tokenizer.load().get_vocab()) <= source.outline.module.get_input_embeddings().num_embeddings
    assert architecture_key(source, source.config) == architecture_key(source, source.outline.config)


@given(
    values=lists(floats(width=32), max_size=40),
    zeros=integers(0, 70),
    dtype=sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_finite_tensors_are_told_from_others(values: list[float], zeros: int, dtype: torch.dtype) -> None:
    """Also where large entries have an infinite sum, or infinite ones cancel."""
    tensor = torch.tensor([*values, *[0.0] * zeros], dtype=torch.float64).to(dtype)
    assert all_finite(tensor) == bool(tensor.isfinite().all())
    largest = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(largest)
    assert not all_finite(torch.cat([largest, tensor, torch.tensor([torch.inf, -torch.inf], dtype=dtype)]))
