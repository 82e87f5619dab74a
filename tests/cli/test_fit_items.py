"""`evomerge fit-items`: from logs, a matrix or a run to a file that searches use; one line for bad input."""

import json
import sys

import numpy as np
import pytest
import yaml

from evomerge.cli.main import main
from evomerge.runs.run import OF_HELD_OUT_ITEMS, Asked, ReferenceScore, Run, Told
from evomerge.strategies import Candidate
from fitness.estimation.item_banks import ItemBanks
from fitness.results import Evaluation

SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}
ITEMS = tuple(f"quiz/validation/{index}" for index in range(12))


def answers(models=24, seed=0):
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=(models, 1)) - rng.normal(size=len(ITEMS))
    return (rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float)


@pytest.fixture
def fit_items(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command and returns what it printed and what it wrote."""

    def fit_items(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evomerge", "fit-items", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code in (0, None), printed.err
        return printed.out, ItemBanks.load(tmp_path / "item_bank.npz")

    return fit_items


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    def refuse(*arguments, words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evomerge", "fit-items", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        message = capsys.readouterr().err.strip()
        assert stop.value.code == 2 and len(message.splitlines()) == 1, message
        for word in words:
            assert word in message

    return refuse


def test_from_sample_logs(tmp_path, fit_items):
    for model, row in enumerate(answers()):
        folder = tmp_path / "logs" / f"org__model-{model:02}"
        folder.mkdir(parents=True)
        lines = [
            {"doc_id": at, "filter": "none", "metrics": ["acc"], "acc": score} for at, score in enumerate(row.tolist())
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "samples_quiz_2024-06-01T10-20-30.123456.jsonl").write_text(text)
    printed, found = fit_items("logs", "--split", "validation")
    assert "quiz" in printed and "wrote item_bank.npz" in printed
    used = yaml.safe_load(printed.rpartition("use it with\n")[2])
    assert used["fitness"]["subset"] == {"items": 30, "item_bank": str(tmp_path / "item_bank.npz")}
    banks, others = found.of("quiz", ITEMS)
    assert [bank.dimensions for bank in banks] == [1, 2]
    np.testing.assert_array_equal(others, answers())


def test_from_a_matrix_with_full_names(tmp_path, fit_items):
    names = {"models": np.array([f"m{j}" for j in range(24)]), "items": np.array(ITEMS)}
    np.savez(tmp_path / "m.npz", responses=answers(), **names)
    printed, found = fit_items("m.npz", "--json", "--dimensions", 1)
    (task,) = json.loads(printed)["tasks"]
    assert (task["task"], task["models"], task["items"], task["dimensions"]) == ("quiz", 24, 12, [1])
    difficulty = found.banks["quiz"][0].difficulty
    assert np.corrcoef(difficulty, answers().mean(0))[0, 1] < -0.9


def test_from_a_table_with_gaps(tmp_path, fit_items):
    rows = ["model," + ",".join(str(at) for at in range(12))]
    rows += [f"m{j}," + ",".join(f"{score:g}" for score in row) for j, row in enumerate(answers())]
    rows[1] = "m0,," + ",".join(["1"] * 11)
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    _, found = fit_items("m.csv", "--task", "quiz", "--split", "validation")
    assert np.isnan(found.responses["quiz"].scores[0, 0])
    assert found.of("quiz", ITEMS)[0][0].items == ITEMS


def test_from_a_run(tmp_path, fit_items):
    genotype = np.zeros(2)
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as run:
        for identity, row in enumerate(answers()):
            run.record(Asked(Candidate(identity, genotype, "sample", 0), f"recipe-{identity}"))
            half = ITEMS[identity % 2 :: 2]
            scores = row[identity % 2 :: 2].astype(np.float32)
            run.record(Told(identity, Evaluation("ok", (0.5,), (0.1,), half, scores, SECONDS), False, 0.0))
        whole = Evaluation("ok", (0.5,), (0.1,), ITEMS, np.ones(12, np.float32), SECONDS)
        run.record(ReferenceScore("parent", "expert", whole))
        held_out = Evaluation("ok", (1.0,), (0.1,), ("quiz/test/0",), np.ones(1, np.float32), SECONDS)
        for purpose in OF_HELD_OUT_ITEMS:
            run.record(ReferenceScore(purpose, "expert", held_out))
        run.record(Asked(Candidate(24, genotype, "gradient", 1), "recipe-24"))
        losses = Evaluation("step", (-3.0,), (0.1,), ITEMS, np.full(12, -3.0, np.float32), SECONDS, gradient=(0.0, 0.0))
        run.record(Told(24, losses, False, 0.0))
    _, found = fit_items("run")
    responses = found.responses["quiz"]
    assert len(responses.models) == 25 and set(responses.items) == set(ITEMS)
    assert np.isnan(responses.scores).sum() == 24 * 6


def test_bad_input_is_refused_in_one_line(tmp_path, refuse):
    refuse("nothing", words=["nothing: no such file or folder", "sample logs, a matrix, or a run"])
    (tmp_path / "empty").mkdir()
    refuse("empty", words=["no samples_*.jsonl found", "--log_samples"])
    (tmp_path / "bad.csv").write_text("model,a,b\nm,1,x\n")
    refuse("bad.csv", words=["bad.csv, model 'm', item 'b': 'x' is not a number", "give 0 to 1"])
    (tmp_path / "short.csv").write_text("model,a,b\nm,1\n")
    refuse("short.csv", words=["model 'm': 2 cells, the header has 3"])
    (tmp_path / "unnamed.csv").write_text("model,a,b\nm,1,0\nn,0,1\n")
    refuse("unnamed.csv", words=["item 'a' does not name its task", "--task"])
    (tmp_path / "one.csv").write_text("model,a,b\nm,1,0\n")
    refuse("one.csv", "--task", "t", words=["1 model: fitting items needs at least 2"])
    (tmp_path / "far.csv").write_text("model,a,b\nm,1,7\nn,0,1\n")
    refuse("far.csv", "--task", "t", words=["far.csv: scores are in [0, 7]"])
    (tmp_path / "bad.npz").write_bytes(b"torn")
    refuse("bad.npz", words=["bad.npz: not a responses matrix"])
    refuse("unnamed.csv", "--task", "t", "-o", "x.json", words=["name a file that ends in .npz"])
    refuse("unnamed.csv", "--task", "t", "-o", "no/where.npz", words=["the folder no does not exist; create it"])
    refuse("unnamed.csv", "one.csv", words=["one.csv: a run or a matrix must be the only source"])
