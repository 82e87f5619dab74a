"""Pipes in place of files: reading one waits for a writer that never comes, so none is opened."""

import io
import os
import shutil
import zipfile

import numpy as np
import pytest

from evomerge.runs.run import Run
from fitness.estimation.arrays import open_arrays
from fitness.estimation.item_banks import ItemBanks, read_matrix
from tests.zoo import ZOO

MODEL = str(ZOO / "models" / "base")


@pytest.fixture
def pipe(tmp_path):
    """Return a function that puts a pipe at a path below the test's folder."""

    def pipe(name):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return path

    return pipe


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--offline"], ["search"]])
def test_a_search_file(pipe, refuse, arguments):
    pipe("search.yaml")
    refuse(*arguments, "search.yaml", words=["search.yaml: is not a regular file"])


def test_a_recipe(pipe, refuse):
    pipe("recipe.yaml")
    refuse("merge", "recipe.yaml", "out", words=["recipe.yaml"])


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "samples_x.jsonl"])
def test_answers_of_other_models(pipe, refuse, name):
    pipe(name)
    refuse("fit-items", name, words=[name, "not a regular file"])


@pytest.mark.parametrize(
    ("name", "verb", "code"),
    [("config.yaml", "resume", 2), ("config.yaml", "status", 2), ("environment.json", "report", 1)],
)
def test_files_of_a_run(tmp_path, pipe, refuse, name, verb, code):
    with Run.create(tmp_path / "run", "seed: 0\n", {}):
        pass
    pipe(f"run/{name}")
    refuse(verb, "run", words=[name, "not a regular file"], code=code)


def test_a_model_card(tmp_path, pipe, evomerge):
    shutil.copytree(MODEL, tmp_path / "model")
    pipe("model/README.md")
    evomerge("inspect", "--quick", MODEL, "model", cwd=tmp_path)


def archive(path, **headers):
    """Write an .npz whose arrays have these headers and hardly any content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, header in headers.items():
            content = io.BytesIO()
            np.lib.format.write_array_header_1_0(content, header)
            file.writestr(f"{name}.npy", content.getvalue() + b"\0" * 64)
    return path


def test_arrays_that_declare_more_than_they_have(tmp_path, refused):
    path = archive(tmp_path / "x.npz", responses={"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with refused(ValueError, "declares more than it has"), open_arrays(path):
        pass
    with refused(ValueError, "declares more than it has"):
        read_matrix(path)
    with refused(ValueError, "declares more than it has"):
        ItemBanks.load(path)


def test_archives_that_unpack_to_too_much(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("fitness.estimation.arrays.LARGEST_FILE", 100_000)
    np.savez_compressed(tmp_path / "x.npz", responses=np.zeros((100, 1000)))
    with refused(ValueError, "more than 100,000"):
        read_matrix(tmp_path / "x.npz")


def test_packed_answers_are_counted(tmp_path, refused):
    np.savez(tmp_path / "x.npz", responses=np.zeros((1, 1), np.uint8), shape=np.array([10**6, 10**6]))
    with refused(ValueError, "answers"):
        read_matrix(tmp_path / "x.npz")


def test_objects_are_not_unpickled(tmp_path, refused):
    np.savez(tmp_path / "x.npz", responses=np.array([print], object))
    with refused(ValueError, "x.npz"):
        read_matrix(tmp_path / "x.npz")
