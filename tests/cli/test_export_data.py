"""`evomerge export`: the data of a run, as tables and as a study of Optuna."""

import json
import shutil

from evomerge.runs import frames
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
    refuse("export", tmp_path / "run", "--table", tmp_path, words=["--table", ".csv"])
