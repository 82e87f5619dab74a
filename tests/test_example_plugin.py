"""The package of plug-ins under examples/, installed and used as a stranger would."""

import json
import os
import shutil
import site
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
NAMES = {
    "merge method": "agreement",
    "space": "one_factor",
    "strategy": "one_plus_one",
    "estimator": "laplace",
    "worker kind": "polite",
    "tracker": "improvements",
}


def test_one_of_each_kind_in_less_than_thirty_lines():
    files = [file for file in (EXAMPLE / "evomerge_example").glob("*.py") if file.name != "__init__.py"]
    assert len(files) == len(NAMES)
    for file in files:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) < 30, file


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Return a function that runs a command of a new environment in which the example is installed."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=True, system_site_packages=True)
    python = folder / "venv" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    here = [place for place in site.getsitepackages() if Path(place).is_dir()]
    (packages / "here.pth").write_text("".join(f"import site; site.addsitedir({place!r})\n" for place in here))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    source = shutil.copytree(EXAMPLE, folder / "source")

    def run(*command, code=0):
        done = subprocess.run(
            [python, "-m", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    run("pip", "uninstall", "-q", "-y", "setuptools")  # an old one of venv's would hide the one that is here
    run("pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", source)
    return folder, run


@pytest.mark.slow
def test_it_is_listed_and_searches_the_zoo(fresh):
    folder, run = fresh
    listed = json.loads(run("evomerge", "plugins", "--json"))
    assert listed["failures"] == []
    theirs = {row["kind"]: row["name"] for row in listed["names"] if row["package"] == "evomerge-example"}
    assert theirs == NAMES

    printed = run("evomerge", "search", EXAMPLE / "search.yaml", "--run", "run")
    assert "held-out scores" in printed
    assert json.loads((folder / "run" / "result.json").read_text())["evaluations"] == 12
    assert (folder / "run" / "improvements.txt").read_text()
    assert "merge_method: agreement" in run("evomerge", "export", "run", "--rank", 1)
    assert "12/12 evaluations" in run("evomerge", "status", "run")
    run("evomerge", "resume", "run", "--budget.evaluations=+2")
    assert "14/14 evaluations" in run("evomerge", "status", "run")
    run("evomerge", "merge", "run/best.yaml", "merged")
    assert (folder / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_it_passes_the_conformance_suites(fresh):
    _, run = fresh
    assert "passed" in run("pytest", "-q", "-p", "no:cacheprovider", "source/tests")


@pytest.mark.slow
def test_its_names_are_in_the_reference_and_in_errors(fresh):
    folder, run = fresh
    assert "## `space`, `kind: one_factor`" in run("evomerge.config.reference")
    text = (EXAMPLE / "search.yaml").read_text(encoding="utf-8").replace("one_plus_one", "one_plus_two")
    (folder / "wrong.yaml").write_text(text, encoding="utf-8")
    assert "did you mean `one_plus_one`?" in run("evomerge", "plan", "wrong.yaml", code=2)
