"""Tasks whose metric runs programs of the model: scored in the sandbox, searched end to end."""

import math
import os
import sys

import pytest
import yaml

import evomerge
from fitness.results import TaskError
from fitness.sandbox import bubblewrap
from fitness.sandbox.code_eval import CodeEval, use_sandboxed_code_eval
from fitness.tasks.config import TasksConfig
from fitness.tasks.suite import TaskSuite
from tests.zoo import ZOO, few_items

HUMAN_EVAL = """
import evaluate as hf_evaluate
compute_ = hf_evaluate.load("code_eval")
results = compute_.compute(references=["assert add(2, 3)==5"], predictions=[["def add(a,b): return a*b"]], k=[1])

def pass_at_k(references, predictions, k=None):
    return compute_.compute(references=references, predictions=predictions, k=k)[0]

def build_predictions(resps, docs):
    return [["def solve():\\n    return '" + r + "'" for r in resp] for resp in resps]
"""
OWN_MEANS = """
import json

def solves(doc, results):
    names = {}
    exec("def solve():\\n    return '" + results[0] + "'", names)
    return {"solved": float(names["solve"]() == json.loads(json.dumps(doc["answer"])))}
"""
KEYS = {
    "human_eval": """
doc_to_target: "assert solve() == '{{answer}}'"
metric_list: [{metric: !function own.pass_at_k, aggregation: mean, higher_is_better: true, k: [1]}]
filter_list: [{name: create_test, filter: [{function: custom, filter_fn: !function own.build_predictions}]}]
""",
    "own_means": """
process_results: !function own.solves
metric_list: [{metric: solved, aggregation: mean, higher_is_better: true}]
""",
}


pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a task like lm-eval's HumanEval whose programs solve the zoo's lists."""

    def write(kind, python, items=6):
        folder = few_items(tmp_path / "tasks", ("zoo_target_gen",), items)
        (folder / "own.py").write_text(python)
        text = (folder / "zoo_target_gen.yaml").read_text().replace("task: zoo_target_gen", "task: programs")
        (folder / "programs.yaml").write_text(f"{text}\nunsafe_code: true\n{KEYS[kind]}")
        return folder

    return write


def config(folder, **keys):
    values = {"tasks": ["programs", "zoo_target_gen"], "include_path": [str(folder)], "held_out": "test"}
    return TasksConfig.model_validate(values | {"allow_code": True} | keys)


@pytest.mark.parametrize(("kind", "python"), [("human_eval", HUMAN_EVAL), ("own_means", OWN_MEANS)])
def test_a_program_scores_as_its_result_does(kind, python, write):
    """The answers of a model to the same questions, once as programs and once as text."""
    suite = TaskSuite.load(config(write(kind, python, items=3)), seed=0)
    programs, texts = suite.task("programs"), suite.task("zoo_target_gen")
    assert suite.metrics["programs"] in ("pass@1,create_test", "solved,none")
    items, same = suite.pool.search["programs"], suite.pool.search["zoo_target_gen"]
    for task, asked in ((programs, items), (texts, same)):
        for item in asked:
            task.requests(item)
    right = [texts.documents.of(item.split)[item.index]["answer"] for item in same]
    for answers in (right, right[::-1], ["'; syntax", "' if 1 else '", "'; raise SystemExit #"]):
        given = [(text,) for text in answers]
        assert programs.scores.of(items, given).tolist() == texts.scores.of(same, given).tolist()
    assert programs.scores.of(items, [(text,) for text in right]).mean() == 1


@pytest.mark.slow
def test_a_search_whose_task_runs_programs(write, tmp_path):
    folder = write("human_eval", HUMAN_EVAL, items=12)
    models = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")}
    common = config(folder).model_dump(exclude={"tasks"})
    programs, texts = (
        evomerge.search(
            {"models": models, "fitness": common | {"tasks": [task]}, "budget": 6, "workers": {"threads": 1}},
            run=tmp_path / task,
        )
        for task in ("programs", "zoo_target_gen")
    )
    assert [(row.name, row.score) for row in programs.held_out] == [(row.name, row.score) for row in texts.held_out]
    assert programs.search_score == texts.search_score
    assert (tmp_path / "programs" / "best.yaml").is_file()


def test_refused_unless_allowed_and_without_bubblewrap(write, monkeypatch):
    folder = write("human_eval", HUMAN_EVAL)
    with pytest.raises(
        TaskError, match=r"'programs' runs programs that the model writes: set fitness.allow_code: true"
    ):
        TaskSuite.load(config(folder, allow_code=False), seed=0)
    monkeypatch.setenv("PATH", "/nowhere")
    bubblewrap._command.cache_clear()
    with pytest.raises(TaskError, match="bubblewrap, which is not installed: install Debian's package bubblewrap"):
        TaskSuite.load(config(folder), seed=0)
    bubblewrap._command.cache_clear()


def test_what_cannot_run_in_the_sandbox_is_said_at_the_start(write):
    with pytest.raises(TaskError, match=r"solves runs programs .*No module named 'numpy'.*standard library only"):
        TaskSuite.load(config(write("own_means", "import numpy\n" + OWN_MEANS)), seed=0)


def test_a_sandbox_that_cannot_be_started(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    bubblewrap._command.cache_clear()
    with pytest.raises(TaskError, match=r"cannot be started here .bwrap: No permissions .*: allow user namespaces"):
        bubblewrap.check()
    bubblewrap._command.cache_clear()


def test_another_system_has_no_sandbox(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    bubblewrap._command.cache_clear()
    with pytest.raises(TaskError, match="a sandbox of Linux"):
        bubblewrap.check()
    bubblewrap._command.cache_clear()


def test_code_eval_counts_like_the_library():
    """pass@k of Chen et al., equation 1, from its definition: the share of draws with a right program."""
    use_sandboxed_code_eval()
    programs = [["def f(): return 1", "def f(): return 2", "def f(): raise ValueError"], ["x = 1", "1 / 0"]]
    rates, outcomes = CodeEval().compute(
        predictions=programs, references=["assert f() == 1", "assert x == 1"], k=[1, 2, 3]
    )
    assert rates == pytest.approx({"pass@1": (1 / 3 + 1 / 2) / 2, "pass@2": (2 / 3 + 1) / 2})
    assert math.comb(2, 2) / math.comb(3, 2) == pytest.approx(1 - 2 / 3)  # draws without the right one
    assert [told["passed"] for _, told in outcomes[0]] == [True, False, False]
    assert outcomes[1][1][1]["result"] == "failed: ZeroDivisionError: division by zero"


def test_the_sections_keys():
    assert not TasksConfig.model_validate(yaml.safe_load("{tasks: [a]}")).allow_code
