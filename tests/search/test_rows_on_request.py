"""Rows of the final table on request: the vote of several models, which is no recipe, and the greedy soup."""

import json
import shutil

import numpy as np
import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.report.html import render
from evomerge.runs.result import ENSEMBLE_NOTE, Entry
from evomerge.runs.run import LogError, ReferenceScore, Run
from evomerge.search.problem import Problem
from evomerge.search.rows_on_request import greedy_soup, vote
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe
from tests.cli.test_every_strategy import TASKS, run, write
from tests.logs import reseal

ITEMS = ("t/test/0", "t/test/1", "t/test/2", "t/test/3")


def member(answers, right):
    scores = np.array([answer == wanted for answer, wanted in zip(answers, right, strict=True)], np.float32)
    return Evaluation("ok", (float(scores.mean()),), (0.1,), ITEMS, scores, answers=tuple(answers))


def test_most_votes_decide_and_the_better_member_breaks_ties():
    right = "abcd"
    members = [member(answers, right) for answers in ("axxd", "ybyy", "zbcz", "zwcw")]
    # a, y, z, z: z has most, wrong; x, b, b, w: b; x, y, c, c: c; d, y, z, w: one each, so the first member's d.
    assert vote(members).scores.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert vote(members[:1]).scores.tolist() == members[0].scores.tolist()
    # x x b b: the tie is the first member's, wrong
    assert vote([member(answers, right) for answers in ("xxxx", "bbbb", "xxxx", "bbbb")]).scores.tolist() == [0.0] * 4
    assert vote(members).items == ITEMS


def test_the_soup_keeps_what_does_not_lower_the_score():
    """Best first: `c` alone has 0.6, with `a` 0.6, with `b` less, with the base more."""
    models = {"base": "/m/base", "a": "/m/a", "b": "/m/b", "c": "/m/c"}
    own = {"base": 0.1, "a": 0.5, "b": 0.4, "c": 0.6}
    tried = []

    def score(entry):
        if entry.kind == "source":
            return own[entry.name]
        weights = {
            source.model: dict(source.parameters)["weight"][0].value for source in entry.recipe.slices[0].sources
        }
        tried.append({model[3:] for model, weight in weights.items() if weight > 0})
        assert all(weight in (0, 1 / len(tried[-1])) for weight in weights.values())
        return 0.6 - 0.3 * ("b" in tried[-1]) + 0.1 * ("base" in tried[-1])

    sources = [Entry(name, "source", source_recipe(path, 2)) for name, path in models.items()]
    soup = greedy_soup(models, 2, "float32", sources, score)
    assert tried == [{"c", "a"}, {"c", "a", "b"}, {"c", "a", "base"}]
    assert (soup.name, soup.kind) == ("greedy soup", "greedy_soup") and score(soup) == 0.7
    alone = greedy_soup(models, 2, "float32", sources, lambda entry: own.get(entry.name, 0.0))
    assert alone.recipe == sources[3].recipe
    merged = greedy_soup(models, 2, "float32", sources, score, vocabulary="pad")
    assert merged.recipe.tokenizer_source == "pad" and merged.recipe.models == soup.recipe.models


def test_answers_are_kept_in_the_log(tmp_path):
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as log:
        log.record(ReferenceScore("vote", "hash", member("axxd", "abcd")))
        log.record(ReferenceScore("held_out", "hash", Evaluation("ok", (1.0,), (0.1,), ITEMS, np.ones(4, np.float32))))
        first, second = log.events()
        stored = log._db.execute("SELECT data FROM events ORDER BY seq").fetchall()
    assert first.evaluation.answers == ("a", "x", "x", "d")
    assert second.evaluation.answers == ()
    assert "answers" not in stored[1][0]


@pytest.mark.parametrize("answers", [["a"], [1, 2, 3, 4], ["a"] * 5])
def test_answers_of_a_strangers_log_are_checked(tmp_path, answers):
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as log:
        log.record(ReferenceScore("vote", "hash", member("axxd", "abcd")))
        ((data,),) = log._db.execute("SELECT data FROM events").fetchall()
        changed = json.loads(data)
        changed["evaluation"]["answers"] = answers
        log._db.execute("UPDATE events SET data = ?", (json.dumps(changed),))
        reseal(log._db)
        with pytest.raises(LogError, match="answers"):
            list(log.events())


def test_numbers_cannot_be_voted_on(tmp_path):
    """Refused before anything is scored."""
    path = write(tmp_path, {"kind": "least_change"}, table={"ensemble": 3})
    losses = ["fitness.tasks.0.metric=answer_loss", "fitness.subset.rotate=false"]
    with pytest.raises(ConfigError, match=rf"table.ensemble: models cannot vote on task {TASKS[0]}, its metric") as no:
        Problem(load(path, losses))
    assert "leave ensemble out, or set the task's metric to acc or exact_match" in str(no.value)
    with pytest.raises(ConfigError, match=rf"least_change: answers cannot be compared on task {TASKS[0]}.*kind: grid"):
        Problem(load(path, [*losses, "table.ensemble=null"]))


@pytest.mark.slow
def test_an_ensemble_stands_in_the_table(tmp_path, monkeypatch):
    strategy = {"kind": "genetic", "preset": "genome_plus", "population": 4}
    path, folder = write(tmp_path, strategy, table={"ensemble": 3, "greedy_soup": True}), tmp_path / "run"
    code, printed = run(monkeypatch, "search", path, "--run", folder)
    assert code == 0, printed
    assert "ensemble of 3 models" in printed and ENSEMBLE_NOTE in printed
    whole = json.loads((folder / "result.json").read_text())
    rows = {row["task"]: row for row in whole["held_out"] if row["kind"] == "ensemble"}
    assert set(rows) == {*TASKS, "all"}

    with Run.read(folder) as log:
        history = RunHistory(log.events())
    best = [history.asked[identity].recipe for identity in history.ranking()[:3]]
    members = [history.reference_scores["vote", recipe] for recipe in best]
    problem = Problem(load(folder / "config.yaml"))
    worker = local_worker(problem).worker
    for number, each in enumerate(members):  # each answers as it does when asked alone
        recipe = problem.space.decode(history.asked[history.ranking()[number]].candidate.genotype)
        alone = worker.evaluate(Request(recipe, tuple(problem.held_out_items), want_answers=True))
        assert (alone.answers, alone.scores.tolist()) == (each.answers, each.scores.tolist())
    expected = vote(members)
    for task in TASKS:
        scores = [s for item, s in zip(expected.items, expected.scores, strict=True) if item.startswith(task)]
        assert rows[task]["score"] == pytest.approx(np.mean(scores))
        assert rows[task]["name"] == "ensemble of 3 models"

    soup = {row["task"]: row["score"] for row in whole["held_out"] if row["kind"] == "greedy_soup"}
    assert set(soup) == {*TASKS, "all"} and "greedy soup" in {one["name"] for one in whole["verdict"]["comparisons"]}

    assert "ensemble of 3 models" in render(folder) and ENSEMBLE_NOTE in render(folder)
    code, printed = run(monkeypatch, "status", folder)
    assert code == 0 and "ensemble of 3 models" in printed and ENSEMBLE_NOTE in printed

    # Stopped after one member has voted, and resumed: the same table.
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "result.json").unlink()
    with Run.open(again) as log:
        log._db.execute(
            "DELETE FROM events WHERE seq > "
            "(SELECT min(seq) FROM events WHERE json_extract(data, '$.purpose') = 'vote')"
        )
        reseal(log._db)
    code, printed = run(monkeypatch, "resume", again)
    assert code == 0, printed
    repeated = json.loads((again / "result.json").read_text())
    assert repeated["held_out"] == whole["held_out"] and repeated["best"] == whole["best"]
