import numpy as np
import pytest

from evomerge.runs.result import ALL_TASKS, Entry, Result, table, verdict_on
from evomerge.runs.run import LogError
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe


def scored(name, kind, **tasks):
    """Return an entry with these 0/1 scores by task."""
    items = [f"{task}/test/{index}" for task, scores in tasks.items() for index in range(len(scores))]
    values = np.concatenate([np.asarray(scores, np.float32) for scores in tasks.values()])
    return Entry(name, kind, source_recipe(name, 2)), Evaluation(
        "ok", (float(values.mean()),), (0.0,), tuple(items), values
    )


def right(count, of=100):
    return [1.0] * count + [0.0] * (of - count)


def test_one_task():
    rows = table(
        [
            scored("found", "found", a=right(80)),
            scored("distribution mean", "mean", a=right(79)),
            scored("base", "source", a=right(30)),
            scored("uniform average", "uniform", a=right(60)),
        ],
        {"a": 2.0},
    )
    assert [(row.name, row.score, row.items) for row in rows] == [
        ("found", 0.8, 100),
        ("distribution mean", 0.79, 100),
        ("base", 0.3, 100),
        ("uniform average", 0.6, 100),
    ]
    # Against the best source or baseline, the uniform average: 20 items better, none worse.
    assert rows[0].p_value == pytest.approx(2 * 0.5**20)
    assert rows[0].p_value == rows[3].p_value
    assert rows[1].p_value == 1.0
    assert rows[2].p_value < rows[3].p_value
    assert rows[0].low < 0.8 < rows[0].high


def test_the_best_rival_is_chosen_task_by_task():
    rows = table(
        [
            scored("found", "found", a=right(80), b=right(50)),
            scored("x", "source", a=right(80), b=right(10)),
            scored("y", "source", a=right(10), b=right(40)),
        ],
        {"a": 1.0, "b": 3.0},
    )
    found = {row.task: row for row in rows if row.kind == "found"}
    assert found["a"].p_value == 1.0  # x is as good
    assert found["b"].p_value == pytest.approx(2 * 0.5**10)
    assert found[ALL_TASKS].score == pytest.approx((0.8 + 3 * 0.5) / 4)
    assert found[ALL_TASKS].items == 200
    assert found[ALL_TASKS].low < found[ALL_TASKS].score < found[ALL_TASKS].high


def test_a_found_recipe_equal_to_a_rival_is_not_significant():
    rows = table([scored("found", "found", a=right(50)), scored("x", "source", a=right(50))], {"a": 1.0})
    assert [row.p_value for row in rows] == [1.0, 1.0]


def test_the_verdict_weighs_the_tasks():
    entries = [
        scored("found", "found", a=right(80), b=right(50)),
        scored("mean", "mean", a=right(90), b=right(90)),
        scored("x", "source", a=right(90), b=right(20)),
        scored("y", "start", a=right(20), b=right(49)),
    ]
    found = verdict_on(entries, {"a": 1.0, "b": 3.0})
    assert {one.name: one.difference for one in found.comparisons} == pytest.approx({"x": 0.2, "y": 0.1575})
    assert found.outcome == "better"
    assert verdict_on(entries, {"a": 3.0, "b": 0.1}).recommended == "x"


def test_the_json_reads_back(tmp_path):
    file = tmp_path / "result.json"
    rows = table([scored("found", "found", a=right(50)), scored("x", "source", a=right(40))], {"a": 1.0})
    verdict = verdict_on([scored("found", "found", a=right(80)), scored("x", "source", a=right(10))], {"a": 1.0})
    result = Result(rows, "abc", 10, 200, {"merge": 1.0, "overhead": 0.5}, 0.6, 0.1, 150, verdict)
    file.write_text(result.to_json(), encoding="utf-8")
    assert Result.read(file) == result
    file.write_text(result.to_json()[:-20], encoding="utf-8")
    with pytest.raises(LogError, match=r"result\.json cannot be read .*; remove it"):
        Result.read(file)


def test_scores_of_models_as_wholes_have_no_interval_and_no_test():
    """Two scores are no sample of items, in the row of all tasks either."""

    def whole(name, kind, score):
        values = np.array([score, 100 * score], np.float32)
        evaluation = Evaluation("ok", items=("a/model/0", "b/model/0"), scores=values)
        return Entry(name, kind, source_recipe(name, 2)), evaluation

    rows = table([whole("found", "found", 2.0), whole("base", "source", 1.0)], {"a": 1.0, "b": 1.0})
    assert {(row.interval, row.p_value, row.items) for row in rows} == {("none", 1.0, 1)}
