"""What `evomerge plan` expects a search to ask, against what it asks."""

import json

import pytest

from evomerge.config.load import load
from evomerge.runs.history import STAGES, RunHistory
from evomerge.runs.run import Run
from evomerge.search.forecast.rehearsal import MOST_REHEARSED, forecast
from evomerge.search.problem import Problem
from tests.zoo import ZOO, few_items

BOTH = {"objectives": "per_task", "tasks": ["zoo_target_ja", "zoo_target_eo"]}
SEARCHES = {
    "cma_es": ({"kind": "cma_es", "population": 6}, {}),
    "m2n2": ({"kind": "m2n2", "archive": 6}, {}),
    "nsga2": ({"kind": "nsga2", "population": 8}, BOTH),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    names = ("zoo_target_mc", "zoo_target_ja", "zoo_target_eo")
    return few_items(tmp_path_factory.mktemp("tasks"), names, 100)


@pytest.fixture
def search_file(tmp_path, tasks):
    """Return a function that writes a search file, with changes."""

    def search_file(strategy, fitness=None, **changes):
        values = {
            "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
            "space": {"layers_per_group": 3, "weight": {"low": 0.0, "high": 1.5, "start": 0.8}},
            "strategy": strategy,
            "fitness": {
                "tasks": ["zoo_target_mc"],
                "include_path": [str(tasks)],
                "subset": 16,
                "held_out": "test",
                "finalists": 8,
                **(fitness or {}),
            },
            "budget": {"evaluations": 48},
            "workers": {"threads": 1},
        }
        path = tmp_path / "search.yaml"
        path.write_text(json.dumps(values | changes), encoding="utf-8")
        return path

    return search_file


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 14])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_answers_that_plan_predicts_are_those_that_the_run_asks(name, seed, search_file, tmp_path, evomerge):
    search_file(*SEARCHES[name], seed=seed)
    plan = json.loads(evomerge("plan", "search.yaml", "--json", cwd=tmp_path))
    result = json.loads(evomerge("search", "search.yaml", "--run", "run", "--json", cwd=tmp_path))
    asked = result["item_evaluations"]
    assert plan["answers"] == pytest.approx(asked, rel=0.05)
    assert sum(stage["answers"] for stage in result["stages"].values()) == asked
    for stage, row in result["stages"].items():
        line = plan["stages"][stage]
        assert (row["expected"], row["low"], row["high"]) == (line["answers"], line["low"], line["high"])
    for exact in ("sources", "founders", "steps"):
        assert result["stages"][exact]["answers"] == plan["stages"][exact]["answers"]


def test_a_source_that_is_a_founder_is_asked_once(search_file):
    """Three experts answer all search items; of the seven founders the base, the averages and the start are left."""
    bill = forecast(Problem(load(search_file({"kind": "random"}))))
    assert bill.lines["sources"].answers == 3 * 100
    assert (bill.lines["founders"].requests, bill.lines["founders"].answers) == (4, 4 * 16)
    assert bill.lines["candidates"].answers == 48 * 16


def test_the_range_of_finalists_goes_from_those_that_leave_at_once_to_those_that_leave_late(search_file):
    bill = forecast(Problem(load(search_file({"kind": "random"}))))
    finalists, held_out = bill.lines["finalists"], bill.lines["held-out"]
    assert finalists.low < 0.7 * finalists.high
    assert finalists.low <= finalists.answers <= finalists.high
    assert held_out.high - held_out.low in (0, 100)  # the row of the found recipe, where it is no alternative


def test_steps_by_gradients_are_counted_apart(search_file):
    strategy = {"kind": "gradient", "steps": 30, "items": 10, "then": {"kind": "random"}}
    bill = forecast(Problem(load(search_file(strategy))))
    assert (bill.lines["steps"].requests, bill.lines["steps"].answers) == (30, 300)
    candidates = bill.lines["candidates"]
    assert candidates.answers == 16 * candidates.requests
    assert candidates.requests in (17, 18)  # a merge that is proposed again is not asked again


def test_a_long_search_is_not_rehearsed_to_its_end(search_file):
    long = forecast(Problem(load(search_file({"kind": "random"}, budget={"evaluations": 20 * MOST_REHEARSED}))))
    assert long.lines["candidates"].answers == pytest.approx(20 * MOST_REHEARSED * 16)


def test_racing_gives_a_range(search_file):
    races = {"racing": {"block": 4}, "subset": 40}
    line = forecast(Problem(load(search_file({"kind": "cma_es", "population": 8}, races)))).lines["candidates"]
    assert line.low < line.answers < line.high < 48 * 40


def test_what_is_recorded_is_part_of_the_forecast(search_file, tmp_path, evomerge):
    search_file({"kind": "random"}, budget={"evaluations": 6})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    with Run.read(tmp_path / "run") as run:
        events = list(run.events())
    history = RunHistory(events)
    bill = forecast(Problem(load(tmp_path / "search.yaml")), events)
    assert bill.is_exact
    assert {name: bill.lines[name].answers for name in STAGES} == {
        name: history.stages[name].answers for name in STAGES
    }
    assert all(line.answers == 0 for line in bill.remaining(history).values())


def test_a_forecast_that_fails_does_not_stop_the_search(search_file, tmp_path, evomerge, monkeypatch):
    def fail(*_):
        raise RuntimeError("a plug-in and made-up scores")

    search_file({"kind": "random"}, budget={"evaluations": 3})
    monkeypatch.setattr("evomerge.search.api.forecast", fail)
    result = json.loads(evomerge("search", "search.yaml", "--run", "run", "--json", cwd=tmp_path))
    assert result["evaluations"] == 3 and "expected" not in result["stages"]["candidates"]
    assert "a plug-in and made-up scores" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_the_time_is_predicted_within_a_factor_of_two(name, search_file, tmp_path, evomerge):
    """Compared with the seconds of merging and scoring that the same run has measured, on the same machine."""
    search_file(*SEARCHES[name])
    ratios = []
    for attempt in range(3):  # other processes may slow one of the two down
        plan = json.loads(evomerge("plan", "search.yaml", "--json", cwd=tmp_path))
        result = json.loads(evomerge("search", "search.yaml", "--run", f"run{attempt}", "--json", cwd=tmp_path))
        expected = sum(stage["seconds"] for stage in plan["stages"].values())
        ratios.append(expected / sum(stage["seconds"] for stage in result["stages"].values()))
    assert 0.5 < sorted(ratios)[1] < 2, ratios
