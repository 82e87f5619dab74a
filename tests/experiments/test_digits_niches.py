"""The digits experiment: its network, and a quick run of every method."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import experiments.digits_niches.__main__ as experiment
from experiments.digits_niches.__main__ import EXPERIMENT, by_method, compare_speed, main, quick_cases, read
from experiments.digits_niches.methods import Case, run
from experiments.digits_niches.network import TRAINED, WEIGHTS, Exam, digits, random_network, trained_halves
from tests.conftest import required

required("sklearn")
PLOT = 200_000  # bytes


def test_the_network_is_that_of_the_paper():
    assert WEIGHTS == 19_210
    images, labels = digits()
    weights = random_network(np.random.default_rng(0)).astype(np.float32)
    first, bias1, second, bias2 = np.split(weights, np.cumsum([64 * 256, 256, 256 * 10]))
    hidden = np.maximum(images @ first.reshape(64, 256) + bias1, 0)
    logits = hidden @ second.reshape(256, 10) + bias2
    for which in (slice(TRAINED), slice(TRAINED, None)):
        exam = Exam(which)
        right = logits[which].argmax(axis=1) == labels[which]
        assert (exam.right(weights.astype(np.float64)) != right).sum() <= 1  # two digits may be all but equal
    assert len(exam.items) == 360


def test_each_half_knows_its_own_digits_only():
    exam = Exam(slice(TRAINED))
    labels = digits()[1][:TRAINED]
    for network, known in zip(trained_halves(0), (labels < 5, labels >= 5), strict=True):
        right = exam.right(network)
        assert right[known].mean() > 0.9
        assert right[~known].mean() < 0.05


def test_a_run_is_decided_by_its_seed_and_tested_at_checkpoints():
    case = Case("M2N2", 1, 3, 120)
    one, other = run(case), run(case)
    assert (one.train, one.test, one.scored) == (other.train, other.test, other.scored)
    assert one.evaluations == [100, 120] and one.scored == 120
    assert one.train[1] >= one.train[0] > 0.5


@pytest.mark.slow
def test_quick_runs_every_method_and_writes_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--quick", "-o", str(tmp_path)])
    results = EXPERIMENT.read(tmp_path)
    outcomes, lines = read(results)
    assert [outcome.case for outcome in outcomes] == quick_cases()
    assert lines == [] and results["speed"] == {}
    assert by_method(outcomes, lines) in capsys.readouterr().out
    assert 0 < (tmp_path / "curves.svg").stat().st_size < PLOT


@pytest.mark.slow
def test_the_authors_program_is_timed_without_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[int] = []

    def seconds(python: Path, program: Path, count: int) -> float:
        started.append(count)
        return 2.0 + 0.01 * count

    monkeypatch.setattr(experiment, "_authors_seconds", seconds)
    speed = compare_speed(Path(sys.executable), tmp_path, passes=40)
    assert started == [20, 60] * 3
    assert speed["authors"] == 100  # 10 ms each; with its start counted it would be 23
    assert speed["ours.ratio"] == pytest.approx(speed["ours"] / speed["authors"], abs=0.1)
    assert speed["one.ratio"] == pytest.approx(speed["one"] / speed["authors"], abs=0.1)


def test_the_authors_program_is_run_for_so_many_passes(tmp_path: Path):
    program = "import pathlib, sys; pathlib.Path('arguments').write_text(' '.join(sys.argv[1:]))"
    (tmp_path / "main.py").write_text(program, encoding="utf-8")
    assert experiment._authors_seconds(Path(sys.executable), tmp_path, 7) > 0
    assert "--total_forward_passes 7" in (tmp_path / "arguments").read_text()
