"""Every block of the README does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.config.load import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


def test_every_block_is_of_a_kind_that_is_run_here():
    assert {language for language, _ in BLOCKS} == {"bash", "yaml", "python", "text"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with nothing in it but the repository's experiments."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


def test_the_search_file_is_valid(folder):
    path = folder / "example.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    config = load(path)
    assert config.space.method == "ties"
    assert all(Path(model).is_dir() for model in config.models.values())


def test_the_commands_run_in_order(folder):
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for command in commands:
        if command.startswith("make "):
            # Run by CI (test) and by tests/experiments/test_quickstart.py (quickstart).
            subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, check=True, capture_output=True)
            continue
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "merged" / "model.safetensors").is_file()


def test_the_library_example_runs(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", blocks("python")[0]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    genes, parameters = map(int, done.stdout.split())
    assert genes == 2 * 2 * 8
    assert parameters > 500_000


def test_every_verb_is_listed():
    from evomerge.cli.main import app

    for command in app.registered_commands:
        assert f"`evomerge {command.callback.__name__} " in README or f"`evomerge {command.callback.__name__}" in README
