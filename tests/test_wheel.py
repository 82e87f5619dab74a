"""What is released: the wheel and the sdist; and the demo, where only the wheel and its dependencies are installed."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evomerge.version import VERSION

ROOT = Path(__file__).parent.parent
MB = 1_000_000
EXTRAS = ("ray", "gguf", "numba", "cmaes", "nevergrad", "tensorboard", "wandb", "mlflow-skinny", "optuna")

NO_NETWORK = """\
import socket
def refuse(self, address):
    if self.family != socket.AF_UNIX:
        with open({log!r}, "a") as log:
            log.write(f"{{address}}\\n")
        raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return the folder with the wheel and the sdist, built as for a release: the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (found,) = built.glob(f"evomerge-{VERSION}-*.whl")
    return found


@pytest.mark.slow
def test_twine_finds_nothing_wrong(built):
    files = [str(file) for file in built.iterdir()]
    assert len(files) == 2
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_with_their_data_and_is_small(wheel):
    assert wheel.stat().st_size < 10 * MB
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"evomerge", "fitness", "search_spaces"}
    data = "evomerge/demo/data/"
    assert {
        *(f"{package}/py.typed" for package in ("evomerge", "fitness", "search_spaces")),
        *(f"{data}zoo/models/{model}/model.safetensors" for model in ("base", "ops", "ja", "eo")),
        *(f"{data}zoo/tasks/{file}" for file in ("zoo_target_gen.yaml", "zoo_target_gen.jsonl", "documents.py")),
        f"{data}quickstart/search.yaml",
    } <= set(names)
    listing = ["git", "ls-files", "evomerge", "fitness", "search_spaces"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= set(names)


@pytest.mark.slow
def test_the_sdist_holds_what_tests_need_and_nothing_of_a_working_copy(built):
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.stat().st_size < 10 * MB
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".git/", "dist"))]


def dependencies(wheel: Path) -> dict[str, Distribution]:
    """Return what pip would install with a wheel that is asked for without extras."""
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    asked = [(line.partition(": ")[2], "") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    found: dict[str, Distribution] = {}
    while asked:
        line, extra = asked.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        known = name in found
        if not known:
            found[name] = distribution(wanted.name)
        for each in ([] if known else [""]) + sorted(wanted.extras):
            asked += [(required, each) for required in found[name].requires or ()]
    return found


def top_level(package: Distribution) -> Iterator[tuple[str, Path]]:
    """Yield the name and the place of each file or folder that a distribution has in site-packages."""
    for name in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
        yield name, Path(str(package.locate_file(name)))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, wheel) -> Path:
    """Return an environment as `pip install WHEEL` makes it, with links to the packages in place of downloads."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, capture_output=True, check=True)
    (site,) = folder.glob("lib/*/site-packages")
    for package in dependencies(wheel).values():
        for name, place in top_level(package):
            if not (site / name).exists():
                (site / name).symlink_to(place)
    (site / "no_network.py").write_text(NO_NETWORK.format(log=str(folder / "network.log")), encoding="utf-8")
    (site / "no_network.pth").write_text("import no_network\n", encoding="utf-8")
    return folder


def run(fresh: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run the command of the fresh environment, as in the first terminal of a new user."""
    environment = {"PATH": f"{fresh / 'bin'}{os.pathsep}/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_folder_without_extras_or_network(fresh, tmp_path):
    code = "import evomerge, importlib.metadata as m; print(evomerge.__file__, *(d.name for d in m.distributions()))"
    place, *installed = run(fresh, "python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(fresh) and "torch" in installed
    assert not set(EXTRAS) & set(installed)
    done = run(fresh, "evomerge", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "evomerge-demo"
    result = json.loads((made / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["verdict"]["outcome"] == "better"
    assert result["verdict"]["sentence"] in done.stdout
    assert "</html>" in (made / "run" / "report.html").read_text(encoding="utf-8")
    assert (made / "merged" / "model.safetensors").stat().st_size > MB
    assert f"{result['held_out'][0]['score']:.3f}" in done.stdout.partition("$ evomerge evaluate")[2]
    assert not (fresh / "network.log").exists(), (fresh / "network.log").read_text(encoding="utf-8")
    assert not list((tmp_path / ".cache").glob("huggingface/hub/models--*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "setting"),
    [
        ("ray", "workers={kind: ray}"),
        ("strategies", "strategy=catcma"),
        ("strategies", "strategy=nevergrad:PSO"),
        ("strategies", "strategy={kind: cma_es, learning_rate: adapted}"),
        ("gguf", "models.ja=ja.gguf"),
    ],
)
def test_what_needs_an_extra_names_it_in_one_line(fresh, tmp_path, extra, setting):
    code = "from pathlib import Path; from evomerge.demo.files import write_files; write_files(Path('.'))"
    assert run(fresh, "python", "-c", code, cwd=tmp_path).returncode == 0
    (tmp_path / "ja.gguf").write_bytes(b"GGUF")
    done = run(fresh, "evomerge", "search", "search.yaml", "--set", setting, cwd=tmp_path)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert f"pip install 'evomerge[{extra}]'" in line
    assert not (tmp_path / "runs").exists()
