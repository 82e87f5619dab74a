"""A run as a study of Optuna, which loads it: trials, values and parameters are the run's."""

import json
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evomerge.runs import optuna_study
from evomerge.runs.environment import Environment, GeneRecord
from evomerge.runs.run import Asked, Run, RunError, Told
from evomerge.testing.trackers import events
from search_spaces.spaces.genes import Choice, Integer, Real
from tests.conftest import required
from tests.runs.test_frames import GENES, run  # noqa: F401


def load(file, kind):
    storage = f"sqlite:///{file}" if kind == "sqlite" else JournalStorage(JournalFileBackend(str(file)))
    return optuna.load_study(study_name=None, storage=storage)


@pytest.fixture(params=["sqlite", "journal"])
def study(request, run, tmp_path):  # noqa: F811
    file = tmp_path / "study.db"
    tasks = ("a", "線, b")
    assert optuna_study.write(file, request.param, "a run", run.timed_events(), run.environment().genes, tasks) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "study.db"], "no lock is left"
    return load(file, request.param)


def test_optuna_loads_what_the_run_holds(study, run):  # noqa: F811
    assert study.study_name == "a run"
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.PRUNED, TrialState.RUNNING]
    assert [trial.state for trial in study.trials] == states
    frame = run.candidates
    for trial, (_, row) in zip(study.trials, frame.iterrows(), strict=True):
        assert trial.number == row.candidate == trial.user_attrs["candidate"]
        assert trial.params == {gene.name: row[f"gene.{gene.name}"] for gene in GENES}
        assert trial.user_attrs["recipe"] == row.recipe and trial.user_attrs["parents"] == row.parents
        assert trial.datetime_start.timestamp() == pytest.approx(row.asked_at, abs=1e-5)
        assert trial.user_attrs.get("status", "open") == row.status
        if row.status != "open":
            assert trial.datetime_complete.timestamp() == pytest.approx(row.told_at, abs=1e-5)
    assert study.metric_names == ["a", "線, b"]
    assert study.best_trials == [], "the only complete trial is infeasible"
    first = study.trials[0]
    assert first.values == [0.5, 0.25]
    assert first.user_attrs["task.b"] == 0.25 and first.user_attrs["violation"] == 0.5
    assert study.trials[1].user_attrs["error"] == frame.error[1]
    assert study.trials[3].user_attrs["loss"] == 2.5


def test_genes_are_distributions(study):
    weight, layers, method = (study.trials[0].distributions[gene.name] for gene in GENES)
    assert (weight.low, weight.high) == (-0.5, 1.5)
    assert (layers.low, layers.high) == (1, 8)
    assert method.choices == ("ties", "NA", "线性")


@pytest.mark.parametrize("gene", GENES, ids=lambda gene: type(gene).__name__)
def test_a_recorded_gene_reads_coordinates_as_the_gene_does(gene):
    record = GeneRecord.model_validate_json(GeneRecord.of(gene).model_dump_json())
    back = record.gene()
    assert isinstance(back, Real | Integer | Choice)
    steps = [gene.low + (gene.high - gene.low) * step / 20 for step in range(21)]
    assert [back.value(x) for x in steps] == [gene.value(x) for x in steps]


def ask(app, path):
    """Return what a WSGI application answers as JSON."""
    environ = {"PATH_INFO": path, "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    statuses = []
    text = b"".join(app(environ, lambda status, *_: statuses.append(status)))
    assert statuses == ["200 OK"], text
    return json.loads(text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_dashboard_shows_what_the_run_holds(kind, run, tmp_path):  # noqa: F811
    dashboard = required("optuna_dashboard")
    file = tmp_path / "study.db"
    optuna_study.write(file, kind, "a run", run.timed_events(), run.environment().genes, ("a", "b"))
    app = dashboard.wsgi(f"sqlite:///{file}" if kind == "sqlite" else str(file))
    (summary,) = ask(app, "/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("a run", ["maximize"] * 2)
    shown = ask(app, f"/api/studies/{summary['study_id']}")
    assert shown["objective_names"] == ["a", "b"]
    assert [trial["number"] for trial in shown["trials"]] == run.candidates.candidate.tolist()
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Fail", "Pruned", "Pruned", "Running"]
    for trial, (_, row) in zip(shown["trials"], run.candidates.iterrows(), strict=True):
        genes = {one["name"]: one["param_external_value"] for one in trial["params"]}
        assert genes == {gene.name: str(row[f"gene.{gene.name}"]) for gene in GENES}
        told = {one["key"]: one["value"] for one in trial["user_attrs"]}
        assert told["recipe"] == row.recipe and json.loads(told["parents"]) == row.parents
        assert trial["constraints"] == ([row.violation] if row.violation > 0 else [])
        assert trial.get("values") == ([row["objective.1"], row["objective.2"]] if row.status == "ok" else None)


def test_one_objective_gives_a_best_trial(tmp_path):
    recorded = [event for event in events() if not (isinstance(event, Asked | Told) and _number(event) == 3)]
    timed = list(enumerate(recorded))
    optuna_study.write(tmp_path / "s.db", "sqlite", "s", timed, [GeneRecord(name="x", kind="real", low=0, high=1)])
    assert load(tmp_path / "s.db", "sqlite").best_value == 0.75


def _number(event):
    return event.candidate.id if isinstance(event, Asked) else event.candidate


def test_a_run_without_names_of_genes_is_refused(tmp_path):
    with Run.create(tmp_path / "run", "seed: 0\n", Environment()) as run_, pytest.raises(RunError, match="--table"):
        optuna_study.write(tmp_path / "s.db", "sqlite", "s", run_.timed_events(), run_.environment().genes)
