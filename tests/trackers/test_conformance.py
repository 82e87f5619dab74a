"""Every tracker of ours passes the suite; those of scalars are read back with their own packages."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.testing import TrackerSuite
from evomerge.trackers.csv_tracker import CsvConfig
from evomerge.trackers.mlflow_tracker import TAG, MlflowConfig, named, original
from evomerge.trackers.scalars import identity
from evomerge.trackers.tensorboard_tracker import TensorboardConfig
from evomerge.trackers.wandb_tracker import WandbConfig, history


class TestCsv(TrackerSuite):
    def config(self):
        return CsvConfig()


class TestTensorboard(TrackerSuite):
    keeps_points = True
    relative = 2**-23  # float32

    def config(self):
        return TensorboardConfig()

    def points(self, run: Path):
        return tensorboard_points(run)


@pytest.mark.slow
class TestWandb(TrackerSuite):
    keeps_points = True

    def config(self):
        return WandbConfig()

    def points(self, run: Path):
        found = defaultdict(list)
        for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
            for step, scalars in history(file):
                for name, value in scalars.items():
                    found[name, step].append(value)
        return dict(found)


@pytest.mark.slow
class TestMlflow(TrackerSuite):
    keeps_points = True

    @pytest.fixture(autouse=True)
    def database(self, tmp_path_factory, monkeypatch):
        """Let the tests share a database, as a server does: to make one takes seconds."""
        folder = tmp_path_factory.getbasetemp()
        monkeypatch.chdir(folder)  # a server without another place puts artifacts there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")

    def config(self):
        return MlflowConfig()

    def named(self, name):
        return named(name)

    def points(self, run: Path):
        client, found = mlflow_run(run)
        return {
            key: values for name in found.data.metrics for key, values in mlflow_points(client, found, name).items()
        }


def tensorboard_points(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    found = defaultdict(list)
    for name in events.Tags()["scalars"]:
        for point in events.Scalars(name):
            found[name, point.step].append(point.value)
    return dict(found)


def mlflow_run(run):
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("evomerge")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.{TAG} = '{identity(run)}'")
    return client, found


def mlflow_points(client, found, name):
    points = defaultdict(list)
    for metric in client.get_metric_history(found.info.run_id, name):
        points[name, metric.step].append(metric.value)
    return points


@given(st.text(max_size=12), st.text(alphabet="_xa1", max_size=8))
def test_names_for_mlflow_stay_distinct(text, like_a_code):
    for name in (text, like_a_code, text + like_a_code):
        assert original(named(name)) == name
