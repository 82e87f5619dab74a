"""A run as tables: every value is the log's, and files give back what was written."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from evomerge.runs import frames, held_out
from evomerge.runs.environment import Environment, GeneRecord
from evomerge.runs.held_out import HeldOut
from evomerge.runs.run import Asked, ReferenceScore, Run, Told
from evomerge.strategies import Candidate
from fitness.items import ItemText
from fitness.results import Evaluation
from fitness.tasks.identity import ItemsIdentity, TaskIdentity
from search_spaces.spaces.genes import Choice, Integer, Real

GENES = (
    Real("weight, ops", -0.5, 1.5, 0.5),
    Integer("layers", 1, 8, 4),
    Choice("method", ("ties", "NA", "线性"), "ties"),
)
SECONDS = {"merge": 0.1, "score": 1 / 3, "wait": 0.0}
ITEMS = ("a/validation/0", "a/validation/1", "b/test/7")
SCORES = np.array([1.0, 0.1, 0.25], np.float32)


@pytest.fixture
def run(tmp_path):
    """Return a run with candidates of every status, a source and a row of the final table."""
    side = {"documents": "d0 d1", "answers": "a0 a1", "prompts": "p0 p1", "digest": "x"}
    task = TaskIdentity(
        settings={},
        code={},
        search=ItemsIdentity(ids="validation/0 validation/1", keys="k0 k1", **side),
        held_out=ItemsIdentity(ids="test/0 test/1", keys="k2 k3", **side),
        shown="",
    )
    environment = Environment(items={"a": task}, genes=tuple(map(GeneRecord.of, GENES)))
    texts = {
        "a/test/0": ItemText('“quoted”, "new"\nline', ("right", "x,y"), ("right", "wrong")),
        "a/test/1": ItemText("NA"),
    }
    points = [[0.1 + 0.2, 3.0, 0.5], [-0.5, 8.0, 1.5], [1.5, 1.0, 2.5], [0.0, 2.0, 0.5], [0.0, 2.0, 0.5]]
    outcomes = [
        Evaluation("ok", (0.5, 0.25), (0.1, 0.2), ITEMS, SCORES, SECONDS, shares=(0.5, 0.5), violation=0.5),
        Evaluation.failed('out of memory, "really"\n日本', SECONDS),
        Evaluation("stopped", (1 / 3,), (float("nan"),), ITEMS[:1], SCORES[:1], SECONDS),
        Evaluation("step", (-2.5,), (0.1,), ITEMS[:1], -SCORES[:1], SECONDS, gradient=(1.0, 2.0, 3.0)),
    ]
    final = Evaluation("ok", (0.5,), (0.1,), ("a/test/0", "a/test/1"), SCORES[:2], SECONDS, answers=("1", ""))
    with Run.create(tmp_path / "run", "seed: 0\n", environment) as run:
        for number, point in enumerate(points):
            candidate = Candidate(number, np.array(point), "sample", number // 2, tuple(range(number)))
            run.record(Asked(candidate, f"hash {number}"))
        for number, evaluation in enumerate(outcomes):
            run.record(Told(number, evaluation, number == 3, 1.5 * number))
        run.record(ReferenceScore("held_out", "hash 0", final))
        run.write(held_out.FILE, HeldOut({"found": ("hash 0",), "one, two": ("hash 0", "hash 1")}, texts).to_json())
        yield run


def test_a_candidate_is_one_row(run):
    frame = run.candidates
    assert frame.candidate.tolist() == [0, 1, 2, 3, 4]
    assert frame.status.tolist() == ["ok", "failed", "stopped", "step", "open"]
    assert frame.parents.tolist() == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert frame["gene.weight, ops"].tolist() == [0.1 + 0.2, -0.5, 1.5, 0.0, 0.0]
    assert frame["gene.layers"].tolist() == [3, 8, 1, 2, 2]
    assert frame["gene.method"].tolist() == ["ties", "NA", "线性", "ties", "ties"]
    first = frame.iloc[0]
    assert (first.fitness, first.score, first.violation) == (-1e6 - 0.5, 0.375, 0.5)
    assert (first["objective.1"], first["objective.2"], first["seconds.score"]) == (0.5, 0.25, 1 / 3)
    assert first["task.a"] == pytest.approx(0.55) and first["task.b"] == 0.25
    assert frame.error.tolist()[1] == 'out of memory, "really"\n日本' and frame.error.isna().tolist() == [1, 0, 1, 1, 1]
    assert frame["items"].isna().tolist() == [0, 0, 0, 0, 1]
    assert (frame.told_at >= frame.asked_at).tolist() == [1, 1, 1, 1, 0]


def test_items_are_those_of_both_sides_with_texts_where_they_are_known(run):
    frame = run.items
    assert frame.item.tolist() == ["a/validation/0", "a/validation/1", "a/test/0", "a/test/1"]
    assert frame.side.tolist() == ["search"] * 2 + ["held_out"] * 2
    assert frame.question_hash.tolist() == ["k0", "k1", "k2", "k3"]
    assert frame.question.isna().tolist() == [True, True, False, False]
    assert frame.targets.tolist() == [[], [], ["right", "x,y"], []]


def test_answers_are_those_of_the_events(run):
    frame = run.answers
    assert frame[frame.purpose == "step"].candidate.unique().tolist() == [3]  # losses, and no scores
    assert frame.item.tolist() == [*ITEMS, ITEMS[0], ITEMS[0], "a/test/0", "a/test/1"]
    assert frame.score.tolist() == [*SCORES.tolist(), 1.0, -1.0, *SCORES[:2].tolist()]
    assert frame.candidate.fillna(-1).tolist() == [0, 0, 0, 2, 3, -1, -1]
    assert frame.rows.tolist()[-1] == ["found", "one, two"]
    assert frame.answer.tolist()[5] == "1" and frame.answer.isna().sum() == 6


def test_every_column_is_documented_and_has_its_type(run):
    for name in frames.NAMES:
        frame, known = getattr(run, name), frames.COLUMNS[name]
        for column in frame.columns:
            group = (
                column if column in known else next(key for key in known if column.startswith(key) and key[-1] == ".")
            )
            expected = known[group][0]
            if expected != "gene":
                assert frame[column].dtype == ("object" if expected == "list" else expected), column
        assert {key for key in known if key[-1] != "."} <= set(frame.columns)


@pytest.mark.parametrize("name", frames.NAMES)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_gives_back_the_frame(run, tmp_path, name, kind):
    frame, file = getattr(run, name), tmp_path / f"table.{kind}"
    frames.write(frame, file, kind)
    assert_frame_equal(frames.read(file, name), frame, check_exact=True)


@pytest.mark.parametrize("name", frames.NAMES)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_run_has_the_same_columns(tmp_path, name, kind):
    with Run.create(tmp_path / "run", "seed: 0\n", Environment()) as run:
        frame, file = getattr(run, name), tmp_path / f"table.{kind}"
    assert list(frame.columns) == [key for key in frames.COLUMNS[name] if key[-1] != "."] and frame.empty
    frames.write(frame, file, kind)
    assert_frame_equal(frames.read(file, name), frame, check_exact=True)


texts = st.text(st.characters(exclude_characters="\r\0"), max_size=12)


@given(st.lists(st.tuples(texts, st.lists(texts, max_size=2), st.floats(width=32, allow_nan=False)), max_size=4))
@settings(max_examples=40, deadline=None)
def test_texts_lists_and_numbers_of_all_kinds_survive_a_file(tmp_path_factory, rows):
    items = tuple(f"t/test/{number}" for number in range(len(rows)))
    scores = np.array([score for *_, score in rows], np.float32)
    answers = tuple(text for text, *_ in rows)
    event = ReferenceScore("held_out", "h", Evaluation("ok", (), (), items, scores, SECONDS, answers=answers))
    named = HeldOut({name: ("h",) for _, names, _ in rows for name in names}, {})
    frame = frames.answers([(0.0, event)], named)
    assert frame.answer.fillna("").tolist() == list(answers)
    for kind in ("csv", "parquet"):
        file = tmp_path_factory.mktemp("round") / f"table.{kind}"
        frames.write(frame, file, kind)
        assert_frame_equal(frames.read(str(file), "answers"), frame, check_exact=True)


def test_what_no_file_can_hold_becomes_a_question_mark(tmp_path):
    scores = np.ones(1, np.float32)
    evaluation = Evaluation("ok", (), (), ("t/test/0",), scores, SECONDS, answers=("a\ud800\0b",))
    frame = frames.answers([(0.0, ReferenceScore("held_out", "h", evaluation))], None)
    assert frame.answer.tolist() == ["a??b"]


def test_a_run_without_names_of_genes_has_their_numbers(tmp_path):
    with Run.create(tmp_path / "run", "seed: 0\n", Environment()) as run:
        run.record(Asked(Candidate(0, np.array([0.25, 2.5]), "sample", 0), "hash"))
        assert run.candidates.filter(like="gene.").to_dict("list") == {"gene.0": [0.25], "gene.1": [2.5]}


def test_a_csv_file_is_plain_for_other_programs(run, tmp_path):
    frames.write(run.candidates, tmp_path / "table.csv", "csv")
    plain = pd.read_csv(tmp_path / "table.csv")
    assert [json.loads(value) for value in plain.parents] == run.candidates.parents.tolist()
