"""Every strategy, and every space, searches the zoo from a config, through the command line, to the end; and resumes.

The first of them runs the installed command in a process of its own; the others call its entry point in this one,
since starting Python with torch takes as long as the search.
"""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from evomerge.cli.main import main
from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.search.problem import Problem
from evomerge.strategies import STRATEGIES as REGISTERED
from evomerge.testing.planted import PlantedSpace
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.registry import SPACES as REGISTERED_SPACES
from tests.zoo import ZOO, few_items

TASKS = ("zoo_ops_en", "zoo_short_en")
BUDGET = 8

STRATEGIES = {
    "auto": {"kind": "auto"},
    "cma_es": {"kind": "cma_es", "population": 4, "score_mean_every": 1},
    "cma_es with bipop": {"kind": "cma_es", "population": 4, "restarts": "bipop"},
    "cma_es, adapted": {"kind": "cma_es", "population": 4, "learning_rate": "adapted"},
    "eda": {"kind": "eda", "population": 4},
    "catcma": {"kind": "catcma", "population": 4},
    "m2n2": {"kind": "m2n2", "archive": 3, "mutation": 1.0},
    "genetic": {"kind": "genetic"},
    "map_elites": {"kind": "map_elites"},
    "cycleqd": {"kind": "cycleqd", "warm_up": 2},
    "cma_me": {"kind": "cma_me", "population": 4, "emitters": 1},
    "map": {"kind": "map", "points": 10, "evaluations": 100},
    "nsga2": {"kind": "nsga2", "population": 4},
    "nsga3": {"kind": "nsga3", "population": 4},
    "nevergrad": {"kind": "nevergrad:TwoPointsDE"},
    "optuna": {"kind": "optuna:TPE"},
    "random": {"kind": "random"},
    "gradient": {"kind": "gradient", "items": 4, "steps": 4, "then": {"kind": "random"}},
    "greedy": {"kind": "greedy", "samples": 8, "stop": 1.0},
    "grid": {"kind": "grid"},
    "m2n2 over mixtures": {"kind": "m2n2", "archive": 3},
    "eda over layer orders": {"kind": "eda", "population": 4},
    "catcma over methods": {"kind": "catcma", "population": 4},
    "eda over fewer layers": {"kind": "eda", "population": 4},
    "ppo": {"kind": "ppo", "population": 4},
    "genome_plus with a vote": {"kind": "genetic", "preset": "genome_plus", "population": 4},
    "least_change": {"kind": "least_change"},
    "evo_merging": {
        "kind": "evo_merging",
        "evaluations": 4,
        "first": {"kind": "cma_es", "population": 4},
        "second": {"kind": "cma_es", "population": 4},
    },
    "staged": {"kind": "staged", "evaluations": 4, "first": {"kind": "random"}, "second": {"kind": "random"}},
}
SPACES = {
    "m2n2 over mixtures": {"kind": "mixture", "chunks": 5},
    "eda over layer orders": {"kind": "data_flow", "repeats": 1},
    "eda over fewer layers": {"kind": "tailoring", "anchor": "ops"},
    "ppo": {"kind": "layer_actions", "merges": ["task_arithmetic"], "anchor": "task_arithmetic"},
    "catcma over methods": {"kind": "layer_coefficients", "method": ["task_arithmetic", "ties"], "layers_per_group": 6},
    "staged": {"kind": "two_stage", "parameters": {"layers_per_group": 6}, "flow": {"repeats": 1, "order": "free"}},
    "least_change": {"kind": "layer_coefficients", "method": "task_arithmetic", "groups": "model"},
    "evo_merging": {"kind": "layer_coefficients", "method": "breadcrumbs", "groups": "model", "fixed": {"gamma": 0.0}},
}
"""Spaces other than the default."""
VOTING = {"genome_plus with a vote": "last_population", "cma_es": "last_population", "m2n2": "last_population"}
"""Whose models vote: a population, a last generation, and an archive."""


def write(folder, strategy, **changes):
    """Write a search file of seconds: three genes, six items per task."""
    several = REGISTERED[strategy["kind"].partition(":")[0]].objectives == "several"
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "space": {"kind": "layer_coefficients", "layers_per_group": 6},
        "strategy": strategy,
        "fitness": {
            "tasks": [{"task": task} for task in TASKS],
            "include_path": [str(few_items(folder / "tasks", TASKS, 30))],
            "subset": {"items": 6, "estimator": "mean"},
            "objectives": "per_task" if several else "weighted_sum",
        },
        "budget": {"evaluations": BUDGET},
        "workers": {"threads": 1},
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return path


def run(monkeypatch, *arguments):
    """Call the command's entry point; return its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue() + err.getvalue()


def test_none_is_left_out():
    assert {strategy["kind"].split(":")[0] for strategy in STRATEGIES.values()} == {"auto", *REGISTERED}
    assert {space["kind"] for space in SPACES.values()} == set(REGISTERED_SPACES)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_it_searches_the_zoo(name, tmp_path, monkeypatch):
    kind = STRATEGIES[name]["kind"].split(":")[0]
    changes = {"space": SPACES[name]} if name in SPACES else {}
    if name in VOTING:
        changes["table"] = {"ensemble": 3, "voters": VOTING[name], "greedy_soup": True}
    path, folder = write(tmp_path, STRATEGIES[name], **changes), tmp_path / "run"
    if name == "cma_es":
        command = [Path(sys.executable).parent / "evomerge", "search", path, "--run", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        code, printed = done.returncode, done.stdout + done.stderr
    else:
        code, printed = run(monkeypatch, "search", path, "--run", folder)
    assert code == 0, printed
    assert "held-out scores" in printed
    result = json.loads((folder / "result.json").read_text())
    assert result["evaluations"] == BUDGET
    kinds = {row["kind"] for row in result["held_out"]}
    assert {"found", "source", "uniform", "task_arithmetic"} <= kinds
    if REGISTERED[kind].objectives != "several":  # else rows of the front, if it has members beside the found recipe
        assert "front" not in kinds
    assert ("ensemble" in kinds) == ("greedy_soup" in kinds) == (name in VOTING)

    # Resuming replays the log through the strategy, and asks for more of it.
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(f"evaluations: {BUDGET}", f"evaluations: {BUDGET + 2}"))
    (folder / "result.json").unlink()
    code, printed = run(monkeypatch, "resume", folder)
    assert code == 0, printed
    again = json.loads((folder / "result.json").read_text())["evaluations"]
    assert again == BUDGET if kind in ("grid", "least_change") else again == BUDGET + 2

    if kind in ("map_elites", "random"):  # an archive of its own, and one made of another strategy's candidates
        code, printed = run(monkeypatch, "export", folder, "--archive", tmp_path / "archive")
        assert code == 0, printed
        index = json.loads((tmp_path / "archive" / "index.json").read_text())
        elites = index["elites"]
        assert index["axes"] == [[task] for task in TASKS]
        assert len({tuple(one["cell"]) for one in elites}) == len(elites)
        for one in elites:
            assert one["cell"] == [min(9, int(10 * score)) for score in one["scores"]]
            assert one["file"] in {file.name for file in (tmp_path / "archive").glob("*.yaml")}
        fitness = [one["fitness"] for one in elites]
        assert fitness == sorted(fitness, reverse=True) and len(fitness) > 0
        code, printed = run(monkeypatch, "export", folder, "--archive", tmp_path / "archive")
        assert code == 2 and "the folder is not empty; name another one" in printed

    code, printed = run(monkeypatch, "export", folder, "--pareto", tmp_path / "front")
    assert code == 0, printed
    assert (tmp_path / "front" / "1.yaml").read_text().startswith("# candidate")
    index = json.loads((tmp_path / "front" / "index.json").read_text())
    assert len(index["recipes"]) == len(list((tmp_path / "front").glob("*.yaml"))) and index["hypervolume"] > 0


@pytest.mark.slow
def test_a_warm_start_reads_a_former_run(tmp_path, monkeypatch):
    path, former = write(tmp_path, STRATEGIES["cma_es"]), tmp_path / "former"
    assert run(monkeypatch, "search", path, "--run", former)[0] == 0
    path = write(tmp_path, STRATEGIES["cma_es"] | {"warm_start": "former"})
    code, printed = run(monkeypatch, "search", path, "--run", tmp_path / "warm")
    assert code == 0, printed
    kept = yaml.safe_load((tmp_path / "warm" / "config.yaml").read_text())["strategy"]["warm_start"]
    assert len(kept["mean"]) == len(kept["deviations"]) == 3
    (former / "events.sqlite").unlink()  # resuming needs the former run no more
    assert run(monkeypatch, "resume", tmp_path / "warm")[0] == 0

    path = write(tmp_path, STRATEGIES["cma_es"] | {"warm_start": "warm"}, space={"layers_per_group": 3})
    assert load(path).strategy.warm_start.run == str(tmp_path / "warm")
    space = Problem(load(path)).space
    assert len(Problem(load(path)).resolved().strategy.warm_start.mean) == space.dimension == 4


REFUSED = {
    "one objective": ({"kind": "nsga2"}, "weighted_sum", "searches for a Pareto front and there is only one objective"),
    "several objectives": ({"kind": "eda"}, "per_task", "takes one objective and fitness.objectives is per_task"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_as_many_objectives_as_the_strategy_takes(name, tmp_path, monkeypatch):
    strategy, objectives, message = REFUSED[name]
    fitness = {"tasks": [{"task": task} for task in TASKS], "objectives": objectives}
    path = write(tmp_path, strategy, fitness=fitness)
    code, printed = run(monkeypatch, "search", path, "--run", tmp_path / "run")
    assert code == 2
    assert message in printed
    assert "strategy.kind: " in printed
    assert not (tmp_path / "run").exists()


def test_a_grid_with_more_options_than_the_budget_is_refused_before_the_search(tmp_path):
    problem = Problem(load(write(tmp_path, {"kind": "grid"}, budget={"evaluations": 5})))
    problem.space = PlantedSpace([Choice("method", tuple("abcdefghij"), "a")])
    with pytest.raises(ConfigError, match=r"strategy.kind: a grid of all options of each choice has more points than"):
        problem.resolved()


@pytest.mark.parametrize(
    ("parallel", "workers", "warned"),
    [
        (1, {"kind": "ray", "count": 3}, "strategy.parallel is 1: it keeps at most 1 worker busy; write 3$"),
        (2, {"kind": "ray", "count": 3}, "strategy.parallel is 2: it keeps at most 2 workers busy; write 3$"),
        (1, {"kind": "ray"}, "write the number of workers$"),
        (3, {"kind": "ray", "count": 3}, None),
        (1, {"threads": 1}, None),
    ],
)
def test_workers_that_nevergrad_lets_idle_are_warned_of(parallel, workers, warned, tmp_path):
    path = write(tmp_path, {"kind": "nevergrad:TwoPointsDE", "parallel": parallel}, workers=workers)
    warnings = [line for line in Problem(load(path)).warnings if "parallel" in line]
    assert len(warnings) == (warned is not None)
    assert all(re.search(warned, line) for line in warnings)
