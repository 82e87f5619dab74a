"""Weight matching: a model whose units were shuffled computes the same, and is put back exactly."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Olmo2Config

from evomerge.merging.matching.assignment import match
from evomerge.merging.matching.reordered import write_matched
from evomerge.merging.matching.units import Axis, HeadOrder, Order, units_of
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from tests.merging.conftest import in_float32
from tests.merging.tiny import TINY

LIKE_LLAMA = ("llama", "qwen2", "qwen3", "gemma2")


def shuffled(source: Any, folder: Path) -> Path:
    """Write a model whose units are in a random order."""
    units, rng = units_of(source), np.random.default_rng(5)

    def drawn(*sizes: int) -> torch.Tensor:
        *many, size = sizes
        rows = [rng.permutation(size) for _ in range(int(np.prod(many)))]
        return torch.from_numpy(np.array(rows).reshape(sizes))

    heads = [
        HeadOrder(drawn(units.heads), drawn(units.heads, units.group), drawn(units.heads, units.head))
        for _ in units.hidden
    ]
    order = Order(drawn(units.stream), [drawn(size) for size in units.hidden], heads)
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((source.path / name).read_bytes())
    tensors = {name: order.applied(source.tensor(name), units.axes[name]).contiguous() for name in source.names}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def logits(folder: str | Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def same(folder: str | Path, other: str | Path) -> None:
    """Compare what two models compute; norms are computed in float32."""
    expected = logits(other)
    torch.testing.assert_close(logits(folder), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_a_shuffled_model_is_put_back(families: Any, name: str, tmp_path: Path) -> None:
    family = families(name)
    base, expert = (Checkpoint.open(reference) for reference in family.references[:2])
    moved = shuffled(expert, tmp_path / "moved")
    same(moved, expert.path)
    found, units = write_matched(str(moved), str(base.path), tmp_path / "back")
    assert units > 250 and found.sweeps <= 4
    assert found.before < 0.6
    assert found.after > 0.9
    back = Checkpoint.open(str(tmp_path / "back"))
    assert all(torch.equal(back.tensor(tensor), expert.tensor(tensor)) for tensor in expert.names)
    assert match(back, base).order.moved() == 0


def test_norms_over_all_heads_move_with_them(make_models: Any, tmp_path: Path) -> None:
    base, expert = make_models(tmp_path, Olmo2Config(**{**TINY, "num_hidden_layers": 1}), 2)
    moved = shuffled(Checkpoint.open(expert), tmp_path / "moved")
    same(moved, expert)
    write_matched(str(moved), base, tmp_path / "back")
    assert torch.equal(logits(tmp_path / "back"), logits(expert))


def test_every_group_has_its_best_order(llama: Any) -> None:
    """Of unrelated models: no other order of one group, by trial or by the assignment in float64, is better."""
    reference, model = (llama.checkpoints[name] for name in llama.references[:2])
    units = units_of(model)
    order = match(_Noise(model), reference).order

    def value(order: Order) -> float:
        return sum(
            float((reference.tensor(n).double() * order.applied(_Noise(model).tensor(n).double(), axes)).sum())
            for n, axes in units.axes.items()
        )

    best = value(order)
    assert best > value(Order.unchanged(units))
    for at in range(0, units.hidden[1] - 1, 5):
        other = order.hidden[1].clone()
        other[[at, at + 1]] = other[[at + 1, at]]
        assert value(Order(order.stream, [order.hidden[0], other, *order.hidden[2:]], order.heads)) <= best
    heads = order.heads[2]
    for places in permutations(range(units.group)):
        queries = heads.queries.clone()
        queries[0] = queries[0, list(places)]
        moved = HeadOrder(heads.heads, queries, heads.values)
        assert value(Order(order.stream, order.hidden, [*order.heads[:2], moved, order.heads[3]])) <= best + 1e-9


class _Noise:
    """A source with random weights of the same shapes."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensor(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
        return torch.randn(self._source.shape(name), generator=generator)


def test_entries_of_heads_are_numbered_as_the_weights_are() -> None:
    order = HeadOrder(torch.tensor([1, 0]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[2, 0, 1], [0, 1, 2]]))
    assert order.index("keys").tolist() == [3, 4, 5, 0, 1, 2]
    assert order.index("values").tolist() == [5, 3, 4, 0, 1, 2]
    assert order.index("queries").tolist() == [6, 7, 8, 9, 10, 11, 3, 4, 5, 0, 1, 2]
    assert order.index("outputs").tolist() == [8, 6, 7, 11, 9, 10, 3, 4, 5, 0, 1, 2]
    assert Axis("stream") == ("stream", None)


def test_what_cannot_be_matched(families: Any, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2, base = families("gpt2").references[0], llama.base
    with pytest.raises(
        CheckpointError, match=r"transformer.h.0.*units are not known; match models whose layers have q_proj"
    ):
        write_matched(gpt2, gpt2, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"its architecture is .*; merge models of one architecture"):
        write_matched(gpt2, base, tmp_path / "out")
    damaged = in_float32(base, tmp_path / "damaged")
    weights = load_file(Path(damaged) / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, Path(damaged) / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight contains NaN or infinite values in one of them"):
        write_matched(damaged, base, tmp_path / "out")
    found, moved = write_matched(base, base, tmp_path / "out")
    assert (moved, found.after, found.sweeps) == (0, pytest.approx(1.0), 1)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(CheckpointError, match=r"matching needs 0\.0 GB beside .* larger machine"):
        write_matched(base, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
