"""What a row of the final table has answered, item by item."""

import json
import shutil

import pytest

from evomerge.runs.held_out import FILE, HeldOut
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run
from fitness.items import ItemText


@pytest.fixture
def shown(finished, evomerge):
    """Return a function that runs the verb and reads its JSON."""
    folder, _ = finished
    return lambda *arguments: json.loads(evomerge("answers", "run", *arguments, "--json", cwd=folder))


@pytest.fixture(scope="module")
def history(finished):
    with Run.read(finished[0] / "run") as run:
        return RunHistory(run.events())


def test_every_held_out_item_comes_with_its_texts(finished, shown, history, tasks):
    lines = [json.loads(line) for line in (tasks / "zoo_target_gen.jsonl").read_text().splitlines()]
    documents = [line for line in lines if line["split"] == "test"]
    found = shown()
    best = HeldOut.read(finished[0] / "run").rows["found"][0]
    evaluation = history.reference_scores["held_out", best]
    assert [one["item"] for one in found] == list(evaluation.items)
    assert [one["scores"]["found"] for one in found] == evaluation.scores.tolist()
    assert [one["answers"]["found"] or "" for one in found] == list(evaluation.answers)
    assert len({one["answers"]["found"] for one in found}) > 1
    for one, document in zip(found, documents, strict=True):
        assert one["targets"] and one["question"]
        assert one["targets"][0].strip() in json.dumps(document, ensure_ascii=False)


def test_a_right_answer_scores_one(shown):
    for one in shown():
        assert (one["answers"]["found"] in one["targets"]) == (one["scores"]["found"] == 1)


def test_wrong_gained_and_lost_are_what_the_scores_say(shown):
    of = {row: {one["item"]: one["scores"][row] for one in shown("--row", row)} for row in ("found", "ops", "base")}
    assert [one["item"] for one in shown("--wrong")] == [item for item, score in of["found"].items() if score < 1]
    gained = [one["item"] for one in shown("--gained", "base")]
    lost = [one["item"] for one in shown("--lost", "ops")]
    assert gained == [item for item, score in of["found"].items() if score > of["base"][item]]
    assert lost == [item for item, score in of["found"].items() if score < of["ops"][item]]
    both = shown("--gained", "base", "--lost", "base")
    assert [one["item"] for one in both] == [item for item, score in of["found"].items() if score != of["base"][item]]
    assert all(set(one["answers"]) == {"found", "base"} for one in both)
    assert len(shown("--limit", 2)) == 2


def test_the_text_fits_eighty_columns_and_says_how_many(finished, evomerge):
    folder, _ = finished
    text = evomerge("answers", "run", "--row", "base", "--wrong", "--gained", "ops", cwd=folder)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("base: ")
    differing = evomerge("answers", "run", "--gained", "base", "--lost", "base", cwd=folder)
    assert differing.count("of base") == differing.count("answer") > 0
    assert "more; --limit" in evomerge("answers", "run", "--limit", 1, cwd=folder)


def test_texts_of_others_are_harmless(finished, tmp_path, evomerge):
    """Control characters, escape sequences and wide characters in questions, choices and targets."""
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "run", run)
    held_out = HeldOut.read(run)
    nasty = ItemText("\x1b[2J日本語" * 60 + "\nsecond line", ("\u202eright",), ("\x07a", "b"))
    items = dict.fromkeys(held_out.items, nasty)
    (run / FILE).write_text(HeldOut(held_out.rows, items).to_json(), encoding="utf-8")
    text = evomerge("answers", "run", "--limit", 3, cwd=tmp_path)
    assert not set("\x1b\x07\u202e") & set(text)
    assert "\\x1b[2J" in text.replace("\n", "").replace(" ", "")
    assert "second line" in text and "\\u202eright" in text


def test_what_cannot_be_shown_is_refused(finished, tmp_path, refuse):
    folder, _ = finished
    refuse("answers", folder / "run", "--row", "nobody", words=["nobody: the final table has no row", "found", "ops"])
    refuse("answers", folder / "run", "--lost", "nobody", words=["nobody"])
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / FILE).unlink()
    refuse("answers", run, words=["no answers to held-out items yet", "resume"])
    (run / FILE).write_text("{", encoding="utf-8")
    refuse("answers", run, words=[FILE, "cannot be read"], code=1)


def test_the_file_reads_back_what_was_written(tmp_path):
    written = HeldOut({"a\nb": ("1", "2")}, {"t/test/0": ItemText("q\u2028", ("x",), ("x", "y"))})
    (tmp_path / FILE).write_text(written.to_json(), encoding="utf-8")
    read = HeldOut.read(tmp_path)
    assert {name: tuple(hashes) for name, hashes in read.rows.items()} == dict(written.rows)
    assert read.items == written.items
