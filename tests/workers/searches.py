"""Searches on the zoo, whole, in processes of their own, and what their logs hold."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from evomerge.runs.run import Asked, Run, Told

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
COMMAND = Path(sys.executable).parent / "evomerge"


def write_config(file, workers, evaluations=12, **changes):
    """Write a small search of the zoo."""
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")},
        "space": {"layers_per_group": 4},
        "strategy": {"kind": "cma_es", "population": 4, "score_mean_every": 2},
        "fitness": {
            "tasks": [{"task": "zoo_target_ja"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 12},
            "held_out": 0.5,
        },
        "budget": {"evaluations": evaluations},
        "workers": workers,
    }
    file.write_text(yaml.safe_dump(config | changes), encoding="utf-8")


def start(folder, *arguments, **variables):
    """Start the command."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def finish(process, code=0):
    """Wait for the command; return what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out + err


def candidates(run):
    """Return what became of each candidate, by id: what was asked, and its scores."""
    with Run.read(run) as reader:
        events = list(reader.events())
    told = {event.candidate: event for event in events if isinstance(event, Told)}
    found = {}
    for event in events:
        if isinstance(event, Asked):
            candidate, answer = event.candidate, told[event.candidate.id]
            result = answer.evaluation
            found[candidate.id] = (
                (candidate.kind, candidate.generation, candidate.genotype.tobytes(), event.recipe),
                (result.status, result.objectives, result.items, result.scores.tobytes(), answer.cached),
            )
    return found
