"""The `mlflow` tracker: a run of MLflow, by default in a database in the run directory.

`mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db` shows it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from evomerge.extras import require
from evomerge.trackers.base import register_tracker
from evomerge.trackers.scalars import ScalarTracker, flat, identity

PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Settings of MLflow that hold unless the environment says otherwise: a search does not wait minutes for a server."""
TAG = "evomerge_run"
"""Tag by which a resumed run finds its records."""
MOST_PARAMETERS = 100
"""Parameters that MLflow takes at once."""
LONGEST_PARAMETER = 500
"""Characters of a parameter's value."""


@register_tracker
class MlflowConfig(BaseModel):
    """Scalars, the search file, the best recipe and the report for MLflow; needs the extra `mlflow`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    """Tracking server or database. None: the value of MLFLOW_TRACKING_URI; if that is not set, `RUN/mlflow.db`."""
    experiment: str = "evomerge"
    """The experiment of MLflow; created if it does not exist."""
    name: str | None = None
    """Name of the run there. None: that of the run directory."""

    def check(self) -> None:
        """Raise MissingExtraError unless the packages are installed."""
        for package in ("mlflow", "sqlalchemy"):
            require(package, "mlflow", "trackers: kind mlflow")

    def build(self) -> ScalarTracker:
        """Return the tracker."""
        return ScalarTracker(MlflowStore(self))


class MlflowStore:
    """One run of MLflow, found again by a tag.

    Parameters
    ----------
    config
        Its server, experiment and name.
    """

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config

    def open(self, run: Path, config: Mapping[str, Any]) -> Mapping[str, int]:
        """Make the run, or take the one of an earlier session."""
        for key, value in PATIENCE.items():
            os.environ.setdefault(key, value)
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        uri = self._config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        local = uri is None
        self._client = MlflowClient(uri or f"sqlite:///{run.resolve() / 'mlflow.db'}")
        experiment = self._experiment((run.resolve() / "mlflow").as_uri() if local else None)
        name = identity(run)
        runs = self._client.search_runs([experiment], f"tags.{TAG} = '{name}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            called = self._config.name or run.resolve().name
            self._id = self._client.create_run(experiment, tags={TAG: name}, run_name=called).info.run_id
        data = self._client.get_run(self._id).data
        self._log_parameters(dict(flat(config)), data.params)
        return {
            original(name): max(metric.step for metric in self._client.get_metric_history(self._id, name))
            for name in data.metrics
        }

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers, in one transaction."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(named(name), x, now, step) for name, x in scalars.items()])

    def keep(self, files: Sequence[Path]) -> None:
        """Keep files as artifacts."""
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def close(self, finished: bool) -> None:
        """Mark the run as finished, or as killed."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._config.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._config.experiment, artifact_location=artifacts))

    def _log_parameters(self, settings: Mapping[str, object], known: Mapping[str, str]) -> None:
        """Write the search file's keys; MLflow never changes a parameter, so a new value becomes a tag."""
        from mlflow.entities import Param

        values = {named(name): str(value)[:LONGEST_PARAMETER] for name, value in settings.items()}
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for start in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMETERS])
        for name, value in values.items():
            if name in known and known[name] != value:
                self._client.set_tag(self._id, f"changed.{name}", value)


def named(name: str) -> str:
    """Return a name as MLflow takes it: other characters by their numbers, so that names stay distinct."""
    return re.sub(r"[^A-Za-z0-9_.\-/ ]|_(?=x[0-9a-f]+_)", lambda found: f"_x{ord(found[0]):x}_", name)


def original(name: str) -> str:
    """Return the name that `named` has made a name of."""
    return re.sub(r"_x([0-9a-f]+)_", lambda found: chr(int(found[1], 16)), name)
