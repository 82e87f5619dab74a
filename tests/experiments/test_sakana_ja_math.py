"""The search files of the paper's models are valid, and mean what their README says, without any download."""

import json

import pytest
import yaml

from experiments.sakana_ja_math.__main__ import FILES, FOLDER, check, read
from fitness.tasks.suite import TaskSuite

README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found():
    return {name: check(name) for name in FILES}


def test_the_committed_results_are_what_the_check_gives(found):
    assert list(found.values()) == json.loads((FOLDER / "results.json").read_text())


def test_the_settings_are_the_papers(found):
    parameters, stacked = found.values()
    assert parameters["parameters"] == 7_241_732_096
    assert (parameters["genes"], parameters["population"], parameters["evaluations"]) == (6, 9, 1000)
    slots, pairs = 3 * (2 * 32 - 2), (2 * 32 - 1) ** 2
    assert stacked["genes"] == 6 + slots + pairs
    assert stacked["evaluations"] == 1000 + 100 * 128


def test_bits_begin_two_steps_from_where_they_turn(found):
    turned = found["stacked"]["bits_turned"]
    expected = 0.02275 * turned["of"]  # P(N(0, 1) > 2)
    assert turned["mean"] == pytest.approx(expected, abs=0.6)  # three standard errors of 128 candidates
    assert f"{turned['mean']:.1f} of {turned['of']}" in README


@pytest.mark.parametrize("name", FILES)
def test_the_task_asks_and_is_scored_as_the_file_says(name, tmp_path):
    """The installed lm-eval's task, with a few problems in place of its data set."""
    config = read(name)
    (mgsm,) = config.fitness.include_path
    problems = [
        {"question": f"{n}個から1個を取るといくつですか？", "answer": None, "answer_number": n - 1}
        for n in range(11, 27)
    ]
    lines = [json.dumps(problem, ensure_ascii=False) for problem in problems]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = {"train": str(tmp_path / "test.jsonl"), "test": str(tmp_path / "test.jsonl")}
    task = {
        "include": f"{mgsm}/direct/mgsm_direct_ja.yaml",
        "task": "mgsm_direct_ja",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    (tmp_path / "mgsm_direct_ja.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    suite = TaskSuite.load(config.fitness.model_copy(update={"include_path": (str(tmp_path),)}), config.seed)
    assert suite.metrics == {"mgsm_direct_ja": "exact_match,flexible-extract"}
    loaded, pool = suite.task("mgsm_direct_ja"), suite.pool
    items = [*pool.search["mgsm_direct_ja"], *pool.held_out["mgsm_direct_ja"]]
    assert len(items) == len(problems)
    for item in items:
        (request,) = loaded.requests(item)
        assert request.context.startswith("問題： ") and request.context.endswith("\nAnswer:")
