"""The command line as a user drives it, in this process: a new one takes seconds to import torch and lm-eval."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.zoo import ZOO, few_items


@pytest.fixture
def refuse_search(tmp_path, refuse, write):
    """Return a check that a search with changes to its config is refused before it makes a run."""

    def refuse_search(*words, **changes):
        write(tmp_path, **changes)
        refuse("search", "search.yaml", "--run", "run", words=words)
        assert not (tmp_path / "run").exists()

    return refuse_search


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """Return a folder with two of the zoo's tasks, of 100 items per split."""
    return few_items(tmp_path_factory.mktemp("tasks"), ("zoo_target_gen", "zoo_target_mc"), 100)


@pytest.fixture(scope="session")
def config(tasks):
    """Return a function for a small search of the zoo as a mapping, with changes."""

    def config(**changes):
        return {
            "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
            "space": {"layers_per_group": 3, "weight": {"low": 0.0, "high": 1.5, "start": 0.8}},
            "strategy": {"kind": "cma_es", "population": 5, "score_mean_every": 2},
            "fitness": {
                "tasks": [{"task": "zoo_target_gen"}],
                "include_path": [str(tasks)],
                "subset": {"items": 16},
                "held_out": "test",
            },
            "budget": {"evaluations": 12},
            "workers": {"threads": 1},
        } | changes

    return config


@pytest.fixture(scope="session")
def write(config):
    """Return a function that writes a small search file, with changes, into a folder."""

    def write(folder, **changes):
        path = folder / "search.yaml"
        path.write_text(yaml.safe_dump(config(**changes), sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory, evomerge, write):
    """Return a folder in which `evomerge search` has run, with its output; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder)
    output = evomerge("search", "search.yaml", "--run", "run", cwd=folder)
    return folder, output


@pytest.fixture
def broken_expert(tmp_path):
    """Return a function for models whose expert is a copy of the zoo's that a function of its folder has altered."""

    def broken_expert(change):
        folder = tmp_path / "expert"
        shutil.copytree(ZOO / "models" / "ops", folder)
        change(folder)
        return {"base": str(ZOO / "models" / "base"), "ops": str(folder)}

    return broken_expert


@pytest.fixture
def alter_weights():
    """Return a function that makes a change of a model's tensors into one of its folder."""

    def alter_weights(change):
        def alter(folder):
            file = folder / "model.safetensors"
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})

        return alter

    return alter_weights


@pytest.fixture
def result_of():
    """Return a function that reads a run's result."""
    return lambda run: json.loads((run / "result.json").read_text(encoding="utf-8"))
