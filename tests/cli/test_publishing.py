"""From a run to the hub: `export`, `merge` with the run's numbers on the card, and `push`."""

import json
import re
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from evomerge.cli import push
from tests import command

NAMES = [word for name in ("base", "ops", "ja", "eo") for word in ("--base-model", f"{name}=me/{name}")]


@pytest.fixture(scope="module")
def merged(finished, evomerge, tmp_path_factory):
    """Return the checkpoint of the run's recommended recipe, with what `merge` has printed; for reading only."""
    folder = tmp_path_factory.mktemp("published")
    evomerge("export", finished[0] / "run", "-o", "found.yaml", cwd=folder)
    return folder / "merged", evomerge("merge", "found.yaml", "merged", cwd=folder)


@pytest.fixture
def third(finished, evomerge, tmp_path):
    """Return the file of a recipe that the final table does not have."""
    evomerge("export", finished[0] / "run", "--rank", 3, "-o", "third.yaml", cwd=tmp_path)
    return tmp_path / "third.yaml"


def test_the_card_has_the_numbers_of_the_run_that_the_recipe_names(merged, finished, result_of):
    result = result_of(finished[0] / "run")
    card = (merged[0] / "README.md").read_text(encoding="utf-8")
    (index,) = ModelCard(card).data.to_dict()["model-index"]
    (row,) = [row for row in result["held_out"] if row["name"] == result["verdict"]["recommended"]]
    assert index["results"][0]["metrics"][0]["value"] == pytest.approx(row["score"], abs=1e-6)
    assert f"| **{row['name']}** (this model) | {row['score']:.3f}" in card
    assert "Verdict of the search" in card and "| seed | 0 |" in card
    assert result["verdict"]["sentence"].split(" on the held-out")[0] in card
    assert f"convert_hf_to_gguf.py {merged[0]} --outtype auto --outfile {merged[0]}.gguf" in merged[1]
    assert "evomerge push merged OWNER/NAME --dry-run" in merged[1]


def test_a_run_that_is_not_there_is_named_and_another_place_can_be_given(third, finished, tmp_path, evomerge):
    text = third.read_text(encoding="utf-8")
    moved = re.sub("(?m)^# run: .*", "# run: /nowhere", text)
    assert moved != text
    third.write_text(moved, encoding="utf-8")
    _, _, err = command.run("merge", "third.yaml", "nowhere", cwd=tmp_path)
    assert "the model card gets no scores: /nowhere is not a run directory" in err and "with --run" in err
    assert "## Result" not in (tmp_path / "nowhere" / "README.md").read_text(encoding="utf-8")
    evomerge("merge", "third.yaml", "third", "--run", finished[0] / "run", cwd=tmp_path)
    card = (tmp_path / "third" / "README.md").read_text(encoding="utf-8")
    assert "rank 3 of" in card and "biased upward" in card and "model-index" not in card


def test_another_recipe_does_not_get_the_numbers(third, finished, tmp_path, evomerge, refuse):
    text = re.sub(r"weight: [\d.]+", "weight: 0.123", third.read_text(encoding="utf-8"))
    third.write_text(text, encoding="utf-8")
    run = finished[0] / "run"
    refuse("merge", "third.yaml", "other", "--run", run, words=["--run", "has not scored this recipe"])
    _, _, err = command.run("merge", "third.yaml", "other", cwd=tmp_path)
    assert "has not scored this recipe" in err
    assert "## Result" not in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")


def test_a_recipe_that_is_not_trusted_does_not_choose_a_run(third, tmp_path, evomerge):
    folder = tmp_path / "models"
    folder.mkdir()
    from tests.zoo import ZOO

    _, _, err = command.run("merge", "third.yaml", "out", "--within", ZOO / "models", cwd=tmp_path)
    assert "scores" not in err
    assert "## Result" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# --- push ---


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub's client; return the calls it gets, with the files and their contents."""
    calls = []

    class Hub:
        def create_repo(self, repo_id, **options):
            calls.append(("create_repo", repo_id, options))
            return SimpleNamespace(repo_id=repo_id, __str__=lambda self: "x")

        def create_branch(self, repo_id, **options):
            calls.append(("create_branch", repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, **options):
            from pathlib import Path

            files = {place.name: place.read_bytes() for place in Path(folder_path).iterdir()}
            calls.append(("upload_folder", repo_id, options, files))

    monkeypatch.setattr(push, "HfApi", Hub)
    return calls


def test_a_dry_run_lists_the_files_and_needs_no_network(merged, hub, evomerge, tmp_path):
    printed = evomerge("push", merged[0], "me/merge", "--dry-run", "--private", *NAMES, cwd=tmp_path)
    assert not hub
    for place in merged[0].iterdir():
        assert place.name in printed
    assert "the model card is valid: 1 held-out score, base models me/" in printed
    assert "dry run: 8 files, 1.4 MB, would go to private me/merge" in printed
    listed = json.loads(evomerge("push", merged[0], "me/merge", "--dry-run", "--json", *NAMES, cwd=tmp_path))
    assert listed["files"]["model.safetensors"] == (merged[0] / "model.safetensors").stat().st_size
    assert listed["card"]["base_model_relation"] == "merge"


def test_everything_goes_to_the_hub_in_one_commit(merged, hub, evomerge, tmp_path):
    arguments = ("--private", "--revision", "v2", *NAMES)
    printed = evomerge("push", merged[0], "me/merge", *arguments, cwd=tmp_path)
    assert "pushed 8 files" in printed
    created, branch, uploaded = hub
    assert created[1:] == ("me/merge", {"private": True, "repo_type": "model", "exist_ok": True})
    assert branch[2]["branch"] == "v2"
    assert uploaded[2]["revision"] == "v2"
    files = uploaded[3]
    assert set(files) == {place.name for place in merged[0].iterdir()}
    assert files["model.safetensors"] == (merged[0] / "model.safetensors").read_bytes()
    assert b"me/ops" in files["recipe.yaml"] and str(merged[0].parent).encode() not in files["recipe.yaml"]
    assert "me/ops" in ModelCard(files["README.md"].decode()).data.base_model


def test_the_repository_stays_public_unless_asked(merged, hub, evomerge, tmp_path):
    evomerge("push", merged[0], "me/merge", *NAMES, cwd=tmp_path)
    assert hub[0][2]["private"] is None
    assert [call[0] for call in hub] == ["create_repo", "upload_folder"]


def refusal(status, kind=HfHubHTTPError, message=None):
    headers = {"X-Error-Message": message} if message else {}
    response = httpx.Response(status, headers=headers, request=httpx.Request("POST", "https://huggingface.co/api"))
    return kind(message or f"{status} for url", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal(401), ["me/merge: the hub does not let you write there (401)", "hf auth login"]),
        (refusal(403, RepositoryNotFoundError), ["(403)", "a token that can write"]),
        (refusal(429, message="Too many requests"), ["the hub refuses (", "Too many requests"]),
        (httpx.ConnectError("no route\nto host"), ["me/merge: cannot be uploaded (no route to host)"]),
        (OSError(28, "No space left on device"), ["No space left on device"]),
    ],
)
def test_what_the_hub_says_is_one_line(merged, hub, monkeypatch, refuse, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(push.HfApi, "upload_folder", fail)
    refuse("push", merged[0], "me/merge", *NAMES, words=words, code=1)


def test_offline_is_said(merged, refuse):
    refuse("push", merged[0], "me/merge", *NAMES, words=["HF_HUB_OFFLINE is set", "--dry-run"], code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("me/merge",), ["names models by folders of this machine", "--base-model ops=OWNER/NAME"]),
        (("me/mer ge", *NAMES), ["'me/mer ge' is not a repository of the hub; write OWNER/NAME"]),
        (("me/merge", "--base-model", "ops"), ["--base-model ops: write NAME=OWNER/NAME"]),
    ],
)
def test_wrong_requests_are_one_line(merged, hub, refuse, arguments, words):
    refuse("push", merged[0], *arguments, "--dry-run", words=words)
    assert not hub
