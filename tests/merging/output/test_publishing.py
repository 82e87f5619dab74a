"""What of a merged folder goes to the hub, and what keeps a folder from going there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.merging.output.publishing import PublishError, Upload, checked_upload
from evomerge.merging.output.writer import write_checkpoint
from search_spaces.recipes import mergekit_yaml
from tests.merging.output.test_card import FOUND
from tests.merging.output.test_writer import average

HUB = {"base": "me/base", "expert1": "me/one", "expert2": "none"}
TOKEN = "hf_" + "A1b2" * 9


@pytest.fixture(scope="module")
def merged(families: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a merged folder, for reading only."""
    llama = families("llama")
    return write_checkpoint(llama.engine(), average(llama), tmp_path_factory.mktemp("merged") / "out", provenance=FOUND)


@pytest.fixture
def folder(merged: Path, tmp_path: Path) -> Path:
    """Return a copy of the merged folder."""
    return Path(shutil.copytree(merged, tmp_path / "out"))


def text_of(upload: Upload, name: str) -> str:
    (file,) = [file for file in upload.files if file.name == name]
    return file.source.read_text(encoding="utf-8") if file.text is None else file.text


def test_models_are_named_as_others_find_them(merged: Path, llama: Any, tmp_path: Path) -> None:
    upload = checked_upload(merged, HUB)
    for name in ("recipe.yaml", "mergekit_config.yml", "README.md"):
        assert str(Path(llama.base).parent) not in text_of(upload, name)
    recipe = mergekit_yaml.parse(text_of(upload, "recipe.yaml"))
    assert set(recipe.models) == {"me/base", "me/one", "expert2"}
    assert upload.card.data.base_model == ["me/one", "me/base"]
    assert text_of(upload, "recipe.yaml").strip() in text_of(upload, "README.md")
    assert len(upload.card.data.eval_results) == 2
    upload.write_to(tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == sorted(place.name for place in merged.iterdir())
    assert (tmp_path / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert (tmp_path / "recipe.yaml").read_text() == text_of(upload, "recipe.yaml")


def test_every_local_model_must_have_a_public_name(merged: Path, llama: Any) -> None:
    with pytest.raises(PublishError, match=r"--base-model expert2=OWNER/NAME \(or NAME=none"):
        checked_upload(merged, {"base": "me/base", llama.references[1]: "me/one"})
    with pytest.raises(PublishError, match="--base-model experts: the recipe names expert1, expert2, base"):
        checked_upload(merged, HUB | {"experts": "me/one"})
    with pytest.raises(PublishError, match="'a/b/c' is not a repository"):
        checked_upload(merged, HUB | {"expert1": "a/b/c"})


def test_hidden_files_stay_here(folder: Path) -> None:
    (folder / ".env").write_text("TOKEN=x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    upload = checked_upload(folder, HUB)
    assert upload.left_out == (".env", ".git/config")
    assert not any(file.name.startswith(".") for file in upload.files)


def truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def card(change: Callable[[str], str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "README.md"
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

    return write


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "recipe.yaml").unlink(), "has no recipe.yaml; name a folder that `evomerge merge`"),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so the merge is not complete"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors, so the merge is not"),
        (truncated, "model.safetensors is damaged"),
        (sharded, "has no model-00001-of-00002.safetensors"),
        (put("recipe.yaml", "merge_method: magic"), "magic"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link is a link"),
        (card(lambda text: "# Title\n"), "has no front matter"),
        (card(lambda text: text.replace("tags:\n- merge", "tags: [merge")), "the hub cannot read its front matter"),
        (card(lambda text: text.replace("  results:", "  result:")), "the hub cannot read its front matter"),
        (
            card(lambda text: text.replace("tags:\n", "base_model: /home/me/base\ntags:\n")),
            "base_model: '/home/me/base' is not a repository of the hub",
        ),
        (
            put("notes.txt", f"one\nlogin {TOKEN}\n"),
            "notes.txt:2: contains what looks like a token of the hub (hf_A1b",
        ),
        (put("train.py", "key = 'sk-ant-" + "a1" * 20 + "'"), "a key of OpenAI or Anthropic"),
        (put("tokenizer_config.json", '{"name_or_path": "/home/me/base"}'), "name_or_path is /home/me/base, a path of"),
        (
            put("config.json", '{"a": [{"b": "C:\\\\models\\\\base"}]}'),
            "a.b is C:\\models\\base, a path of",
        ),
        (put("generation_config.json", '{"x": "~/models/base"}'), "x is ~/models/base, a path of this machine"),
        (card(lambda text: text + "\nTrained in /home/me/runs/7.\n"), "has /home/me/runs/7"),
    ],
)
def test_what_is_refused(folder: Path, change: Callable[[Path], object], words: str) -> None:
    change(folder)
    with pytest.raises(PublishError) as caught:
        checked_upload(folder, HUB)
    assert words in str(caught.value)


def test_what_looks_like_a_path_and_is_none(folder: Path) -> None:
    """Tokens of a vocabulary, end-of-text marks, addresses and fractions."""
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"/home/me": 1}, "merges": ["/usr /lib", "/usr/lib"]}}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "/ or {{ a }}/{{ b }}"}')
    (folder / "notes.md").write_text("See https://huggingface.co/data/tmp/x, and/or 3/4 of km/h; a/b/c.\n")
    checked_upload(folder, HUB)


def test_all_mistakes_come_at_once(folder: Path) -> None:
    put("a.txt", TOKEN)(folder)
    put("b.json", '{"x": "/home/me/b"}')(folder)
    with pytest.raises(PublishError) as caught:
        checked_upload(folder, HUB)
    assert len(str(caught.value).splitlines()) == 2


def test_a_path_that_equals_a_model_is_replaced(folder: Path, llama: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | {"_name_or_path": llama.base}
    (folder / "config.json").write_text(json.dumps(values))
    assert json.loads(text_of(checked_upload(folder, HUB), "config.json"))["_name_or_path"] == "me/base"


def test_the_text_of_a_calibration_is_named_without_its_folder(llama: Any, tmp_path: Path) -> None:
    from evomerge.merging.output.card import model_card, public_recipe
    from search_spaces.recipes.mergekit.documents import Document

    text = (
        f"merge_method: linear\nbase_model: {llama.base}\nmodels: [{{model: {llama.base}}}, "
        f"{{model: {llama.references[1]}}}]\nevomerge: {{calibration_text: {tmp_path}/text.txt}}\n"
    )
    recipe = mergekit_yaml.parse(text.replace("merge_method: linear", "merge_method: fisher"))
    assert yaml.safe_load(public_recipe([Document(None, recipe)], {}))["evomerge"]["calibration_text"] == "text.txt"
    assert str(tmp_path) not in model_card(recipe, llama.checkpoints)
