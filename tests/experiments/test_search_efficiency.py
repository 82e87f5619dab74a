"""The comparison of searches: its problems, what it counts, the programs of the field, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evomerge.workers.base import Request
from experiments.harness import Results
from experiments.search_efficiency.__main__ import main
from experiments.search_efficiency.contenders import CONTENDERS, DEFAULT, FIELD, enters
from experiments.search_efficiency.field import SCALES, Program, genome_plus, grid, mergekit_evolve
from experiments.search_efficiency.halves import halves
from experiments.search_efficiency.metering import BudgetSpent, Meter
from experiments.search_efficiency.numeric import WeightsSpace
from experiments.search_efficiency.ours import Ours, random_items
from experiments.search_efficiency.problems import Problem, problem
from experiments.search_efficiency.report import best_known, figures, interval, median, reached, statement, summary
from experiments.search_efficiency.simulated import landscape
from experiments.search_efficiency.smollm2 import Table


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["contender"] for row in found["curves"]] == ["default", "CMA-ES", "best fixed λ"]
    assert (tmp_path / "curves.svg").stat().st_size < 200_000
    before = (tmp_path / "results.json").read_bytes()
    capsys.readouterr()
    main(["--quick", "--out", str(tmp_path)])  # nothing is left to run
    assert (tmp_path / "results.json").read_bytes() == before
    assert "simulated, 24 genes" in capsys.readouterr().out


# --- problems ---


def test_a_space_of_weights_reads_back_what_it_writes() -> None:
    space = WeightsSpace(125, 4, 0.7)
    genotype = np.random.default_rng(0).uniform(space.low, space.high)
    assert np.array_equal(space.encode(space.decode(genotype)), genotype)


def check_derivatives(subject: Problem, items: int = 60) -> None:
    """Compare a worker's derivatives with central differences of its loss."""
    asked = subject.search_items[:items]
    rng = np.random.default_rng(0)
    at = np.clip(np.array(subject.space.start) + 0.1 * rng.normal(size=subject.space.dimension), -0.4, 1.4)
    direction = rng.normal(size=at.size) / np.sqrt(at.size)

    def step(point: np.ndarray) -> tuple[float, np.ndarray]:
        recipe = subject.space.decode(point)
        evaluation = subject.worker.evaluate(Request(recipe, asked, gradient_at=tuple(point.tolist())))
        return -evaluation.objectives[0], np.array(evaluation.gradient)

    forward, backward = (step(at + sign * 1e-3 * direction)[0] for sign in (1, -1))
    assert (forward - backward) / 2e-3 == pytest.approx(float(step(at)[1] @ direction), rel=0.05)


def test_derivatives_are_those_of_the_loss() -> None:
    check_derivatives(landscape(24))
    check_derivatives(halves())
    check_derivatives(problem("SmolLM2, two experts"))


def test_the_best_point_of_a_landscape_is_the_known_one() -> None:
    subject = landscape(24)
    items = subject.worker._items  # type: ignore[attr-defined]
    assert subject.held_out(items.best) == subject.known == pytest.approx(0.85, abs=0.02)
    rng = np.random.default_rng(0)
    around = [items.best + rng.normal(0, 0.1, 24) for _ in range(20)]
    assert max(map(subject.held_out, around)) < subject.known
    assert subject.held_out(np.array(subject.space.start)) == pytest.approx(0.41, abs=0.03)


def test_halves_know_their_own_digits_and_their_mean_more() -> None:
    subject = halves()
    first, second = (subject.held_out(expert) for expert in subject.experts)
    assert 0.3 < first < 0.5 and 0.3 < second < 0.5
    assert subject.held_out(np.full(subject.space.dimension, 0.5)) > 0.6


def test_a_table_gives_the_nearest_scores_and_interpolated_losses() -> None:
    rng = np.random.default_rng(0)
    scores, losses = rng.integers(2, size=(5, 7, 8)).astype(float), rng.random((5, 7, 8))
    table = Table(scores, losses)
    assert np.array_equal(table.scores(np.array([0.6, 1.15]), range(4)), scores[2, 5, :4])
    assert np.array_equal(table.scores(np.array([2.0, -0.5]), range(4)), scores[4, 0, :4])
    assert table.losses(np.array([0.75, 1.5]), range(4))[0] == pytest.approx(losses[3, 6, :4])
    assert table.losses(np.array([1.7, 0.25]), range(4))[0] == pytest.approx(losses[4, 1, :4])
    between = table.losses(np.array([0.125, 0.125]), range(4))[0]
    assert between == pytest.approx(losses[:2, :2, :4].mean(axis=(0, 1)))


# --- meters and contenders ---


def test_a_meter_counts_answers_and_keeps_the_guess_of_each_checkpoint() -> None:
    meter = Meter(landscape(24).until(250))
    better = meter.problem.worker._items.best  # type: ignore[attr-defined]
    meter.ask(meter.problem.space.start, meter.problem.search_items[:130])
    meter.ask(better, meter.problem.search_items[:130])  # before it, 130 answers left the start as the guess
    meter.guess = better
    with pytest.raises(BudgetSpent):
        meter.ask(better, meter.problem.search_items[:1])
    curve = meter.curve("mine", 0)
    assert curve.spent == [125, 250]
    assert curve.held_out == pytest.approx([meter.problem.held_out(meter.problem.space.start), meter.problem.known])
    assert curve.answers == 260


def test_steps_and_candidates_of_ours_are_counted() -> None:
    curve = DEFAULT.search(landscape(24).until(1000), 0)
    assert 1000 <= curve.answers < 1050
    assert curve.held_out[-1] > landscape(24).held_out(np.array(landscape(24).space.start))
    fresh = Ours("fresh", {"kind": "random"}, items=20, fresh=True).search(landscape(24).until(250), 0)
    assert fresh.answers == 260


def test_random_items_are_of_every_task() -> None:
    subject = problem("SmolLM2, two experts")
    chosen = random_items(subject, 5, 0)
    assert [item.partition("/")[0] for item in chosen] == ["smol_sums"] * 5 + ["smol_dates"] * 5
    assert random_items(subject, 5, 0) == chosen != random_items(subject, 5, 1)


@pytest.mark.parametrize("program", FIELD, ids=lambda program: program.name)
def test_programs_of_the_field_spend_their_budget(program: Program) -> None:
    subject = problem("SmolLM2, two experts") if program.tasks > 1 else landscape(24)
    assert enters(program, subject)
    short = Program(program.name, program.run)
    curve = short.search(subject.until(1000), 0)
    assert curve.answers >= 1000
    assert len(curve.held_out) == len(curve.spent) == 6
    assert curve.held_out == short.search(subject.until(1000), 0).held_out


def test_the_grid_hands_over_its_best_scale() -> None:
    meter = Meter(landscape(24))
    grid(meter, 0)
    assert meter.spent == len(SCALES) * 600
    tried = [meter.problem.scores(np.full(24, scale), meter.problem.search_items).mean() for scale in SCALES]
    assert meter.guess[0] == SCALES[int(np.argmax(tried))]


def test_mergekit_evolve_asks_all_items_and_hands_over_the_best_ever() -> None:
    meter = Meter(landscape(24), (8000,))
    asked: list[tuple[float, np.ndarray]] = []
    ask = meter.fitness

    def fitness(genotype: np.ndarray, items: tuple[str, ...]) -> float:
        assert items == meter.problem.search_items and (genotype >= 0).all()
        asked.append((ask(genotype, items), genotype))
        return asked[-1][0]

    meter.fitness = fitness  # type: ignore[method-assign]
    with pytest.raises(BudgetSpent):
        mergekit_evolve(meter, 0)
    best = max(asked[:13], key=lambda pair: pair[0])[
        1
    ]  # 4 + 3 ln 24 = 13 candidates a generation; the budget ends in the second
    assert np.allclose(np.clip(meter.guess, -0.5, 2), np.clip(best, -0.5, 2))


def test_genome_plus_never_leaves_the_plane_of_averages() -> None:
    meter = Meter(landscape(24))
    with pytest.raises(BudgetSpent):
        genome_plus(meter, 0)
    weights = [meter.guess[np.flatnonzero(expert)] for expert in meter.problem.experts]
    assert all(np.ptp(each) == pytest.approx(0.0, abs=1e-9) for each in weights)
    assert sum(each[0] for each in weights) == pytest.approx(1.0)


def test_names_of_contenders_are_distinct() -> None:
    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)


# --- tables ---


def row(name: str, *scores: list[float]) -> Results:
    spent = [1000 * (at + 1) for at in range(len(scores[0]))]
    seconds = [[0.001 * count for count in spent] for _ in scores]
    return {
        "problem": "some",
        "contender": name,
        "seeds": [0, 1],
        "spent": spent,
        "held_out": scores,
        "seconds": seconds,
    }


def test_a_level_is_reached_between_two_checkpoints_by_each_seed() -> None:
    two = row("default", [0.2, 0.4, 0.6], [0.4, 0.6, 0.4])
    assert reached(two, 0.4) == pytest.approx([2000, 1000])
    assert reached(two, 0.5) == pytest.approx([2500, 1500])
    assert reached(two, 0.5, "seconds") == pytest.approx([2.5, 1.5])
    assert reached(two, 0.7).tolist() == [np.inf, np.inf]


def test_a_median_counts_what_is_not_reached_as_more_than_all() -> None:
    assert median(np.array([3.0, 1.0, np.inf])) == 3
    assert median(np.array([3.0, 1.0, np.inf, np.inf])) == np.inf
    low, high = interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert 1 <= low < 3 < high <= 5
    assert interval(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == (0.5, 0.5)


def test_the_summary_compares_the_default_with_the_best_rivals() -> None:
    facts = {"genes": 24, "search_items": 600, "start": 0.1, "known": 0.5}
    rows = [
        row("default", [0.6, 0.6], [0.6, 0.6]),
        row("CMA-ES", [0.3, 0.6], [0.3, 0.6]),
        row("mergekit-evolve", [0.1, 0.2], [0.1, 0.2]),
        row("GENOME+ as published", [0.1, 0.3], [0.1, 0.3]),
    ]
    results: Results = {"problems": {"some": facts}, "curves": rows}
    assert best_known(results, "some") == pytest.approx(0.6)
    line = summary(results, ["some"]).splitlines()[-1]
    assert line.startswith(
        "| some | 24 | 10.0 | 60.0 | 1,000 (1,000 to 1,000) | GENOME+ as published: > 2,000 | < 0.50 |"
    )
    assert line.endswith("| CMA-ES: 1,900 (1,900 to 1,900) | 0.53 (0.53 to 0.53) |")
    assert figures(results)["some.genome-as-published"] == "> 2,000"
    assert statement(results, ["some"]) == (
        "It needs at most half the answers of the best contender without derivatives on 0 of 1 problems; not on: some."
    )
