"""Whole searches with a fitness function of one's own: per model and per item, from YAML and from Python."""

import subprocess
import sys

import pytest
import yaml

import evomerge
from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Run, RunError
from evomerge.search.problem import Problem
from fitness.functions.evaluator import FunctionError
from tests import command
from tests.zoo import ZOO

SCORE = """
import torch

TEXTS = [f"sort {a} {b} =" for a in "abcdefgh" for b in "abcdefgh"]

def weight(model, tokenizer):
    return -float(model.get_input_embeddings().weight.float().abs().mean())

def positive(model, tokenizer):
    return -weight(model, tokenizer)

def likely(model, tokenizer, items):
    ids = [tokenizer(text)["input_ids"] for text in items]
    found = []
    for each in ids:
        each = torch.tensor([each])
        found.append(float(torch.exp(-model(input_ids=each, labels=each).loss)))
    return found

def two(model, tokenizer, items):
    scores = likely(model, tokenizer, items)
    return {"likely": scores, "unlikely": [1 - score**2 for score in scores]}
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a search file with a fitness section, and the functions beside it."""

    def write(fitness, **changes):
        (tmp_path / "score.py").write_text(SCORE, encoding="utf-8")
        config = {
            "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
            "space": {"layers_per_group": 6},
            "strategy": {"kind": "cma_es", "population": 4},
            "budget": {"evaluations": 4},
            "workers": {"threads": 1},
        }
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump(config | changes | {"fitness": fitness}), encoding="utf-8")
        return file

    return write


def evaluations(run):
    with Run.read(run) as opened:
        history = RunHistory(opened.events())
    return history, [history.evaluation(identity) for identity in history.told]


def test_a_function_of_models_says_what_it_cannot_say(write, tmp_path, evomerge):
    write({"kind": "python", "function": "score.py:weight"})
    printed = evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    result = Result.read(str(tmp_path / "run" / "result.json"))
    history, told = evaluations(tmp_path / "run")
    assert all(one.items == ("weight/model/0",) and one.standard_error == 0 for one in told)
    assert result.search_score == pytest.approx(result.held_out[0].score) and result.selection_bias == 0
    assert {row.interval for row in result.held_out} == {"none"}
    assert result.verdict.outcome == "indistinguishable"
    best = max(row.score for row in result.held_out if row.kind not in ("found", "mean"))
    recommended = next(row for row in result.held_out if row.name == result.verdict.recommended)
    assert recommended.score >= best
    assert "selection bias" not in printed
    assert "nothing is held out" in printed or "found nothing better than" in printed
    assert not any(purpose == "held_out" for purpose, _ in history.reference_scores), "each model is scored once"
    for verb in (("status", "run"), ("report", "run"), ("plan", "search.yaml"), ("plan", "search.yaml", "--offline")):
        evomerge(*verb, cwd=tmp_path)
    code, _, err = command.run("evaluate", str(ZOO / "models" / "ops"), "--like", "run", cwd=tmp_path)
    assert code == 2 and "scores a model as a whole, and no items are held out" in err
    code, _, err = command.run("answers", "run", cwd=tmp_path)
    assert code == 2 and "scores a model as a whole, so no item has an answer to show" in err


def test_minimums_that_nothing_keeps_change_no_number_of_the_result(write, tmp_path, evomerge):
    """Fitness of what violates a constraint is far below every score: it is for ranking, and not for people."""
    bound = {"task": "weight", "min_share_of_best_source": 2}
    write({"kind": "python", "function": "score.py:positive", "tasks": [bound]}, budget={"evaluations": 1})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    result = Result.read(str(tmp_path / "run" / "result.json"))
    assert result.selection_bias == 0 and result.verdict.outcome == "indistinguishable"
    header = (tmp_path / "run" / "best.yaml").read_text().splitlines()[0]
    assert header == f"# found by evomerge, score {result.held_out[0].score:.4f}"


@pytest.mark.parametrize("estimator", ["inherited", "mean"])
def test_a_function_of_items_has_few_items_held_out_ones_and_a_verdict(write, tmp_path, evomerge, estimator):
    subset = {"items": 6, "estimator": estimator, "rotate": True}
    write({"function": "score:likely", "function_items": "TEXTS", "subset": subset})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    result = Result.read(str(tmp_path / "run" / "result.json"))
    history, _ = evaluations(tmp_path / "run")
    candidates = [event for event in history.asked.values() if event.candidate.kind not in ("founder", "again")]
    asked = [history.told[event.candidate.id].evaluation.items for event in candidates]
    assert {len(items) for items in asked} == {6} and len(set(asked)) >= 1
    found = result.held_out[0]
    assert found.low < found.score < found.high and 10 < found.items < 54
    assert result.verdict is not None and "held-out items" in result.verdict.sentence
    scored = evomerge("evaluate", str(ZOO / "models" / "ops"), "--like", "run", "--json", cwd=tmp_path)
    row = next(row for row in result.held_out if row.name == "ops")
    assert f'"score": {row.score:.4f}'[:12] in scored


def test_racing_and_several_objectives(write, tmp_path, evomerge):
    write({"function": "score.py:likely", "function_items": "TEXTS", "subset": 12, "racing": {"block": 4}})
    evomerge("search", "search.yaml", "--run", "raced", cwd=tmp_path)
    tasks = ["likely", {"task": "unlikely", "weight": -1}]
    fitness = {"function": "score.py:two", "function_items": "TEXTS", "tasks": tasks, "objectives": "per_task"}
    write(fitness, strategy={"kind": "nsga2", "population": 4})
    evomerge("search", "search.yaml", "--run", "front", cwd=tmp_path)
    _, told = evaluations(tmp_path / "front")
    assert all(0 <= one.objectives[0] <= 1 and -1 <= one.objectives[1] < 0 for one in told)
    assert {row.task for row in Result.read(tmp_path / "front" / "result.json").held_out} >= {"likely", "unlikely"}


def test_gradients_are_refused_and_auto_does_without(write, tmp_path):
    fitness = {"function": "score.py:likely", "function_items": "TEXTS"}
    with pytest.raises(ConfigError, match="a fitness function returns scores and has no loss to differentiate"):
        Problem(load(write(fitness, strategy={"kind": "gradient"})))
    problem = Problem(load(write(fitness, strategy="auto", space={"method": "task_arithmetic"})))
    assert problem.config.strategy.kind == "cma_es"
    assert "no loss to differentiate" in problem.chosen


def test_mistakes_of_the_function_show_before_the_search(write, tmp_path, refuse):
    write({"function": "score.py:wrong"})
    (tmp_path / "score.py").write_text("def wrong(model, tokenizer):\n    return 1 / 0\n", encoding="utf-8")
    refuse("search", "search.yaml", "--run", "run", words=["score.py:wrong raised ZeroDivisionError"])
    assert not (tmp_path / "run").exists()
    write({"function": "score.py:gone"})
    refuse("search", "search.yaml", "--run", "run", words=["search.yaml", "fitness.function", "has no gone"])


# --- from Python ---


def given(model, tokenizer, items):
    """Score texts by their length and the model's embeddings."""
    size = float(model.get_input_embeddings().weight.float().abs().mean())
    return [size * (1 + len(text) % 3) for text in items]


@pytest.mark.slow
def test_a_callable_in_place_of_a_section(write, tmp_path):
    values = yaml.safe_load(write({}).read_text())
    del values["fitness"]
    items = [f"text {number}" * (number % 7) for number in range(60)]
    result = evomerge.search(values, tmp_path / "run", evaluate=given, items=items)
    assert result.held_out[0].task == "given" and result.verdict is not None
    with pytest.raises((ConfigError, RunError, ValueError), match="they were given by a Python program"):
        evomerge.resume(tmp_path / "run", overrides=["budget.evaluations=+2"])
    more = evomerge.resume(tmp_path / "run", overrides=["budget.evaluations=+2"], evaluate=given, items=items)
    assert more.evaluations == result.evaluations + 2

    def other(model, tokenizer, items):
        return given(model, tokenizer, items)

    other.__qualname__ = given.__qualname__
    with pytest.raises(RunError, match="items have changed"):
        evomerge.resume(tmp_path / "run", evaluate=other, items=items[:-3])
    with pytest.raises(ConfigError, match="items: only `evaluate` uses them"):
        evomerge.search(values, tmp_path / "x", items=items)


def test_a_callable_over_models_with_a_search_file(write, tmp_path):
    file = write({"tasks": ["size"]})
    result = evomerge.search(file, tmp_path / "run", evaluate=lambda model, tokenizer: {"size": model.num_parameters()})
    assert result.held_out[0].score > 1000 and result.held_out[0].task == "size"


def test_a_function_that_fails_is_named(write, tmp_path):
    with pytest.raises(FunctionError, match="<lambda> returned NaN"):
        evomerge.search(write({}), tmp_path / "run", evaluate=lambda model, tokenizer: float("nan"))


# --- trust and identity ---


def test_a_run_from_elsewhere_runs_no_function_without_trust(write, tmp_path, evomerge, refuse, monkeypatch):
    file = write({"function": "score.py:weight"})
    evomerge("search", file, "--run", "run", cwd=tmp_path)
    evomerge("resume", "run", "--budget.evaluations=+1", cwd=tmp_path)
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / "elsewhere"))
    marker = tmp_path / "ran"
    said = ["fitness.function runs Python code", str(tmp_path / "score.py"), "--trust-tasks"]
    refuse("resume", "run", "--budget.evaluations=+1", words=said)
    evomerge("resume", "run", "--budget.evaluations=+1", "--trust-tasks", cwd=tmp_path)
    (tmp_path / "score.py").write_text(SCORE + f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    refuse("resume", "run", "--budget.evaluations=+1", words=said)
    assert not marker.exists()
    for name in [name for name in sys.modules if name.startswith("evomerge_function_")]:
        del sys.modules[name]
    refuse("resume", "run", "--budget.evaluations=+1", "--trust-tasks", words=["its code score.py has changed"])


def test_a_function_inside_the_run_directory_is_refused(write, tmp_path, evomerge, refuse):
    evomerge("search", write({"function": "score.py:weight"}), "--run", "run", cwd=tmp_path)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"{tmp_path}/score.py", f"{tmp_path}/run/score.py"))
    (tmp_path / "run" / "score.py").write_text(SCORE)
    refuse("resume", "run", words=["score.py is inside the run directory and is code"])


WITHOUT = """
import sys

HIDDEN = ("lm_eval", "datasets")

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *where)
    def find_distributions(self, *context):
        return [found for found in self.finder.find_distributions(*context) if found.name not in HIDDEN]

sys.meta_path[:] = [Without(finder) if hasattr(finder, "find_distributions") else finder for finder in sys.meta_path]
"""
"""Makes Python find neither the modules nor the versions of some packages."""


@pytest.mark.slow
def test_no_lm_eval_needs_to_be_installed(write, tmp_path):
    file = write({"function": "score.py:likely", "function_items": "TEXTS", "subset": 6})
    program = f"import evomerge\nevomerge.search({str(file)!r}, {str(tmp_path / 'run')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    with Run.read(tmp_path / "run") as run:
        packages = run.environment().packages
    assert "torch" in packages and "lm_eval" not in packages


@pytest.mark.slow
def test_ray_workers_score_what_this_process_scores(write, tmp_path):
    items = [f"text {number}" * (number % 7) for number in range(60)]
    file = write({})
    here = evomerge.search(file, tmp_path / "here", evaluate=given, items=items)
    ray = ["workers={kind: ray, count: 2}"]
    there = evomerge.search(file, tmp_path / "there", evaluate=given, items=items, overrides=ray)
    assert there.held_out == here.held_out
    named = write({"function": "score.py:likely", "function_items": "TEXTS"})
    one = evomerge.search(named, tmp_path / "one")
    two = evomerge.search(named, tmp_path / "two", overrides=ray)
    assert one.held_out == two.held_out
