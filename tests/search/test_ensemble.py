"""The best candidates of a search vote on the held-out items: a row of the table, and no recipe."""

import json
import shutil

import numpy as np
import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.report.html import render
from evomerge.runs.result import ENSEMBLE_NOTE
from evomerge.runs.run import LogError, ReferenceScore, Run
from evomerge.search.ensemble import vote
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from fitness.results import Evaluation
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
    path = write(tmp_path, {"kind": "genetic", "ensemble": 3})
    losses = [f"fitness.tasks.0.metric={'answer_loss'}"]
    with pytest.raises(
        ConfigError, match=rf"strategy.ensemble: models cannot vote on task {TASKS[0]}, its metric"
    ) as no:
        Problem(load(path, losses))
    assert "leave ensemble out, or set the task's metric to acc or exact_match" in str(no.value)


@pytest.mark.slow
def test_an_ensemble_stands_in_the_table(tmp_path, monkeypatch):
    strategy = {"kind": "genetic", "preset": "genome_plus", "population": 4, "ensemble": 3}
    path, folder = write(tmp_path, strategy), tmp_path / "run"
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
