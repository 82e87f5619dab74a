"""A search whose process is killed, and resumed: each tracker has every scalar of the event log, once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evomerge.runs.result import Result
from evomerge.runs.run import Run, RunError, Told, is_run
from evomerge.testing.trackers import expected
from tests.trackers import test_conformance as suites
from tests.zoo import ZOO, few_items

SUITES = {"tensorboard": suites.TestTensorboard, "wandb": suites.TestWandb, "mlflow": suites.TestMlflow}


def told(run: Path) -> int:
    try:
        if not is_run(run):
            return 0
        with Run.read(run) as log:
            return sum(isinstance(event, Told) for event in log.events())
    except RunError:
        return 0


@pytest.fixture(autouse=True)
def _mlflow_writes_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.slow
def test_each_has_every_scalar_once(tmp_path, evomerge):
    tasks = few_items(tmp_path / "tasks", ["zoo_target_gen"], 60)
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "space": {"layers_per_group": 2},
        "strategy": {"kind": "cma_es", "population": 6},
        "fitness": {
            "tasks": [{"task": "zoo_target_gen"}],
            "include_path": [str(tasks)],
            "subset": {"items": 12},
            "held_out": "test",
        },
        "budget": {"evaluations": 30},
        "workers": {"threads": 1},
        "trackers": list(SUITES),
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "evomerge", "search", "search.yaml", "--run", "run"]
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # that of this process
    process = subprocess.Popen(command, cwd=tmp_path, env=own | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        while told(run) < 8 and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 8 <= told(run) < 30, "it was killed in the middle"
    evomerge("resume", "run", cwd=tmp_path)
    with Run.read(run) as log:
        events = list(log.events())
    assert sum(isinstance(event, Told) for event in events) > 30
    wanted = expected(events, Result.read(run / "result.json"))
    assert {name for name, _ in wanted} > {"score", "best", "task/zoo_target_gen", "seconds/merge", "elapsed"}
    for suite in SUITES.values():
        suite().check_points(run, wanted)


@pytest.mark.slow
def test_what_belongs_to_the_run_is_there(tmp_path, evomerge):
    """Settings, the best recipe and the report, as each tracker keeps them."""
    tasks = few_items(tmp_path / "tasks", ["zoo_target_gen"], 20)
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "fitness": {"tasks": [{"task": "zoo_target_gen"}], "include_path": [str(tasks)], "held_out": "test"},
        "strategy": "random",
        "budget": {"evaluations": 2},
        "workers": {"threads": 1},
        "trackers": list(SUITES),
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    evomerge("resume", "run", "--budget.evaluations=+1", cwd=tmp_path)
    run = tmp_path / "run"
    best = (run / "best.yaml").read_text(encoding="utf-8")

    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs(["1"])
    assert found.data.params["strategy.kind"] == "random"
    assert found.data.params["budget.evaluations"] == "2"
    assert found.data.tags["changed.budget.evaluations"] == "3"
    assert found.info.status == "FINISHED"
    kept = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert kept == {"best.yaml", "report.html", "result.json"}
    assert Path(client.download_artifacts(found.info.run_id, "best.yaml")).read_text(encoding="utf-8") == best

    first, second = sorted(run.glob("wandb/offline-run-*"))
    assert (second / "files" / "best.yaml").read_text(encoding="utf-8") == best
    assert (first / "files" / "report.html").is_file() and (second / "files" / "report.html").is_file()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    (settings,) = events.Tensors("search_file/text_summary")
    assert "kind: random" in settings.tensor_proto.string_val[0].decode()
    texts = events.Tensors("best.yaml/text_summary")
    assert [line.strip() for line in texts[-1].tensor_proto.string_val[0].decode().splitlines()] == [
        line.strip() for line in best.splitlines()
    ]
