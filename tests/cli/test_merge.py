"""`evomerge merge`: what it does before torch is there, and what it says of a recipe."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evomerge.cli.merge import merge, uncollected
from search_spaces.recipes.errors import RecipeError
from tests.merging.sources.test_vocabulary import BASE, save


def test_nothing_is_collected_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_later_merge_of_the_same_process_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_recipe_is_read_without_torch_and_pydantic() -> None:
    program = (
        "import sys, evomerge.cli.main, evomerge.cli.merge; from evomerge.plugins import load_plugins; load_plugins(); "
        "print({'torch', 'pydantic', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_a_recipe_names_twice_or_nowhere_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, expert = (save(tmp_path / name, BASE, seed=seed) for seed, name in enumerate(("base", "expert")))
    (tmp_path / "link").symlink_to(base)
    models = [
        {"model": str(tmp_path / "link"), "parameters": {"weight": 1.0}},
        {"model": str(expert), "parameters": {"weight": [{"filter": "self_atn", "value": 0.1}, {"value": 0.5}]}},
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    merge(file, tmp_path / "out", "cpu")
    said = capsys.readouterr().err
    assert f"{tmp_path}/link and {base} are the same folder, and so one model" in said
    assert "no tensor's name contains the filter 'self_atn', so its value is not used" in said
    recipe = {"merge_method": "linear", "models": [{"model": str(base), "parameters": {"weight": 0.0}}]}
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=f"^{file}: linear: the weights sum to 0.*; set normalize: false"):
        merge(file, tmp_path / "zero", "cpu")
