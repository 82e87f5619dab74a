"""Search files and recipes that want to run code, take the memory, or break the parser."""

import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)

DOCUMENTS = {
    "python object": "models: !!python/object/apply:os.system ['touch owned']\n",
    "python name": "merge_method: !!python/name:os.system\n",
    "python module": "!!python/module:antigravity\n",
    "billion laughs": LAUGHS,
    "merged laughs": "a: &a {k: v}\nb: &b {<<: [*a, *a]}\nc: {<<: [" + ", ".join(["*b"] * 50) + "]}\n",
    "endless alias": "a: &a [*a]\n",
    "nesting": "[" * 100_000,
    "nested mappings": "".join(f"{' ' * n}a:\n" for n in range(500)),
    "five megabytes": "models: {" + ", ".join(f"m{n}: x" for n in range(600_000)) + "}",
    "control characters": "models: \x00\x07\n",
    "number without end": "seed: " + "9" * 5000 + "\n",
    "not a number": "models: .nan\n",
    "key of a list": "? [a, b]\n: c\n",
    "two documents": "models: {}\n---\nmodels: {}\n",
    "nothing": "",
    "a word": "models\n",
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_search_files(document, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(document)
    # several wrong keys are several lines; each is one of ours
    with pytest.raises(ConfigError, match=r"search\.yaml"):
        load(tmp_path / "search.yaml")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_recipes(document, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(document)
    with refused(RecipeError, "recipe.yaml"):
        mergekit_yaml.read(tmp_path / "recipe.yaml")
    assert not (tmp_path / "owned").exists()


def test_bytes_that_are_no_text(tmp_path, refused):
    for name in ("recipe.yaml", "search.yaml"):
        (tmp_path / name).write_bytes(bytes(range(128, 256)) * 10)
    with refused(RecipeError, "recipe.yaml"):
        mergekit_yaml.read(tmp_path / "recipe.yaml")
    with refused(ConfigError, "search.yaml"):
        load(tmp_path / "search.yaml")
