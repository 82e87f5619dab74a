from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.fitness_accuracy import finalists, racing, simulated, study, validation
from experiments.fitness_accuracy.__main__ import main
from experiments.fitness_accuracy.calibration import calibrate
from experiments.fitness_accuracy.data import load, simulate, write_matrix
from experiments.fitness_accuracy.learn import NARROWED, WIDER, learn_from, module_text
from experiments.fitness_accuracy.tables import TABLES, Plan, Record, measure, summarise
from fitness.estimation.item_banks import Responses
from fitness.results import Estimate

SMALL = Plan(sizes=(20,), draws=1, calibration=60, few=12, tested=5)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_finite_figures_for_every_method(table: str) -> None:
    summary = summarise(list(measure(table, simulate()[:1], SMALL)))
    assert set(summary) == {method.label for method in TABLES[table].methods}
    for rows in summary.values():
        row = rows[20]
        assert np.isfinite([row.error, row.rank, row.regret, row.optimism, row.coverage]).all()


def test_the_default_beats_the_published_estimators_on_merges() -> None:
    summary = summarise(list(measure("merges", simulate(), Plan(sizes=(20,), draws=2, calibration=80))))
    errors = {label: rows[20].error for label, rows in summary.items()}
    assert errors["**default**"] < 0.6 * min(errors["mp-IRT (published)"], errors["gmp-IRT (published)"])


def test_measurements_repeat_and_do_not_depend_on_the_other_benchmarks() -> None:
    both = [r for r in measure("few", simulate(), SMALL) if r.benchmark == "simulated_1"]
    alone = list(measure("few", simulate()[1:], SMALL))
    assert both == alone


def test_figures_are_what_they_say() -> None:
    def record(model: int, truth: float, value: float) -> Record:
        return Record("t", "b", "x", 10, 0, model, truth, Estimate(value, 0.05))

    row = summarise([record(0, 0.5, 0.6), record(1, 0.7, 0.58), record(2, 0.2, 0.3)])["x"][10]
    assert row.error == pytest.approx(100 * (0.1 + 0.12 + 0.1) / 3)
    assert row.regret == pytest.approx(20) and row.optimism == pytest.approx(10)
    assert row.rank == pytest.approx(0.5) and row.coverage == 0


def test_a_folder_of_matrices_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = simulate(models=120, merges=4)[0]
    names = tuple(f"org/m{i}" for i in range(len(benchmark.scores)))
    write_matrix(tmp_path / "any.npz", Responses(names, tuple(map(str, range(120))), benchmark.scores))
    merges = {names[row]: [names[parent] for parent in parents] for row, parents in benchmark.merges}
    (tmp_path / "merges.json").write_text(json.dumps({**merges, "org/unknown": ["org/m1"]}))
    assert load(tmp_path)[0].merges == benchmark.merges
    main(["--responses", str(tmp_path), "--quick", "--draws", "1", "--tables", "merges", "-o", str(tmp_path / "out")])
    assert "**default**" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["benchmarks"] == {"any": {"shape": [132, 120], "merges": 4}}


def test_without_responses_it_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "give --responses DIR, or --quick"),
        (["--responses", str(tmp_path)], "no *.npz in it"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def small() -> list:
    return simulate(items=60, models=100, merges=5)[:1]


def test_the_learnt_prior_is_that_of_the_merges_it_is_learnt_from() -> None:
    """Merges that are much better than their parents' mean have a larger intercept; the written module holds it."""
    plain, better = small(), small()
    for row, _ in better[0].merges:
        better[0].scores[row] = 1.0
    first, second = learn_from(plain, (0,)), learn_from(better, (0,))
    assert second.with_bank.mean[0] > first.with_bank.mean[0] + 0.3
    names: dict = {}
    exec(compile(module_text(second), "learnt", "exec"), names)
    assert (names["WITH_BANK"].mean, names["SHARES"]) == (second.with_bank.mean, second.shares)


def test_halves_hold_all_copies_of_a_merge() -> None:
    (benchmark,) = small()
    sides = {parents: validation.half(benchmark, parents) for _, parents in benchmark.merges}
    assert set(sides.values()) <= {0, 1}
    assert all(validation.half(benchmark, parents[::-1]) == side for parents, side in sides.items())


def test_changes_do_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    parents, answers = np.zeros((2, 4000)), np.ones(4000)
    parents[:, :2000] = 1.0
    assert validation.collapse(0.3)(answers, parents, rng).mean() == pytest.approx(0.7, abs=0.03)
    emerged = validation.emergent(0.5)(0 * answers, parents, rng)
    assert emerged[:2000].sum() == 0 and emerged[2000:].mean() == pytest.approx(0.5, abs=0.04)
    assert validation.guesses(0.25)(answers, parents, rng).mean() == pytest.approx(0.25, abs=0.03)


def test_validation_summarises_errors_of_single_benchmarks() -> None:
    def record(name: str, row: int, error: float) -> validation.Record:
        return validation.Record(name, row, True, 20, error, 0.04, 0.1)

    found = validation.summarise([record("a", 1, 0.02), record("a", 2, -0.04), record("b", 3, 0.1)])
    assert found.error == pytest.approx((3 + 10) / 2) and found.by_benchmark == {"a": pytest.approx(3), "b": 10}
    assert found.coverage == pytest.approx(50) and found.mean_error == pytest.approx(10)


def test_a_race_asks_no_more_than_all_items_and_loses_little() -> None:
    (benchmark,) = small()
    merge, parents = benchmark.merges[0]
    given = racing.generation(benchmark, merge, parents, 0)
    asked = racing.race(given, 0.2, 0.0)
    assert set(asked) <= set(range(racing.BLOCK, racing.ITEMS + 1, racing.BLOCK)) and max(asked) == racing.ITEMS
    assert sum(racing.race(given, 0.01, 0.0)) >= sum(asked) >= sum(racing.race(given, 0.2, 1.0))


def test_successive_halving_asks_half_of_them_twice_as_much() -> None:
    (benchmark,) = small()
    merge, parents = benchmark.merges[0]
    asked = sorted(racing.halving(racing.generation(benchmark, merge, parents, 0)))
    assert asked == [8] * 6 + [16] * 3 + [32] + [40] * 2


def test_sequential_halving_finds_the_best_of_clearly_different_finalists() -> None:
    answers = (np.arange(100) < np.array([[40], [90], [20], [60]])).astype(float)
    chosen, asked = finalists.halved(answers, [0, 1, 2, 3], np.random.default_rng(0))
    assert chosen == 1 and asked == 4 * 33 + 2 * 67
    assert finalists.halved(answers, [2], np.random.default_rng(0)) == (2, 0)


def test_all_candidates_as_finalists_lose_little() -> None:
    (benchmark,) = small()
    found = [each for side in (0, 1) for each in finalists.outcomes(benchmark, 0, side)]
    assert {each.finalists for each in found} == set(finalists.FINALISTS)
    by_count = finalists.summary(found)["mean"]
    assert by_count["1"]["answers"] == 0 < by_count["2"]["answers"] < by_count["30"]["answers"]
    spread = benchmark.scores.mean(1).std() * 100
    assert all(0 <= row["regret"] < spread for row in by_count.values())


def test_the_floor_is_the_noise_of_the_items_that_are_left() -> None:
    (benchmark,) = small()
    items = benchmark.scores.shape[1]
    (floor,) = validation.floors(validation.cases([benchmark], 1), (1, 10, 20, items)).values()
    assert floor[1] > floor[10] > floor[20] > floor[items] == 0
    guessing = 100 * (2 / np.pi) ** 0.5 * 0.5 * (items - 1) ** 0.5 / items
    assert 0.2 * guessing < floor[1] < guessing


def test_scores_of_any_size_are_estimated_better_than_by_their_mean() -> None:
    (benchmark,) = small()
    for records in validation.measure_graded(validation.cases([benchmark], 1), (20,)).values():
        found = validation.summarise(records)
        assert found.error < 0.8 * found.mean_error and found.coverage > 70


def test_the_linear_model_chooses_and_judges_as_conditioning_says() -> None:
    root = np.random.default_rng(0).normal(size=(12, 12))
    model = study.Linear(np.full(12, 0.5), root @ root.T / 12 + 0.1 * np.eye(12))
    asked = model.choose(3, np.random.default_rng(0))

    def error(positions: np.ndarray) -> float:
        return model.estimate(np.ones(len(positions)), positions).standard_error

    singles = [error(np.array([item])) for item in range(12)]
    assert model.choose(1, np.random.default_rng(0)).tolist() == [int(np.argmin(singles))]
    assert error(asked) < error(asked[:2]) < error(asked[:1])
    every = np.arange(12)
    assert model.estimate(np.eye(12)[3], every).value == pytest.approx(1 / 12)
    assert error(every) == pytest.approx(0, abs=1e-4)


@pytest.fixture(scope="module")
def one_setting() -> tuple:
    (benchmark,) = small()
    case = validation.cases([benchmark], 1)[0]
    return case, study.Setting(case.prior(), calibrate("merges", benchmark, 100, 0, 0).scores)


@pytest.mark.parametrize("name", study.IDEAS)
def test_every_idea_judges_a_merge_and_leaves_the_default_as_it_was(name: str, one_setting: tuple) -> None:
    case, setting = one_setting
    chances = dict(study.explanations.CHANCES)
    published, unlike = study._of_case(case, 0, setting, study.IDEAS[name], (20,))
    assert chances == study.explanations.CHANCES
    assert [record.items for record in published] == [20] and published[0].standard_error > 0
    assert len(unlike) == (len(validation.CHANGES) - 1 if study.IDEAS[name].robust else 0)


def test_simulated_merges_are_drawn_from_what_was_learnt_and_judged_in_each_ideal_way(one_setting: tuple) -> None:
    case, setting = one_setting
    learnt = simulated.as_learnt(setting.given)
    assert (1 - sum(WIDER)) * np.array(learnt.shares) + WIDER == pytest.approx(setting.given.shares, abs=2e-3)
    assert NARROWED * learnt.covariance == pytest.approx(setting.given.covariance)
    right_MI = simulated.probabilities(learnt, 2000, np.random.default_rng(0))
    # three standard errors, and the probit approximation of `probability`, which also leaves out the heavy tails
    assert np.abs(right_MI.mean(0) - learnt.probability).max() < 3 * 0.5 / 2000**0.5 + 0.03
    records = study._of_simulated(case, 0, setting, (20,))
    assert set(records) == set(study.IDEAL)
    assert all(len(each) == study.SIMULATED and each[0].items == 20 for each in records.values())


def test_items_by_simulation_gain_what_an_answer_says_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    right_MI, weight_M = rng.uniform(0.05, 0.95, (3, 4)), np.array([0.5, 0.3, 0.2])
    answer_AI = np.array(list(np.ndindex(2, 2, 2)), float)  # to the open items 0, 1, 2; item 3 was asked
    chance_A = weight_M @ np.prod(np.where(answer_AI, right_MI[:, None, :3], 1 - right_MI[:, None, :3]), -1)
    sum_A = answer_AI.sum(1)

    def spread(among_A: np.ndarray) -> float:
        weight_A = chance_A * among_A / (chance_A * among_A).sum()
        return float(weight_A @ sum_A**2 - (weight_A @ sum_A) ** 2)

    now = spread(np.ones(8))
    after = [
        sum((chance_A * (answer_AI[:, item] == y)).sum() * spread(answer_AI[:, item] == y) for y in (0, 1))
        for item in range(3)
    ]
    gain_I = simulated._gain(np.log(weight_M)[None], right_MI, right_MI * (1 - right_MI), [3])
    assert gain_I[:3] == pytest.approx(now**0.5 - np.sqrt(after)) and gain_I[3] == -np.inf


@pytest.mark.parametrize("count", [12, simulated.BY_SIMULATION + 5])
def test_items_by_simulation_are_distinct_and_begin_alike(count: int, one_setting: tuple) -> None:
    _, setting = one_setting
    items = simulated.items_by_simulation(setting.given, count, np.random.default_rng(3))
    assert len(set(items.tolist())) == count and (np.diff(items) > 0).all()
    assert items.tolist() == simulated.items_by_simulation(setting.given, count, np.random.default_rng(3)).tolist()
    stratum_I = setting.given.strata
    assert stratum_I is not None and set(stratum_I[items]) >= {0, 2}  # what shows emerged and broken answers
