"""Held-out means never seen: by the search, by the run that it begins with, nor by the one that found its start."""

import json

import numpy as np
import pytest
import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.runs.run import Asked, Run, Told
from evomerge.search.problem import Problem
from evomerge.strategies import Candidate
from fitness.results import Evaluation, TaskError, no_seconds
from search_spaces.recipes import mergekit_yaml
from tests.zoo import ZOO, few_items

MODELS = {name: str(ZOO / "models" / name) for name in ("base", "ops")}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return few_items(tmp_path_factory.mktemp("tasks"), ("zoo_target_gen",), 60)


@pytest.fixture
def write(tmp_path, tasks):
    """Return a function that writes a search file whose seed decides what is held out."""

    def write(name, seed, *, strategy="genetic", start=None, **fitness):
        values = {
            "models": MODELS,
            "space": {"layers_per_group": 6} | ({"start": str(start)} if start else {}),
            "strategy": {"kind": strategy} if isinstance(strategy, str) else strategy,
            "fitness": {"tasks": ["zoo_target_gen"], "include_path": [str(tasks)], "held_out": 0.5} | fitness,
            "seed": seed,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def begin(path, problem):
    """Make a run with one scored candidate, and its best.yaml."""
    items = tuple(problem.search_items)
    with Run.create(path, problem.resolved().to_yaml(), problem.environment()) as run:
        run.record(Asked(Candidate(0, np.array(problem.space.start), "sample", 0), "hash"))
        scores = np.ones(len(items), np.float32)
        run.record(Told(0, Evaluation("ok", (1.0,), (0.1,), items, scores, no_seconds()), False, 1.0))
        recipe = problem.space.decode(problem.space.start)
        run.write("best.yaml", mergekit_yaml.dump(recipe, f"the best\n{run.origin}"))
    return path


def keys(problem, side):
    return {item.key for items in getattr(problem.suite.pool, side).values() for item in items}


@pytest.fixture
def former(tmp_path, write):
    problem = Problem(load(write("former", 0)))
    return problem, begin(tmp_path / "former", problem)


def test_a_warm_start_holds_out_nothing_that_its_run_has_seen(former, write):
    before, run = former
    alone = Problem(load(write("alone", 1)))
    seen = keys(alone, "held_out") & keys(before, "search")
    assert len(seen) > 5  # without the warm start these would be leaks
    new = Problem(load(write("new", 1, strategy={"kind": "genetic", "warm_start": str(run)})))
    assert not keys(new, "held_out") & keys(before, "search")
    assert keys(new, "held_out") == keys(alone, "held_out") - seen
    assert keys(new, "search") == keys(alone, "search")
    (said,) = [text for text in new.warnings if "has seen them" in text]
    assert f"zoo_target_gen: {len(seen)} held-out items left out" in said and str(run) in said
    assert not [text for text in alone.warnings if "has seen" in text]


def test_what_was_seen_is_handed_on(former, write, tmp_path):
    """A third search begins with the second, which began with the first; and a resumed one needs no former run."""
    before, run = former
    second = Problem(load(write("second", 1, strategy={"kind": "genetic", "warm_start": str(run)})))
    began = begin(tmp_path / "second", second)
    third = Problem(load(write("third", 2, strategy={"kind": "genetic", "warm_start": str(began)})))
    assert not keys(third, "held_out") & (keys(before, "search") | keys(second, "search"))
    for file in run.iterdir():
        file.unlink()
    with Run.read(began) as opened:
        resumed = Problem(load(began / "config.yaml"), recorded=opened.environment())
    assert keys(resumed, "held_out") == keys(second, "held_out")
    assert resumed.environment().items == second.environment().items


@pytest.mark.parametrize("place", ["beside the log", "exported"])
def test_a_start_holds_out_nothing_that_its_run_has_seen(place, former, write, tmp_path):
    before, run = former
    start = run / "best.yaml"
    if place == "exported":
        start = tmp_path / "exported.yaml"
        start.write_text((run / "best.yaml").read_text())
    new = Problem(load(write("new", 1, strategy="cma_es", start=start)))
    assert not keys(new, "held_out") & keys(before, "search")
    assert any("held-out items left out" in text and str(run) in text for text in new.warnings)


@pytest.mark.parametrize("space", [{"kind": "data_flow", "anchor": "F"}, {"kind": "layer_actions", "merges": ["F"]}])
def test_neither_does_a_merge_that_a_space_of_layers_builds_on(space, former, write, tmp_path):
    before, run = former
    path = write("new", 1, strategy="random")
    written = {key: yaml.safe_load(str(value).replace("F", str(run / "best.yaml"))) for key, value in space.items()}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"models": MODELS, "space": written}))
    new = Problem(load(path))
    assert not keys(new, "held_out") & keys(before, "search")
    assert any("held-out items left out" in text and str(run) in text for text in new.warnings)


def test_a_start_of_a_run_that_is_gone_is_said(former, write, tmp_path):
    _, run = former
    start = tmp_path / "exported.yaml"
    start.write_text((run / "best.yaml").read_text())
    run.rename(tmp_path / "moved")
    new = Problem(load(write("new", 1, strategy="cma_es", start=start)))
    assert any(f"is of the run {run}, which is not there" in text for text in new.warnings)


def test_a_start_by_hand_has_seen_nothing(former, write, tmp_path):
    _, run = former
    start = tmp_path / "own.yaml"
    start.write_text("".join(line for line in (run / "best.yaml").open() if not line.startswith("#")))
    new = Problem(load(write("new", 1, strategy="cma_es", start=start)))
    assert not any("left out, because" in text or "not there" in text for text in new.warnings)


def test_a_search_that_could_hold_out_nothing_is_refused(write, tmp_path):
    run = begin(tmp_path / "whole", Problem(load(write("whole", 0, held_out="test"))))
    tasks = [{"task": "zoo_target_gen", "search_split": "test"}]
    warm = {"kind": "genetic", "warm_start": str(run)}
    path = write("new", 0, strategy=warm, held_out="validation", allow_test_split=True, tasks=tasks)
    with pytest.raises(TaskError, match=r"has seen all of its \d+ held-out items"):
        Problem(load(path))


def calibrated(write, text):
    """Return a search over RegMean's weights whose text is `text`."""
    path = write("calibrated", 0)
    values = yaml.safe_load(path.read_text())
    values["space"] |= {"method": "regmean", "calibration_text": text}
    path.write_text(yaml.safe_dump(values))
    return Problem(load(path))


def test_a_calibration_text_holds_nothing_that_is_held_out(write, tmp_path):
    problem = Problem(load(write("plain", 0)))
    held_out = problem.suite.texts(problem.held_out_items[:1])
    (tmp_path / "text.txt").write_text("a line\n" * 30 + "".join(item.question for item in held_out.values()))
    with pytest.raises(
        TaskError, match=r"space.calibration_text: .*text.txt contains the held-out item zoo_target_gen/"
    ):
        calibrated(write, {"base": "text.txt", "ops": "text.txt"})
    (tmp_path / "text.txt").write_text("a line\n" * 30)
    assert calibrated(write, "text.txt").space.decode(problem.space.start[:1].repeat(6)) is not None


def test_the_text_of_a_task_is_its_search_items_with_their_answers(write, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    problem = calibrated(write, {"base": "task:zoo_target_gen", "ops": "task:zoo_target_gen"})
    (file,) = problem.space.decode(problem.space.start).calibration_files
    lines = (tmp_path / "cache" / "texts" / file).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    for item, shown in problem.suite.texts(problem.search_items).items():
        assert f"{shown.question} {shown.targets[0]}" in texts, item
    assert not [
        item for item in problem.suite.texts(problem.held_out_items).values() if item.question in "".join(texts)
    ]
    assert problem.config.space.calibration_text["ops"] == "task:zoo_target_gen"  # what a run records
    with pytest.raises(
        ConfigError, match=r"space.calibration_text: the search file has no task zoo_target_ge; did you"
    ):
        calibrated(write, "task:zoo_target_ge")
