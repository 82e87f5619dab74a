"""Divergences from experts' predictions of a text, against their definitions, and what is wrong with a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fitness.results import TaskError
from fitness.scoring import text_losses
from fitness.scoring.text_losses import DivergencePlan, TextWindows


class Letters:
    """A tokenizer: one token per letter."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 12 for letter in text]}


@pytest.fixture
def windows(tmp_path: Path) -> TextWindows:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog", encoding="utf-8")
    (tmp_path / "b.txt").write_text("pack my box with five dozen liquor jugs", encoding="utf-8")
    return TextWindows({"x": str(tmp_path / "a.txt"), "y": str(tmp_path / "b.txt")}, Letters(), 9)


def other(model: Any) -> Any:
    """The same model with other weights."""
    import copy

    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3 * parameter.std())
    return changed


def test_windows_are_items_of_their_expert(windows: TextWindows) -> None:
    assert windows.items == (
        "x/text/0",
        "x/text/1",
        "x/text/2",
        "x/text/3",
        "y/text/0",
        "y/text/1",
        "y/text/2",
        "y/text/3",
    )
    assert windows.of_expert(["y/text/1", "x/text/0", "y/text/0"]) == {"y": ["y/text/1", "y/text/0"], "x": ["x/text/0"]}
    assert windows.tokens(["x/text/1"], "cpu").shape == (1, 9)


@pytest.mark.parametrize("kind", ["js", "kl"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_losses_are_divergences_per_token(llama: Any, windows: TextWindows, kind: Any, batch_size: int) -> None:
    expert, items = other(llama), windows.items[1:6]
    predictions = windows.predictions(expert, items, 2, "cpu")
    weights = dict.fromkeys(items, 0.2)
    plan = DivergencePlan(windows, items, predictions, weights, kind, batch_size=batch_size, device="cpu")
    batches = list(plan.losses(llama))
    found = [loss for batch in batches for loss in batch.losses]
    assert [place for batch in batches for place in batch.places] == list(range(5))
    with torch.no_grad():
        for item, loss in zip(items, found, strict=True):
            p, q = (
                torch.softmax(model(windows.tokens([item], "cpu")).logits[0, :-1].double(), -1)
                for model in (expert, llama)
            )
            m = (p + q) / 2
            js = (p * (p / m).log() + q * (q / m).log()).sum(-1).mean() / 2
            kl = (p * (p / q).log()).sum(-1).mean()
            assert loss == pytest.approx(float(js if kind == "js" else kl), rel=1e-3, abs=1e-6)
    assert sum(float(batch.total.detach()) for batch in batches) == pytest.approx(sum(found) / 5, rel=1e-5)


def test_an_expert_does_not_diverge_from_itself(llama: Any, windows: TextWindows) -> None:
    items = windows.items[:2]
    predictions = windows.predictions(llama, items, 2, "cpu")
    for kind in ("js", "kl"):
        plan = DivergencePlan(windows, items, predictions, dict.fromkeys(items, 0.5), kind, batch_size=2, device="cpu")
        assert next(plan.losses(llama)).losses == pytest.approx((0.0, 0.0), abs=1e-5)


def test_the_rest_of_a_large_vocabulary_counts_as_one(
    llama: Any, windows: TextWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, expert = windows.items[:2], other(llama)

    def losses() -> tuple[float, ...]:
        predictions = windows.predictions(expert, items, 2, "cpu")
        plan = DivergencePlan(windows, items, predictions, dict.fromkeys(items, 0.5), "kl", batch_size=2, device="cpu")
        return next(plan.losses(llama)).losses

    exact = losses()
    monkeypatch.setattr(text_losses, "KEPT", 8)
    bound = losses()
    assert all(0 < low <= full + 1e-6 for low, full in zip(bound, exact, strict=True))


def test_short_and_missing_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    with pytest.raises(TaskError, match=r"short\.txt has 5 tokens, less than one window of 9; write more text"):
        TextWindows({"x": str(tmp_path / "short.txt")}, Letters(), 9)
    with pytest.raises(TaskError, match=r"none\.txt cannot be read \(No such file"):
        TextWindows({"x": str(tmp_path / "none.txt")}, Letters(), 9)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="not UTF-8"):
        TextWindows({"x": str(tmp_path / "bytes.txt")}, Letters(), 9)


def test_a_text_with_a_held_out_question_is_refused(windows: TextWindows) -> None:
    windows.check_apart({"t/test/0": "a question", "t/test/1": "a fox jumps over"})
    with pytest.raises(TaskError, match=r"a\.txt contains the held-out item t/test/2 \('fox jumps'\)"):
        windows.check_apart({"t/test/2": " fox\n jumps "})
