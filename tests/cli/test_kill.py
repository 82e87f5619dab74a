"""What needs a process of its own: kills, Ctrl-C and limits of the system.

A search killed with SIGKILL at random moments, and resumed each time, ends like one that never was.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from evomerge.runs.run import Asked, ReferenceScore, Run, is_run
from tests.cli.forked import Forked

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
KILLS = int(os.environ.get("EVOMERGE_KILLS", "2"))
"""Kills of each of the other strategies and spaces; CONTRIBUTING.md says how to run 20."""
COMMAND = Path(sys.executable).parent / "evomerge"


def write_config(folder, tasks, evaluations, **changes):
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "space": {"layers_per_group": 2},
        "strategy": {"kind": "cma_es", "population": 6, "score_mean_every": 2},
        "fitness": {
            "tasks": [{"task": "zoo_target_gen"}],
            "include_path": [str(tasks)],
            "subset": {"items": 12},
            "held_out": "test",
        },
        "budget": {"evaluations": evaluations},
        "workers": {"threads": 1},
    } | changes
    (folder / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def start(folder, *arguments):
    return subprocess.Popen(
        [COMMAND, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def events(run):
    """Return all events without their times."""
    with Run.read(run) as reader:
        return [signature(event) for event in reader.events()]


def signature(event):
    if isinstance(event, Asked):
        candidate = event.candidate
        return "asked", candidate.id, candidate.kind, candidate.generation, candidate.genotype.tobytes(), event.recipe
    evaluation = event.evaluation
    scores = (
        evaluation.status,
        evaluation.objectives,
        evaluation.items,
        evaluation.scores.tobytes(),
        evaluation.gradient,
    )
    if isinstance(event, ReferenceScore):
        return "reference", event.purpose, event.recipe, scores
    return "told", event.candidate, event.cached, scores


def count(run):
    """Return how many events are recorded; nothing else is read, since it is asked again and again."""
    try:
        with closing(sqlite3.connect(f"file:{run / 'events.sqlite'}?mode=ro", uri=True)) as log:
            return log.execute("SELECT count(*) FROM events").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0


def go_on(folder, started=start):
    """Do what a user would: resume the run, or search again where it was killed before there was one."""
    if is_run(folder / "killed"):
        return started(folder, "resume", "killed")
    return started(folder, "search", "search.yaml", "--run", "killed")


def kill_while_it_starts(process, rng):
    """SIGKILL at a random moment of the seconds that imports and checks take."""
    time.sleep(rng.uniform(0, 5))
    process.send_signal(signal.SIGKILL)
    process.wait()


def kill_after_some_events(process, run, more, rng):
    """Wait for `more` new events and a random moment longer, then SIGKILL; False if the process ended by itself."""
    target = count(run) + more
    while count(run) < target and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.15))
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not ended


@pytest.mark.parametrize(
    "kills",
    [
        1,
        pytest.param(20, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(tmp_path, kills, evomerge, tasks):
    write_config(tmp_path, tasks, 30 * kills)  # enough that every kill comes before the end
    evomerge("search", "search.yaml", "--run", "whole", cwd=tmp_path)
    expected = events(tmp_path / "whole")

    rng = random.Random(kills)
    run = tmp_path / "killed"
    killed = 0
    for number in range(kills):
        process = go_on(tmp_path)
        if number % 4 == 0:
            kill_while_it_starts(process, rng)
            process = go_on(tmp_path)
        killed += kill_after_some_events(process, run, rng.randint(1, max(1, 2 * len(expected) // (3 * kills))), rng)
        found = events(run)
        assert expected[: len(found)] == found
    evomerge("resume", "killed", cwd=tmp_path)
    assert killed == kills
    assert events(run) == expected
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")]
    for result in results:
        del result["seconds"]
        for stage in result["stages"].values():
            del stage["seconds"]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{"threads": 1}, {"kind": "ray", "count": 2}], ids=["inline", "ray"])
def test_killed_among_steps_by_gradients_and_resumed(tmp_path, workers, evomerge, tasks):
    """Five kills, in the steps and just behind them: every loss, derivative and genotype is as without.

    Two workers score founders and candidates in any order, so what was asked and told is compared one by one.
    """
    strategy = {"kind": "gradient", "items": 8, "steps": 60, "then": {"kind": "cma_es", "population": 4}}
    write_config(tmp_path, tasks, 66, strategy=strategy, workers=workers)
    evomerge("search", "search.yaml", "--run", "whole", cwd=tmp_path)
    expected = searched(tmp_path / "whole")
    assert sum(event[0] == "told" and event[3][0] == "step" for event in expected.values()) == 60

    rng, run, killed = random.Random(5), tmp_path / "killed", 0
    for _ in range(5):
        killed += kill_after_some_events(go_on(tmp_path), run, rng.randint(1, 24), rng)
        assert searched(run).items() <= expected.items()
    evomerge("resume", "killed", cwd=tmp_path)
    assert killed == 5
    assert searched(run) == expected


BUDGET = 20 * max(2, KILLS)
"""Candidates: enough that every kill comes before the end."""

TWO_TASKS = {"tasks": [{"task": "zoo_target_gen"}, {"task": "zoo_target_mc"}], "objectives": "per_task"}
THREE_MODELS = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")}
SMALL = {"kind": "cma_es", "population": 4}
REPLAYED = {
    "map": {
        "strategy": {"kind": "map", "batch": 8, "evaluations": 2 * BUDGET, "nested": True, "block": 3},
        "fitness": TWO_TASKS,
    },
    "nsga3": {"strategy": {"kind": "nsga3", "population": 6}, "fitness": TWO_TASKS},
    "greedy": {"strategy": {"kind": "greedy", "samples": BUDGET, "stop": 1.0}},
    "genome_plus": {"strategy": {"kind": "genetic", "preset": "genome_plus", "crossover": 1.0}},
    "model_swarms": {"strategy": {"kind": "genetic", "preset": "model_swarms", "population": 6}},
    "evo_merging": {
        "space": {"method": "breadcrumbs", "groups": "model", "fixed": {"gamma": 0.0}},
        "strategy": {"kind": "evo_merging", "evaluations": BUDGET // 2, "first": SMALL, "second": SMALL},
    },
    "least_change": {
        "space": {"method": "task_arithmetic", "groups": "model"},
        "strategy": {"kind": "least_change"},
        "fitness": {"subset": {"items": 12, "rotate": False}},
    },
    "cma_me": {"strategy": {"kind": "cma_me", "population": 4}, "fitness": {"tasks": TWO_TASKS["tasks"]}},
    "cycleqd": {"strategy": {"kind": "cycleqd"}, "fitness": {"tasks": TWO_TASKS["tasks"]}},
    "optuna": {"strategy": {"kind": "optuna:TPE"}},
    "ppo, layer_actions": {
        "space": {"kind": "layer_actions"},
        # slow: a policy that has settled proposes known recipes, and the search ends before it can be killed
        "strategy": {"kind": "ppo", "population": 6, "learning_rate": 1e-4},
    },
    "genetic, layer_actions": {"space": {"kind": "layer_actions", "merges": ["ties"]}, "strategy": {"kind": "genetic"}},
    "eda, tailoring": {"space": {"kind": "tailoring", "remove": [1, 3]}, "strategy": {"kind": "eda"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLAYED)
def test_other_strategies_and_spaces_killed_and_resumed(tmp_path, name, evomerge, tasks):
    """Surrogates, rounds of pairs, swarms, policies, a library's sampler: all that they keep is made from the log."""
    changes = {"models": THREE_MODELS} | REPLAYED[name]
    fitness = {"tasks": [{"task": "zoo_target_gen"}], "include_path": [str(tasks)], "subset": {"items": 12}}
    changes["fitness"] = fitness | changes.get("fitness", {})
    write_config(tmp_path, tasks, BUDGET, **changes)
    evomerge("search", "search.yaml", "--run", "whole", cwd=tmp_path)
    expected = events(tmp_path / "whole")
    rng, run, killed = random.Random(3), tmp_path / "killed", 0
    for _ in range(KILLS):
        killed += kill_after_some_events(go_on(tmp_path, Forked), run, rng.randint(1, 16), rng)
        found = events(run)
        assert expected[: len(found)] == found
    evomerge("resume", "killed", cwd=tmp_path)
    assert killed == KILLS
    assert events(run) == expected


def searched(run):
    """Return what a search asked and told, by kind of event and candidate."""
    return {event[:2]: event for event in events(run) if event[0] != "reference"}


def wait_for_events(run, wanted, timeout=120):
    """Wait until a run's log holds so many events."""
    deadline = time.monotonic() + timeout
    while count(run) < wanted:
        assert time.monotonic() < deadline, f"{run} did not reach {wanted} events in {timeout} s"
        time.sleep(0.05)


def test_a_run_in_use(tmp_path, evomerge, write):
    write(tmp_path, budget={"evaluations": 100_000})
    # Shells start what runs in the background with SIGINT ignored.
    command = ["env", "--default-signal=INT", COMMAND, "search", "search.yaml", "--run", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        wait_for_events(tmp_path / "run", 6)
        assert "is in use by another evomerge process" in evomerge("resume", "run", cwd=tmp_path, code=2)
        assert json.loads(evomerge("status", "run", "--json", cwd=tmp_path))["state"] == "searching"
        process.send_signal(signal.SIGINT)  # Ctrl-C
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 130
        assert "evomerge resume run" in output
    finally:
        process.kill()
        process.wait()
    assert json.loads(evomerge("status", "run", "--json", cwd=tmp_path))["state"] == "stopped"


def test_a_full_disk_while_merging_leaves_nothing_behind(finished, tmp_path):
    """The limit on file sizes stands for a full disk: writing fails half-way."""
    folder, _ = finished
    command = f"ulimit -f 200; exec '{COMMAND}' merge '{folder / 'run' / 'best.yaml'}' out"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "out" in done.stderr
    assert list(tmp_path.iterdir()) == []
