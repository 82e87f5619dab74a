"""Recipes that parse and ask for too much, or for what is not theirs."""

import sys

import pytest

from evomerge.cli.main import main
from evomerge.cli.merge import merge
from evomerge.cli.merging import open_recipe
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError

LINEAR = "merge_method: linear\nmodels:\n- {{model: {model}, parameters: {{weight: {weight}}}}}\n"


def sliced(start, end, count=1, model="./m"):
    part = f"- sources: [{{model: {model}, layer_range: [{start}, {end}]}}]\n"
    return "merge_method: passthrough\nslices:\n" + part * count


TOO_MUCH = {
    "a billion layers": sliced(0, 10**9),
    "layers beyond integers": sliced(0, 10**30),
    "negative layers": sliced(-(10**9), 4),
    "backward range": sliced(4, 0),
    "many slices": sliced(0, 1, count=5000),
    "a thousand sources": "merge_method: linear\nmodels:\n"
    + "".join(f"- {{model: ./m{n}, parameters: {{weight: 1}}}}\n" for n in range(1000)),
    "a gradient of a million": LINEAR.format(model="./m", weight="[" + "1," * 1_000_000 + "1]"),
    "an infinite weight": LINEAR.format(model="./m", weight=".inf"),
    "a weight that is no number": LINEAR.format(model="./m", weight=".nan"),
    "a weight of many digits": LINEAR.format(model="./m", weight="1" + "0" * 4000),
    "a method by path": "merge_method: ../../evil\nmodels: [{model: ./m}]\n",
    "a precision that is code": "merge_method: linear\ndtype: __import__('os')\n"
    "models: [{model: ./m, parameters: {weight: 1}}]\n",
}


@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=TOO_MUCH)
def test_asks_for_too_much(text, refused):
    with refused(RecipeError):
        mergekit_yaml.parse(text)


def test_more_layers_than_the_model_has(model, tmp_path, refused):
    (tmp_path / "recipe.yaml").write_text(sliced(0, 1000, model=model))
    with refused(RecipeError, "layer"):
        merge(tmp_path / "recipe.yaml", tmp_path / "out", "cpu")


@pytest.mark.parametrize("spelling", ["{}", "{}/../outside/model", "linked"])
def test_models_outside_of_the_folder(spelling, model, tmp_path, monkeypatch, refused):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").symlink_to(tmp_path)
    (tmp_path / "inside" / "linked").symlink_to(model)
    reference = tmp_path / "inside" / "linked" if spelling == "linked" else spelling.format(model)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LINEAR.format(model=reference, weight=1))
    with refused(RecipeError, "is outside", "--within"):
        open_recipe(recipe, within=tmp_path / "inside")
    assert open_recipe(recipe, within=tmp_path)[2].models


def test_the_calibration_text_is_confined_too(model, tmp_path, refused):
    text = tmp_path / "private.txt"
    text.write_text("not for others")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LINEAR.format(model=model, weight=1) + f"evomerge: {{calibration_text: {text}}}\n")
    with refused(RecipeError, "private.txt is outside", "--within"):
        open_recipe(recipe, within=model)


def test_the_command_confines_too(model, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LINEAR.format(model=model, weight=1))
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["evomerge", "merge", str(recipe), str(tmp_path / "out"), "--within", str(tmp_path / "inside")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "is outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
