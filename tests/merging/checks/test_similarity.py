"""Similarity against plain formulas, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.merging.checks import similarity
from evomerge.merging.checks.preflight import check
from evomerge.merging.checks.similarity import measure_similarity
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError

Change = Callable[[str, torch.Tensor], torch.Tensor]


def changed(source: str, folder: Path, change: Change) -> Checkpoint:
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    stored = {name: change(name, values).contiguous() for name, values in stored.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(str(folder))


def flat(family: Any, index: int) -> torch.Tensor:
    checkpoint = family.checkpoints[family.references[index]]
    return torch.cat([checkpoint.tensor(name).double().flatten() for name in checkpoint.names])


@pytest.mark.parametrize("stretch", [1 << 20, 100])
def test_measures_are_the_plain_ones(families: Any, monkeypatch: pytest.MonkeyPatch, stretch: int) -> None:
    monkeypatch.setattr(similarity, "STRETCH", stretch)
    family = families("llama")
    found = measure_similarity(dict(zip(("base", "a", "b"), family.checkpoints.values(), strict=True)), "base")
    base, a, b = (flat(family, index) for index in range(3))
    pairs = torch.stack([a - base, b - base])
    assert found.entries == found.total == len(base)
    assert found.groups == ("embeddings", "0", "1", "2", "3", "final")
    assert torch.tensor(found.pearsons).allclose(torch.corrcoef(pairs).float(), atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(pairs[0], pairs[1], dim=0)
    assert found.cosines[0][1] == pytest.approx(float(cosine), abs=1e-5)
    assert found.cosines[0][0] == pytest.approx(1.0)
    assert found.relative_norm("a") == pytest.approx(float((a - base).norm() / base.norm()), rel=1e-5)
    name = "model.layers.2.self_attn.q_proj.weight"
    assert set(found.weight_cosines["a"]) == {"attention", "mlp"}
    assert all(0.9 < value < 1 for value in found.weight_cosines["a"].values())
    assert family.checkpoints[family.base].shape(name) == (32, 32)


def test_a_sample_estimates_the_whole(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "RUNS", 4)
    monkeypatch.setattr(similarity, "RUN", 64)
    named = dict(zip(("base", "a", "b"), llama.checkpoints.values(), strict=True))
    whole, part = measure_similarity(named, "base"), measure_similarity(named, "base", sample=True)
    assert part.entries < whole.entries / 2
    assert part.delta_norms["a"] == pytest.approx(whole.delta_norms["a"], rel=0.1)
    assert part.weight_cosines["a"]["mlp"] == pytest.approx(whole.weight_cosines["a"]["mlp"], abs=0.02)


def test_a_model_alone_has_no_kin(llama: Any) -> None:
    found = measure_similarity({"base": llama.checkpoints[llama.base]}, "base", sample=True)
    assert found.experts == ()
    assert found.cosines == ()


def test_a_copy_has_no_direction(llama: Any) -> None:
    base = llama.checkpoints[llama.base]
    found = measure_similarity({"base": base, "copy": Checkpoint.open(llama.base)}, "base")
    assert found.relative_norm("copy") == 0
    assert found.cosines[0][0] != found.cosines[0][0]  # NaN
    assert found.why_unrelated("copy") is None


def test_unrelated_models_are_refused(llama: Any, tmp_path: Path) -> None:
    def random(name: str, values: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return values if "norm" in name else torch.randn(values.shape, generator=generator).to(values.dtype) * 0.02

    named = {"base": llama.checkpoints[llama.base], "expert": changed(llama.references[1], tmp_path / "x", random)}
    with pytest.raises(
        CheckpointError, match=r"expert: its weights do not come from the base's \(cosine: attention -?0.0"
    ):
        check(named, "base")
    report = check(named, "base", allow_unrelated=True)
    assert any(line.startswith("expert: its weights do not come") for line in report.warnings)


def test_rotated_attention_is_refused(llama: Any, tmp_path: Path) -> None:
    """The same function: an orthogonal matrix between values and output, another within queries and keys."""
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def rotated(name: str, values: torch.Tensor) -> torch.Tensor:
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            return values
        return (turn @ values.float().view(-1, 8, values.shape[1])).view(values.shape).to(values.dtype)

    named = {"base": llama.checkpoints[llama.base], "expert": changed(llama.references[1], tmp_path / "x", rotated)}
    found = measure_similarity(named, "base")
    assert found.weight_cosines["expert"]["mlp"] > 0.9
    with pytest.raises(
        CheckpointError, match=r"expert: its attention weights are rotated, permuted or rescaled .*; name"
    ):
        check(named, "base")


def test_permuted_mlp_is_refused(llama: Any, tmp_path: Path) -> None:
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))

    def permuted(name: str, values: torch.Tensor) -> torch.Tensor:
        if "down_proj" in name:
            return values[:, order]
        return values[order] if "mlp" in name else values

    named = {"base": llama.checkpoints[llama.base], "expert": changed(llama.references[1], tmp_path / "x", permuted)}
    with pytest.raises(CheckpointError, match=r"expert: its mlp weights are rotated, permuted or rescaled"):
        check(named, "base")
