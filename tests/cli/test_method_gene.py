"""A search over merge methods, as a user drives it: from a search file to the merged checkpoint."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import yaml

from search_spaces.recipes import mergekit_yaml

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
METHODS = ["task_arithmetic", "ties", "dare_ties", "slerp", "breadcrumbs"]
VARIANTS = [*METHODS[:3], "slerp", "slerp", "slerp", "breadcrumbs"]  # slerp once for each pair of experts


def test_the_method_is_searched_like_any_gene(evomerge, tmp_path, tasks):
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
        "space": {
            "method": METHODS,
            "layers_per_group": 6,
            "weight": {"low": 0.0, "high": 1.5, "std": 0.3},
            "start": "metagpt",
            "fixed": {"*.weight[final]": 0.5},
        },
        "strategy": {"kind": "random"},
        "fitness": {
            "tasks": [{"task": "zoo_target_mc"}],
            "include_path": [str(tasks)],
            "subset": {"items": 8},
            "held_out": "test",
        },
        "budget": {"evaluations": 16},
        "workers": {"threads": 1},
        "seed": 3,
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
    plan = json.loads(evomerge("plan", "search.yaml", "--json", cwd=tmp_path))
    assert plan["genes"][0] == {"name": "method", "low": 0.0, "high": 7.0, "start": 0.5}
    assert not [gene["name"] for gene in plan["genes"] if "weight[final]" in gene["name"]]

    assert "held-out" in evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    assert set(methods_asked(tmp_path / "run" / "events.sqlite")) == set(METHODS)
    assert mergekit_yaml.read(tmp_path / "run" / "best.yaml").merge_method in METHODS
    evomerge("merge", "run/best.yaml", "merged", cwd=tmp_path)
    assert (tmp_path / "merged" / "model.safetensors").exists()


def methods_asked(events):
    """Return the merge method of every candidate in a run's log, after checking that none of them failed."""
    with sqlite3.connect(events) as log:
        told = [json.loads(data) for (data,) in log.execute("SELECT data FROM events WHERE kind = 'told'")]
        asked = [blob for (blob,) in log.execute("SELECT genotype FROM events WHERE kind = 'asked'")]
    assert {event["evaluation"]["status"] for event in told} == {"ok"}
    return [VARIANTS[int(np.frombuffer(genotype)[0])] for genotype in asked]
