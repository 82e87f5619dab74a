from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fitness.estimation.item_banks import (
    ItemBanks,
    Responses,
    fit_item_banks,
    from_run,
    read_matrix,
    read_samples,
)


def write_log(
    folder: Path, model: str, samples: list[dict], name: str = "samples_quiz_2024-06-01T10-20-30.123456.jsonl"
) -> Path:
    path = folder / model / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


def sample(document: int, score: float, kind: str = "none", **more: object) -> dict:
    """A line as lm-eval 0.4 writes it."""
    return {"doc_id": document, "doc": {}, "target": "x", "filter": kind, "metrics": ["acc"], "acc": score, **more}


def test_sample_logs_become_a_matrix(tmp_path: Path) -> None:
    write_log(tmp_path, "org__strong", [sample(0, 1.0), sample(1, 1.0), sample(2, 0.0)])
    write_log(tmp_path, "org__weak", [sample(2, 1.0), sample(0, 0.0)])
    found = read_samples([tmp_path], split="validation")
    assert list(found) == ["quiz"]
    assert found["quiz"].models == ("org__strong", "org__weak")
    assert found["quiz"].items == ("quiz/validation/0", "quiz/validation/1", "quiz/validation/2")
    assert np.array_equal(found["quiz"].scores, [[1, 1, 0], [0, np.nan, 1]], equal_nan=True)


def test_the_newest_log_of_a_model_counts(tmp_path: Path) -> None:
    write_log(tmp_path, "m", [sample(0, 0.0)], "samples_quiz_2024-06-01T10-20-30.1.jsonl")
    write_log(tmp_path, "m", [sample(0, 1.0)], "samples_quiz_2024-07-01T10-20-30.1.jsonl")
    assert read_samples([tmp_path])["quiz"].scores.tolist() == [[1.0]]


def test_one_of_several_filters_is_read(tmp_path: Path) -> None:
    path = write_log(
        tmp_path,
        "m",
        [sample(0, 0.0, "strict-match"), sample(0, 1.0, "flexible-extract"), sample(1, 1.0, "strict-match")],
    )
    assert read_samples([path])["quiz"].scores.tolist() == [[0.0, 1.0]]
    assert read_samples([path], filter_name="flexible-extract")["quiz"].scores.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="name a filter of the file"):
        read_samples([path], filter_name="other")


def test_another_metric_can_be_named(tmp_path: Path) -> None:
    path = write_log(tmp_path, "m", [sample(0, 0.0, acc_norm=1.0)])
    assert read_samples([path], metric="acc_norm")["quiz"].scores.tolist() == [[1.0]]
    with pytest.raises(ValueError, match=r"line 1: metric 'f1' is None"):
        read_samples([path], metric="f1")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1: not a sample"), ("[1]\n", "not a sample"), ('{"acc": 1}\n', "not a sample"), ("\n", "no samples")],
)
def test_damaged_logs_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "samples_quiz.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_samples([path])


def test_no_logs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run lm_eval with --log_samples"):
        read_samples([tmp_path])
    with pytest.raises(ValueError, match="not named samples_TASK_TIME"):
        read_samples([tmp_path / "results.jsonl"])


@pytest.mark.parametrize("scores", [np.eye(9)[:4], np.linspace(0, 1, 36).reshape(4, 9)])
def test_matrices_are_read(tmp_path: Path, scores: np.ndarray) -> None:
    responses = Responses(tuple("abcd"), tuple(map(str, range(9))), scores)
    np.savez(tmp_path / "m.npz", responses=scores, models=np.array(responses.models), items=np.array(responses.items))
    found = read_matrix(tmp_path / "m.npz")
    assert found.models == responses.models and found.items == responses.items
    assert found.scores == pytest.approx(scores, abs=1e-7)


def test_packed_bits_and_missing_names(tmp_path: Path) -> None:
    bits = (np.random.default_rng(0).random((5, 11)) < 0.5).astype(np.uint8)
    np.savez(tmp_path / "m.npz", responses=np.packbits(bits, axis=1), shape=np.array([5, 11]))
    found = read_matrix(tmp_path / "m.npz")
    assert (found.scores == bits).all() and found.models == tuple("01234")


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.ones(3)},
        {"responses": np.ones(3)},
        {"responses": np.full((2, 2), 7.0)},
        {"responses": np.ones((2, 2), np.uint8), "shape": np.array([2, 99])},
        {"responses": np.array([[{"a": 1}]], dtype=object)},
        {"responses": np.ones((2, 2)), "models": np.array(["a", "a"])},
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match=r"not a responses matrix .*give an .npz with `responses`"):
        read_matrix(tmp_path / "m.npz")


def test_a_run_with_different_items_leaves_gaps() -> None:
    found = from_run({"a": (["t/x/0", "t/x/1"], [1, 0]), "b": (["t/x/1", "t/x/2"], [1.0, 0.5])})
    assert found.items == ("t/x/0", "t/x/1", "t/x/2")
    assert np.array_equal(found.scores, [[1, 0, np.nan], [np.nan, 1, 0.5]], equal_nan=True)


def test_fitting_gives_two_banks_if_there_are_models_enough() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((40, 12)) < rng.random((40, 1))).astype(float)
    responses = Responses(tuple(f"m{i}" for i in range(40)), tuple(f"t/x/{i}" for i in range(12)), scores)
    banks = fit_item_banks(responses)
    assert [bank.dimensions for bank in banks] == [1, 4]
    assert [bank.dimensions for bank in fit_item_banks(responses, dimensions=1)] == [1]
    assert banks[1].items == responses.items
    few = Responses(responses.models[:2], responses.items, scores[:2])
    assert len(fit_item_banks(few)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_run({}), "use a run with scored candidates"),
        (lambda: from_run({"a": (["x"], [1, 2])}), "one score per item"),
        (lambda: Responses(("a",), ("x",), np.ones((2, 1))), "one row per model"),
        (lambda: Responses(("a", "a"), ("x",), np.ones((2, 1))), "model 'a' occurs twice"),
        (lambda: fit_item_banks(Responses(("a",), ("x",), np.ones((1, 1)))), "needs at least 2"),
        (
            lambda: fit_item_banks(Responses(("a", "b"), ("x",), np.full((2, 1), np.nan))),
            "no model was asked item 'x': remove it",
        ),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_item_bank_comes_back_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((25, 6)) < 0.5).astype(float)
    scores[0, 0] = np.nan
    responses = {
        "quiz": Responses(tuple(f"m{j}" for j in range(25)), tuple(f"quiz/test/{i}" for i in range(6)), scores),
        "täst": Responses(("a", "b"), ("täst/test/0",), np.array([[0.25], [1.0]])),
    }
    saved = ItemBanks(responses, {task: fit_item_banks(found) for task, found in responses.items()})
    with (tmp_path / "item_bank.npz").open("wb") as file:
        saved.save(file)
    loaded = ItemBanks.load(tmp_path / "item_bank.npz")
    assert list(loaded.banks) == ["quiz", "täst"]
    items = [f"quiz/test/{i}" for i in (4, 1)]
    for (bank, other), full in zip(
        zip(loaded.of("quiz", items)[0], saved.of("quiz", items)[0], strict=True), loaded.banks["quiz"], strict=True
    ):
        assert bank.items == tuple(items) and len(full.items) == 6
        np.testing.assert_array_equal(bank.discrimination, other.discrimination)
        np.testing.assert_array_equal(bank.difficulty, other.difficulty)
    np.testing.assert_array_equal(loaded.of("quiz", items)[1], scores[:, [4, 1]])
    assert loaded.of("quiz", ["quiz/test/0"])[1] is None  # one model was not asked


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"{}"])
def test_a_damaged_item_bank_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "item_bank.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a file of item banks .*write one with `evomerge fit-items`"):
        ItemBanks.load(path)
    np.savez(path, header=np.array([object()]))
    with pytest.raises(ValueError, match="not a file of item banks"):
        ItemBanks.load(path)
