"""`evomerge export`: the data of a run, as tables and as a study of Optuna."""

import json
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.cli.export import write_recipes
from evomerge.runs import frames
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from tests.merging.tiny import TINY
from tests.runs.test_optuna_study import load


def test_the_verb_writes_tables_and_studies_of_a_search(finished, tmp_path, evomerge, refuse):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    evomerge("export", "run", "--optuna", "study.db", cwd=tmp_path)
    study = load(tmp_path / "study.db", "sqlite")
    evomerge("export", "run", "--table", "candidates.parquet", cwd=tmp_path)
    frame = frames.read(tmp_path / "candidates.parquet", "candidates")
    assert [trial.value for trial in study.trials] == frame.score.tolist()
    genes = frame.filter(like="gene.")
    assert [list(trial.params.values()) for trial in study.trials] == genes.to_numpy().tolist()
    assert genes.shape[1] == len(json.loads((tmp_path / "run" / "environment.json").read_text())["genes"]) > 3
    refuse("export", tmp_path / "run", "--table", "x.xlsx", words=["--table x.xlsx", ".csv or .parquet"])
    refuse("export", tmp_path / "run", "--optuna", "x.json", words=["--optuna x.json", ".db or .journal"])
    refuse("export", tmp_path / "run", "--optuna", "x?.db", words=["--optuna x?.db", "in which ? is not a letter"])
    refuse("export", tmp_path / "run", "--table", tmp_path, words=["--table", ".csv"])


def test_recipes_are_exported_together_or_not_at_all(tmp_path):
    def recipe(method):
        models = [{"model": name, "parameters": {"weight": 1.0, "density": 0.5}} for name in ("a", "b")]
        named = {"merge_method": method, "base_model": "base", "models": models, "dtype": "float32"}
        return mergekit_yaml.build(named | {"evomerge": {"seed": 1}})

    pair = [(recipe("ties"), "the best", 1), (recipe("dare_ties"), "the second", 2)]
    folder = tmp_path / "front"
    with pytest.raises(RecipeError, match="mergekit cannot rebuild this recipe exactly: dare_ties masks"):
        write_recipes(tmp_path / "run", folder, "--pareto", pair, "{}", "mergekit", False)
    assert list(tmp_path.iterdir()) == []
    write_recipes(tmp_path / "run", folder, "--pareto", pair, "{}", "evomerge", False)
    assert sorted(file.name for file in folder.iterdir()) == ["1.yaml", "2.yaml", "index.json"]


def test_an_export_for_mergekit_says_what_mergekit_makes_of_the_models(tmp_path, capsys):
    model = LlamaForCausalLM(LlamaConfig(**TINY | {"num_hidden_layers": 1}, mlp_bias=True))
    model.save_pretrained(tmp_path / "model")
    models = [{"model": str(tmp_path / "model"), "parameters": {"weight": 1.0}}]
    recipe = mergekit_yaml.build({"merge_method": "linear", "models": models, "dtype": "float32"})
    given = [(recipe, "the best", 1)]
    with pytest.raises(RecipeError, match=r"mergekit 0.1.5 drops 3 tensors, such as model.layers.0.mlp"):
        write_recipes(tmp_path / "run", tmp_path / "front", "--pareto", given, "{}", "mergekit", False)
    write_recipes(tmp_path / "run", tmp_path / "front", "--pareto", given, "{}", "mergekit", True)
    assert "note: mergekit 0.1.5 drops 3 tensors" in capsys.readouterr().err
