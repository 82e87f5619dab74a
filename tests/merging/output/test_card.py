"""Model cards: what they say, what they do not reveal, and that the hub can read them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.output import markdown
from evomerge.merging.output.card import model_card
from evomerge.merging.output.provenance import Provenance, TaskFacts
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.runs.result import Row
from tests.merging.output.test_writer import average

TASK = TaskFacts("arc", "acc,none", False, "1", "0", "20 of validation", "30 of test")
LOSS = TaskFacts("gsm", "answer_loss,none", True, "2", "5", "20 of train", "30 of test")
FOUND = Provenance(
    "row found of the table, the recipe that the search found.",
    "found",
    "The found recipe is better than every alternative.",
    [
        Row("found", "found", "arc", 0.5, 0.4, 0.6, 30, 0.01),
        Row("found", "found", "gsm", -1.25, -1.5, -1.0, 30, 0.01),
        Row("base", "source", "arc", 0.25, 0.2, 0.3, 30, 0.02),
        Row("base", "source", "gsm", -2.0, -2.5, -1.5, 30, 0.02),
    ],
    tasks=[TASK, LOSS],
    settings={"strategy": "cma_es", "seed": "7"},
    versions={"evomerge": "0.1.0", "torch": "2.0"},
)


@pytest.fixture
def copies(llama: Any, tmp_path: Path) -> tuple[Any, dict[str, Checkpoint], list[Path]]:
    """Return a recipe of copies of the models, whose cards a test may write, with the opened copies and their paths."""
    paths = [Path(shutil.copytree(path, tmp_path / Path(path).name)) for path in llama.references]
    recipe = average(llama).with_models(dict(zip(llama.references, map(str, paths), strict=True)))
    return recipe, {str(path): Checkpoint.open(str(path)) for path in paths}, paths


def front(card: str) -> dict[str, Any]:
    """Return the front matter, after the hub's own library has read it."""
    loaded = ModelCard(card)
    assert loaded.data.to_dict() == yaml.safe_load(card.split("---\n")[1])
    return loaded.data.to_dict()


def test_it_says_what_was_merged_and_not_where_it_lay(llama: Any) -> None:
    card = model_card(average(llama), llama.checkpoints)
    assert "# Merge of expert1, expert2, base" in card
    assert "merge_method: linear" in card
    assert str(Path(llama.base).parent) not in card
    assert "## Result" not in card and "model-index" not in front(card)
    assert front(card)["base_model_relation"] == "merge"
    assert front(card)["tags"] == ["merge", "mergekit", "evomerge"]


def test_folders_of_one_name_stay_apart(llama: Any) -> None:
    moved = {path: f"/models/{index}/final" for index, path in enumerate(llama.references)}
    checkpoints = {moved[path]: checkpoint for path, checkpoint in llama.checkpoints.items()}
    card = model_card(average(llama).with_models(moved), checkpoints)
    assert "# Merge of final, final-1, final-2" in card


def test_models_of_the_hub_are_the_base_models(llama: Any) -> None:
    moved = {path: f"org/model{index}@main" for index, path in enumerate(llama.references)}
    checkpoints = {moved[path]: checkpoint for path, checkpoint in llama.checkpoints.items()}
    card = model_card(average(llama).with_models(moved), checkpoints)
    assert sorted(front(card)["base_model"]) == ["org/model0", "org/model1", "org/model2"]
    assert "[org/model1@main](https://huggingface.co/org/model1)" in card


def test_scores_of_the_search_are_in_the_table_and_in_the_model_index(llama: Any) -> None:
    card = model_card(average(llama), llama.checkpoints, FOUND, name="mine")
    assert "**Verdict of the search:** The found recipe is better than every alternative." in card
    assert "| **found** (this model) | 0.500 (0.400 to 0.600, 30 items) | -1.250 (-1.500 to -1.000, 30 items) |" in card
    assert "| base | 0.250 (0.200 to 0.300, 30 items) | -2.000 (-2.500 to -1.500, 30 items) |" in card
    assert "| gsm | answer_loss,none (lower is better) | 2 | 5 | 20 of train | 30 of test |" in card
    assert "| seed | 7 |" in card and "Versions: evomerge 0.1.0, torch 2.0." in card
    (index,) = front(card)["model-index"]
    assert index["name"] == "mine"
    metrics = {result["dataset"]["name"]: result["metrics"][0] for result in index["results"]}
    assert metrics["arc"]["value"] == 0.5 and metrics["arc"]["type"] == "acc"
    assert metrics["gsm"]["value"] == 1.25, "a loss is published as a loss"
    assert "(95 % interval 1.000 to 1.500)" in metrics["gsm"]["name"]


def test_the_licence_is_that_on_which_all_sources_agree(copies: Any) -> None:
    recipe, checkpoints, paths = copies
    for path in paths:
        (path / "README.md").write_text("---\nlicense: mit\ndatasets: [org/data]\n---\n# A model\n")
    found = front(model_card(recipe, checkpoints))
    assert (found["license"], found["datasets"]) == ("mit", ["org/data"])
    (paths[1] / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    card = model_card(recipe, checkpoints)
    assert "license" not in front(card)
    assert "| expert1 | merged | apache-2.0 |" in card


def test_a_licence_of_its_own_keeps_its_name(copies: Any) -> None:
    recipe, checkpoints, paths = copies
    stated = "---\nlicense: other\nlicense_name: gemma\nlicense_link: {}\n---\n"
    for path in paths:
        (path / "README.md").write_text(stated.format("LICENSE"))
    found = front(model_card(recipe, checkpoints))
    assert (found["license"], found["license_name"]) == ("other", "gemma")
    assert "license_link" not in found, "a merge has no copy of the file"
    for path in paths:
        (path / "README.md").write_text(stated.format("https://ai.google.dev/gemma/terms"))
    assert front(model_card(recipe, checkpoints))["license_link"] == "https://ai.google.dev/gemma/terms"


def test_conflicting_licences_are_named(copies: Any) -> None:
    recipe, checkpoints, paths = copies
    for path, name in zip(paths, ("mit", "cc-by-nc-4.0", "mit"), strict=True):
        (path / "README.md").write_text(f"---\nlicense: {name}\n---\n")
    assert "non-commercial terms apply to the whole merge" in model_card(recipe, checkpoints)


# --- foreign texts ---

NASTY = "a | b\n\n# c `d` <script>alert(1)</script> [e](https://f) ![g](h) \x1b[31m \u202e **i** _j_ ~~~"


def test_foreign_names_change_nothing_around_them(llama: Any) -> None:
    rows = [Row(NASTY, "found", NASTY, 0.5, 0.4, 0.6, 30, 0.01)]
    task = TaskFacts(NASTY, "acc,none", False, "1", NASTY, NASTY, NASTY)
    nasty = Provenance(NASTY, NASTY, NASTY, rows, [NASTY], tasks=[task], settings={NASTY: NASTY}, versions={NASTY: "1"})
    card = model_card(average(llama), llama.checkpoints, nasty)
    front(card)
    body = card.split("---\n", 2)[2]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", body)
    assert not re.search(r"(?<!\\)<script", body) and not re.search(r"(?<!\\)!\\?\[g", body)
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# Merge of expert1, expert2, base",
        *("## Result", "## Sources", "## Search", "## Recipe", "## Use"),
    ]
    tables = re.findall(r"(?m)(?:^\|.*\n)+", body)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@given(st.text(max_size=40))
def test_any_text_stays_in_its_cell(value: str) -> None:
    head, _, row = markdown.table(["a", "b"], [[markdown.text(value), "x"]])
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == len(re.findall(r"\|", head))
    assert row.isprintable() or all(char.isprintable() or char.isspace() for char in row)
    assert "\n" not in row


@given(st.text(alphabet="`a\n", max_size=40))
def test_a_code_block_cannot_be_ended_from_inside(value: str) -> None:
    first, *inner, last = "\n".join(markdown.fenced(value, "")).split("\n")
    assert first == last and all(last not in line for line in inner)
