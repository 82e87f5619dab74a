"""The digits experiment: its network, a quick run of every method, and its README shows the committed results."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from experiments.digits_niches.__main__ import FOLDER, compare_speed, main, markdown, quick_cases, read, test_at
from experiments.digits_niches.methods import Case, run
from experiments.digits_niches.network import TRAINED, WEIGHTS, Exam, digits, random_network, trained_halves

test_at.__test__ = False  # its name is not that of a test
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


def test_quick_runs_every_method_and_writes_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--quick", "-o", str(tmp_path)])
    outcomes, lines, speed = read(tmp_path)
    assert [outcome.case for outcome in outcomes] == quick_cases()
    assert lines == [] and speed == {}
    assert markdown(outcomes, lines) in capsys.readouterr().out
    assert 0 < (tmp_path / "curves.svg").stat().st_size < PLOT


def test_the_authors_program_is_timed_without_its_start(tmp_path: Path):
    program = "import sys, time; time.sleep(2.0 + 0.01 * int(sys.argv[sys.argv.index('--total_forward_passes') + 1]))"
    (tmp_path / "main.py").write_text(program, encoding="utf-8")
    speed = compare_speed(Path(sys.executable), tmp_path, passes=40)
    assert 20 < speed["authors"] < 140  # 10 ms each; with its start counted it would be 16 or less
    assert speed["ratio"] == pytest.approx(speed["ours"] / speed["authors"], rel=0.1, abs=0.1)


def test_readme_shows_the_committed_results():
    outcomes, lines, speed = read(FOLDER)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert markdown(outcomes, lines) in readme
    for found in (*speed["alone"], *speed["busy"]):
        assert f"| {found['authors']:.0f} | {found['ours']:.0f} | {found['ratio']} |" in readme
    assert (FOLDER / "curves.svg").stat().st_size < PLOT


def test_the_committed_results_reach_the_targets():
    outcomes, lines, speed = read(FOLDER)
    assert min(found["ratio"] for found in speed["busy"]) >= 5

    def final(method: str, pair: int) -> float:
        mine = [o for o in outcomes if (o.case.method, o.case.pair) == (method, pair)]
        return statistics.mean(test_at(mine, 10_000))

    pairs = [line.pair for line in lines]
    assert len(pairs) >= 5
    niches = statistics.mean(final("M2N2", pair) for pair in pairs)
    assert niches >= 0.68
    assert niches >= statistics.mean(line.test for line in lines) + 0.04
    assert niches >= statistics.mean(final("GA", pair) for pair in pairs) + 0.08
