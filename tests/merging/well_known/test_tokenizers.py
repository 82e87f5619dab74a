"""A well-known tokenizer's answers are transformers' own, and all others are left to it."""

import json
import shutil
from pathlib import Path

import pytest

from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from evomerge.merging.well_known.tokenizers import end_token_id, have_one_vocabulary

ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / "base" / name, tmp_path / name)
    return tmp_path


def change(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stated | values))


def test_the_end_token_is_transformers_own(folder):
    tokenizer = TokenizerFolder("model", folder).load()
    assert end_token_id(folder) == tokenizer.eos_token_id is not None
    change(folder, "tokenizer_config.json", eos_token={"content": tokenizer.eos_token, "lstrip": False})
    assert end_token_id(folder) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"eos_token": None}),
        ("tokenizer_config.json", {"eos_token": "no such token"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        ("special_tokens_map.json", {"eos_token": "another"}),
    ],
)
def test_unexpected_settings_are_left_to_transformers(folder, name, values):
    change(folder, name, **values)
    assert end_token_id(folder) is None


def test_a_damaged_tokenizer_is_refused(folder):
    assert TokenizerFolder("model", folder).check() is None
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-100])
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        TokenizerFolder("model", folder).check()


def test_vocabularies_are_alike_whatever_the_template(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=lambda *_: ["other"])
    ours, theirs = TokenizerFolder("a", folder), TokenizerFolder("b", other)
    change(other, "tokenizer_config.json", chat_template="{{ messages }}")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert have_one_vocabulary(ours.files, theirs.files)
    change(other, "tokenizer_config.json", add_bos_token=True)
    assert not have_one_vocabulary(ours.files, theirs.files)
    assert ours.has_vocabulary_of(theirs)  # transformers finds the tokens equal
