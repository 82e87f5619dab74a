"""Own functions: found, known before they run, called, and checked."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fitness.config import FitnessConfig
from fitness.functions.evaluator import FunctionError, FunctionEvaluator
from fitness.functions.loading import FitnessFunction, load_function, reference_to
from fitness.functions.suite import FunctionSuite
from fitness.objectives import means
from fitness.results import Estimate, TaskError
from fitness.scoring.shortage import no_memory
from fitness.tasks.code import TaskCode
from fitness.tasks.identity import difference

MODEL = torch.nn.Linear(2, 1)


def config(**keys: Any) -> FitnessConfig:
    return FitnessConfig.model_validate({"function": "score.py:score"} | keys)


def evaluator(function: Callable[..., Any], items: Any = None, **keys: Any) -> FunctionEvaluator:
    given = {} if items is None else {"function_items": "X"}
    suite = FunctionSuite(FitnessFunction.of(function, items), config(**given, **keys), seed=0)
    return FunctionEvaluator(suite, "tokenizer")


def ids(subject: FunctionEvaluator) -> list[str]:
    return list(subject.suite.pool.subset("all", 0))


# --- the search file ---


def test_the_function_is_its_only_score_unless_tasks_are_named() -> None:
    assert [task.task for task in config().tasks] == ["score"]
    assert config().kind == "python"
    named = config(tasks=["a", {"task": "b", "weight": -1}])
    assert [task.task for task in named.tasks] == ["a", "b"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "lm_eval", "tasks": ["arc"]}, "function belongs to kind: python"),
        ({"function": None, "kind": "python", "tasks": ["a"]}, "function is missing"),
        ({"num_fewshot": 3}, "num_fewshot belongs to lm-eval's tasks, and kind is python; remove num_fewshot"),
        ({"include_path": ["x"]}, "include_path belongs to lm-eval's tasks"),
        ({"engine": "vllm"}, "engine belongs to lm-eval's tasks"),
        ({"tasks": [{"task": "a", "metric": "acc"}]}, "a is a score of your function and has no metric"),
        ({"subset": 20}, "subset needs items, and the function scores a model as a whole"),
        ({"racing": {}}, "racing needs items"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**keys)


# --- finding ---


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., FitnessConfig]:
    """Return a function that writes Python files and returns the config that names one."""

    def write(text: str, items: str | None = None, **others: str) -> FitnessConfig:
        (tmp_path / "score.py").write_text(text, encoding="utf-8")
        for name, content in others.items():
            (tmp_path / f"{name}.py").write_text(content, encoding="utf-8")
        place = {} if items is None else {"function_items": items}
        return config(function=f"{tmp_path}/score.py:score", **place)

    return write


SCORE = "def score(model, tokenizer, items=None):\n    return 0.5 if items is None else [0.5] * len(items)\n"


def test_a_file_with_what_it_imports_and_its_items(write: Callable[..., FitnessConfig], tmp_path: Path) -> None:
    text = f"from helper_of_score import ITEMS\n{SCORE}"
    found = load_function(write(text, "ITEMS", helper_of_score="ITEMS = ['a', {'b': 1}]\n"))
    assert found.items == {"validation": ("a", {"b": 1})}
    assert set(found.code) == {"score.py", "helper_of_score.py"}
    assert found.name == "score.py:score" and str(tmp_path) not in "".join(found.code)


def test_items_of_other_places(write: Callable[..., FitnessConfig], tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('\ufeff"a\u2028\x85"\r\n\n["b", 2]\n', encoding="utf-8")
    assert load_function(write(SCORE, f"{tmp_path}/items.jsonl")).items == {"validation": ("a\u2028\x85", ["b", 2])}
    splits = "def all():\n    return {'validation': ['a'], 'test': ['b', 'c']}\n"
    found = load_function(write(SCORE, f"{tmp_path}/other.py:all", other=splits))
    assert found.items == {"validation": ("a",), "test": ("b", "c")} and "other.py" in found.code


def test_an_installed_module() -> None:
    found = load_function(config(function="operator:add"))
    assert found.call(1, 2) == 3
    assert found.code


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("score", "write FILE.py:NAME or module:NAME"),
        ("nowhere.py:score", "nowhere.py is not a Python file"),
        ("no_such_module:score", "there is no module no_such_module"),
        ("__main__:score", "__main__ was given by a Python program; continue there with evomerge.resume"),
        ("x.py:f.<locals>.g", "was given by a Python program"),
        ("math:pi", "pi in math is not a function"),
        ("math:pie", "fitness.function: math has no pie; correct the name"),
    ],
)
def test_what_is_not_found(function: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_function(config(function=function))


@pytest.mark.parametrize(
    ("text", "items", "words"),
    [
        ("raise OSError('no disk')", None, "score.py cannot be imported .OSError: no disk"),
        ("def score(model): pass", None, r"score.py:score: it must take \(model, tokenizer\)"),
        ("def score(model, tokenizer): pass\nI = [1]", "I", r"it must take \(model, tokenizer, items\)"),
        (f"{SCORE}I = 'abc'", "I", "fitness.function_items: give a list"),
        (f"{SCORE}I = [1]", "J", r"fitness.function_items: \S+score.py has no J; correct the name"),
        (f"{SCORE}I = []", "I", "0 of split validation; give 1 to"),
        (f"{SCORE}I = [1, object()]", "I", "item 1 of split validation is not made of texts, numbers"),
        (f"{SCORE}I = {{'dev': [1]}}", "I", "'dev' is not a split"),
        (f"{SCORE}I = {{'test': [1]}}", "I", "there is no split validation"),
        (f"{SCORE}def I(): return 1 / 0", "I", "the function that returns them raised ZeroDivisionError"),
    ],
)
def test_what_cannot_be_used(write: Callable[..., FitnessConfig], text: str, items: str | None, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        load_function(write(text, items))
    assert len(str(caught.value).splitlines()) == 1


# --- code ---


def test_nothing_runs_before_its_code_is_accepted(write: Callable[..., FitnessConfig], tmp_path: Path) -> None:
    seen: list[TaskCode] = []

    def refuse(code: TaskCode) -> None:
        seen.append(code)
        raise PermissionError

    marker = tmp_path / "ran"
    text = f"open({str(marker)!r}, 'w')\n{SCORE}"
    for _ in range(2):
        with pytest.raises(PermissionError):
            load_function(write(text), refuse)
    with pytest.raises(PermissionError):
        load_function(write(text + "# changed\n"), refuse)
    assert not marker.exists()
    assert seen[0].places == (f"{tmp_path}/score.py",)
    assert seen[0].digest == seen[1].digest != seen[2].digest


def test_changed_code_and_changed_items_are_named(write: Callable[..., FitnessConfig]) -> None:
    def identity(text: str) -> Any:
        file = write(text, "I")
        sys.modules.pop(next((name for name in sys.modules if name.endswith("_score")), ""), None)
        return FunctionSuite(load_function(file), file, seed=0).identity()

    first = identity(f"{SCORE}I = ['a', 'b', 'c', 'd', 'e', 'f']\n")
    assert difference(first, identity(f"{SCORE}I = ['a', 'b', 'c', 'd', 'e', 'f']\n")) is None
    changed = difference(first, identity(f"{SCORE}I = ['a', 'b', 'c', 'd', 'e', 'g']\n"))
    assert changed == "task score: its code score.py has changed"
    of_others = FunctionSuite(
        FitnessFunction.of(lambda m, t, i: i, list("abcdef")), config(function_items="X"), 0
    ).identity()
    more = FunctionSuite(
        FitnessFunction.of(lambda m, t, i: i, list("abcdefg")), config(function_items="X"), 0
    ).identity()
    assert "items have changed" in str(difference(of_others, more))


def test_a_function_without_a_file_is_known_by_what_it_does() -> None:
    def made(text: str) -> Callable[..., Any]:
        space: dict[str, Any] = {}
        exec(text, space)
        return space["f"]

    text = "def f(model, tokenizer):\n    return {}"
    codes = [FitnessFunction.of(made(text.format(value))).code for value in ("1.0", "1.0", "2.0")]
    assert codes[0] == codes[1] != codes[2]
    assert reference_to(made(text)).endswith(":f")


# --- scores ---


def test_a_model_as_a_whole_has_one_exact_score() -> None:
    subject = evaluator(lambda model, tokenizer: 12.5)
    assert ids(subject) == ["score/model/0"] == list(subject.suite.pool.held_out_ids())
    scored = subject.score(MODEL, ids(subject))
    assert means(scored) == {"score": Estimate(12.5, 0.0)}


def test_lower_is_better_with_a_negative_weight() -> None:
    subject = evaluator(lambda model, tokenizer: {"a": 3, "b": 4}, tasks=["a", {"task": "b", "weight": -2}])
    assert subject.score(MODEL, ids(subject)).scores.tolist() == [3, -4]
    assert subject.suite.weights == {"a": 1, "b": 2}


def test_the_function_is_called_once_with_the_items_that_are_asked() -> None:
    calls: list[Any] = []

    def score(model: Any, tokenizer: Any, items: list[int]) -> dict[str, Any]:
        calls.append((tokenizer, items))
        return {"a": items, "b": np.array(items) / 10}

    subject = evaluator(score, list(range(40)), tasks=["a", "b"])
    asked = ["b/validation/3", "a/validation/7", "a/validation/3"]
    known = set(subject.suite.pool.subset("all", 0)) | set(subject.suite.pool.held_out_ids())
    assert set(asked) <= known
    assert subject.score(MODEL, asked).scores.tolist() == pytest.approx([0.3, 7, 3])
    assert calls == [("tokenizer", [3, 7])]


def test_search_and_held_out_items_are_apart() -> None:
    pool = evaluator(lambda m, t, i: i, list(range(100)), tasks=["a", "b"]).suite.pool
    sides = [{item.index for item in side["a"]} for side in (pool.search, pool.held_out)]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 100
    assert sides[0] == {item.index for item in pool.search["b"]}
    by_split = {"validation": [1, 2, 3], "test": [4, 5]}
    pool = evaluator(lambda m, t, i: i, by_split, held_out="test").suite.pool
    assert (len(pool.search["score"]), len(pool.held_out["score"])) == (3, 2)
    with pytest.raises(TaskError, match="there is no split train"):
        evaluator(lambda m, t, i: i, by_split, held_out="train")
    with pytest.raises(TaskError, match="validation is the split that is searched"):
        evaluator(lambda m, t, i: i, by_split, held_out="validation")


def raising(model: Any, tokenizer: Any) -> float:
    raise KeyError("lost\nkey")


def ending(model: Any, tokenizer: Any) -> float:
    sys.exit("nothing to do")


def training(model: Any, tokenizer: Any) -> float:
    for values in model.parameters():
        values.add_(1.0)
    return 1.0


def halving(model: Any, tokenizer: Any) -> float:
    model.half()  # exchanges the weights' memory, which counts no write
    return 1.0


def wrapping(model: Any, tokenizer: Any) -> float:
    model.adapter = torch.nn.Linear(2, 1)
    return 1.0


@pytest.mark.parametrize(
    ("function", "items", "tasks", "words"),
    [
        (raising, None, ["s"], r"raising raised KeyError: 'lost"),
        (ending, None, ["s"], "ending raised SystemExit: nothing to do"),
        (
            training,
            None,
            ["s"],
            r"training changed the model \(its weights, .*which may change later scores",
        ),
        (halving, None, ["s"], "halving changed the model"),
        (wrapping, None, ["s"], "wrapping changed the model"),
        (lambda m, t: None, None, ["s"], "returned NoneType for s; return a number"),
        (lambda m, t: "0.5x", None, ["s"], "returned str for s; return a number"),
        (lambda m, t: [1.0, 2.0], None, ["s"], "returned 2 numbers for s and has no items"),
        (lambda m, t: float("nan"), None, ["s"], "returned NaN for s; return finite numbers"),
        (lambda m, t: 1.0, None, ["a", "b"], "returned float; return a mapping with a, b"),
        (lambda m, t: {"a": 1.0}, None, ["a", "b"], "differs from fitness.tasks in b"),
        (lambda m, t: {"a": 1.0, "c": 2.0}, None, ["a"], "differs from fitness.tasks in c"),
        (lambda m, t, i: [0.5], range(9), ["s"], r"returned 1 scores for s, of \d items; return one per item"),
        (lambda m, t, i: 0.5, range(9), ["s"], r"returned 1 scores for s, of \d items"),
        (lambda m, t, i: [0.1, float("inf")] * 9, range(9), ["s"], "returned 18 scores"),
        (lambda m, t, i: [float("inf") for _ in i], range(9), ["s"], "returned infinity for s at position 0"),
        (lambda m, t: 1e300, None, ["s"], "returned infinity for s; return finite numbers"),
    ],
)
def test_what_is_no_score(function: Any, items: Any, tasks: list[str], words: str) -> None:
    subject = evaluator(function, None if items is None else list(items), tasks=tasks)
    with pytest.raises(FunctionError, match=words) as caught:
        subject.score(copy.deepcopy(MODEL), ids(subject))
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_function_does_to_its_items_and_folder_is_undone(tmp_path: Path) -> None:
    """Paths of the run are relative, and the next candidate gets the same items."""

    def score(model: Any, tokenizer: Any, items: list[dict[str, float]]) -> list[float]:
        os.chdir(tmp_path)
        found = [item.pop("value") for item in items]
        items.clear()
        return found

    subject, before = evaluator(score, [{"value": 0.1 * at} for at in range(9)]), Path.cwd()
    first, second = (subject.score(MODEL, ids(subject)).scores.tolist() for _ in range(2))
    assert first == second and Path.cwd() == before


def test_the_function_has_no_gradients_and_may_follow_the_batch_size() -> None:
    seen: list[Any] = []

    def score(model: Any, tokenizer: Any, *, batch_size: int) -> float:
        seen.append((torch.is_grad_enabled(), batch_size))
        return 1.0

    subject = evaluator(score)
    subject.use_batch_size(3)
    subject.score(MODEL, ids(subject))
    assert seen == [(False, 3)]


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def on_the_host() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)  # more than any system has addresses for


@pytest.mark.parametrize("fail", [on_a_gpu, on_the_host])
def test_a_shortage_of_memory_is_not_hidden(fail: Callable[[], None]) -> None:
    def score(model: Any, tokenizer: Any) -> float:
        fail()
        return 1.0

    subject = evaluator(score)
    with pytest.raises(RuntimeError) as found:
        subject.score(MODEL, ids(subject))
    assert no_memory(found.value) and not isinstance(found.value, FunctionError)
