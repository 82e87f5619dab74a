"""Every block of the README does what it says."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from evomerge.config.load import load
from evomerge.demo.files import write_files
from tests.command import evomerge, execute

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


def test_every_block_is_of_a_kind_that_is_run_here():
    assert {language for language, _ in BLOCKS} == {"bash", "yaml", "python", "text"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with nothing in it but what `evomerge demo` begins with."""
    folder = tmp_path_factory.mktemp("readme")
    write_files(folder / "evomerge-demo")
    return folder


def test_the_search_file_is_valid(folder):
    path = folder / "example.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    config = load(path)
    assert config.space.method == "ties"
    assert all(Path(model).is_dir() for model in config.models.values())


@pytest.mark.slow
def test_the_commands_run_in_order(folder):
    for line in (line for text in blocks("bash") for line in text.splitlines()):
        program, *arguments = shlex.split(line)
        if line in ("pip install .", "evomerge demo"):  # run by tests/test_wheel.py
            continue
        assert program == "evomerge"
        evomerge(*arguments, cwd=folder)
    assert (folder / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_python_example_prints_the_table_of_a_search(folder):
    printed = [line[:20].strip() for line in execute(blocks("python")[0], cwd=folder).splitlines()]
    recorded = json.loads((folder / "runs" / "from-python" / "result.json").read_text(encoding="utf-8"))["held_out"]
    assert printed == [row["name"] for row in recorded]
    assert printed[0] == "found" and {"base", "ops", "ja", "eo", "uniform average"} < set(printed)


def test_its_targets_of_make_exist():
    targets = re.findall(r"`make (\w+)`", README)
    assert targets
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


def test_it_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 150


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert not [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]


def test_every_verb_is_listed():
    from evomerge.cli.main import app

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert "search" in names
    assert not [name for name in names if f"`evomerge {name}" not in page]
