"""`evomerge evaluate`: how models are asked, and several of them at once."""

import itertools
import json

import numpy as np
import pytest

from evomerge.cli.evaluate import Asking, comparisons
from evomerge.config.errors import ConfigError
from fitness.estimation.intervals import holm, paired_test, weighted_paired_test
from tests.zoo import ZOO, few_items

MODELS = [ZOO / "models" / name for name in ("base", "ops", "ja")]
TASKS = ("zoo_target_gen", "zoo_target_mc")


@pytest.fixture
def tasks(tmp_path):
    """Return a folder with the zoo's two tasks, for this test alone."""
    return few_items(tmp_path / "tasks", TASKS, 100)


@pytest.fixture
def scored(evomerge, tasks, tmp_path):
    """Return a function that evaluates models and reads the JSON."""

    def scored(*models, options=(), names=TASKS):
        arguments = ("--tasks", *names, "--include-path", tasks, "--json", *options)
        return json.loads(evomerge("evaluate", *models, *arguments, cwd=tmp_path))

    return scored


def test_several_are_scored_as_each_alone_and_compared_by_pairs(scored):
    together = scored(*MODELS)
    assert [one["model"] for one in together["models"]] == [str(model) for model in MODELS]
    alone = [scored(model) for model in MODELS]
    for one, same in zip(together["models"], alone, strict=True):
        assert one["scores"] == same["scores"]
        assert [row for row in one["tasks"] if row["task"] != "all"] == same["tasks"]
    scores = [
        {
            task: np.array([s for item, s in one["scores"].items() if item.startswith(task)], np.float32)
            for task in TASKS
        }
        for one in alone
    ]
    for task in (*TASKS, "all"):
        found = [row for row in together["comparisons"] if row["task"] == task]
        pairs = list(itertools.combinations(range(3), 2))
        assert [(row["first"], row["second"]) for row in found] == [(str(MODELS[a]), str(MODELS[b])) for a, b in pairs]
        if task == "all":
            tests = [weighted_paired_test([(scores[a][t], scores[b][t], 1.0) for t in TASKS]) for a, b in pairs]
        else:
            tests = [paired_test(scores[a][task], scores[b][task]) for a, b in pairs]
        assert [row["p_value"] for row in found] == pytest.approx(holm(tests))
        rows = [next(row for row in one["tasks"] if row["task"] == task) for one in together["models"]]
        differences = [rows[a]["score"] - rows[b]["score"] for a, b in pairs]
        assert [row["difference"] for row in found] == pytest.approx(differences, abs=1e-6)
        assert all(row["low"] <= row["score"] <= row["high"] for row in rows)


def test_the_table_has_a_row_for_each_model_and_a_test_for_each_pair(evomerge, tasks, finished):
    folder, _ = finished
    evomerge("export", "run", "-o", "best.yaml", cwd=folder)
    text = evomerge("evaluate", MODELS[0], "best.yaml", "--like", "run", "--limit", 20, cwd=folder)
    assert "paired tests" in text and "base - best.yaml" in text
    assert text.count("best.yaml") == 2 and "95 % interval" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_limit_keeps_the_first_items_of_each_task(scored):
    whole = scored(MODELS[1], options=["--limit", 1000])["scores"]
    assert scored(MODELS[1])["scores"] == whole
    for limit, count in ((7, 7), (0.1, 10), (0.101, 11)):
        few = scored(MODELS[1], options=["--limit", limit, "--batch-size", 3])["scores"]
        kept = [item for task in TASKS for item in [one for one in whole if one.startswith(task)][:count]]
        assert few == {item: whole[item] for item in kept}


def test_examples_change_what_is_asked(scored, tasks):
    """Of tasks that do not fix their number at 0, as in lm-eval."""
    for template in tasks.glob("*.template"):
        text = template.read_text(encoding="utf-8")
        assert "num_fewshot: 0\n" in text
        template.write_text(text.replace("num_fewshot: 0\n", "fewshot_split: validation\n"), encoding="utf-8")
    plain = scored(MODELS[1], options=["--limit", 60], names=TASKS[1:])["scores"]
    assert scored(MODELS[1], options=["--limit", 60, "--num-fewshot", 0], names=TASKS[1:])["scores"] == plain
    assert scored(MODELS[1], options=["--limit", 60, "--num-fewshot", 3], names=TASKS[1:])["scores"] != plain


@pytest.mark.slow
def test_scores_are_those_of_lm_eval_with_the_same_options(scored, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = scored(MODELS[1], options=["--limit", 12, "--num-fewshot", 2, "--batch-size", 4])["scores"]
    manager = TaskManager(include_path=str(tasks))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={MODELS[1]},dtype=float32",
        tasks=list(TASKS),
        task_manager=manager,
        num_fewshot=2,
        limit=12,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    for task in TASKS:
        metric = "exact_match" if task == "zoo_target_gen" else "acc"
        samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
        assert [score for item, score in found.items() if item.startswith(task)] == [s[metric] for s in samples]


def test_what_makes_no_sense_is_refused(refuse, finished, tasks):
    folder, _ = finished
    given = ("--tasks", TASKS[0], "--include-path", tasks)
    refuse("evaluate", MODELS[0], MODELS[0], *given, words=["named twice"])
    for limit in (0, -1, 1.5):
        refuse("evaluate", MODELS[0], *given, f"--limit={limit}", words=["--limit", "number of items"])
    like = ("--like", folder / "run")
    refuse("evaluate", MODELS[0], *like, "--num-fewshot", 1, words=["--num-fewshot", "the run decides"])
    refuse("evaluate", MODELS[0], *like, "--apply-chat-template", words=["--apply-chat-template", "the run decides"])
    refuse("evaluate", MODELS[0], *given, "--apply-chat-template", words=["--apply-chat-template", "has no chat"])


def test_a_limit_takes_items_of_every_task_in_their_order():
    items = ["a/test/0", "b/test/0", "a/test/1", "b/test/1", "b/test/2"]
    assert Asking(limit=1).first(items) == ("a/test/0", "b/test/0")
    assert Asking(limit=0.5).first(items) == ("a/test/0", "b/test/0", "b/test/1")
    assert Asking(limit=1.0).first(items) == ("a/test/0", "b/test/0")
    assert Asking().first(items) == tuple(items)
    with pytest.raises(ConfigError, match="--limit"):
        Asking(limit=float("nan")).first(items)


def test_equal_models_differ_in_nothing():
    scores = {"t": np.array([1.0, 0.0, 1.0], np.float32)}
    (row,) = comparisons({"a": scores, "b": scores}, {"t": 2.0})
    assert (row["difference"], row["p_value"]) == (0.0, 1.0)
