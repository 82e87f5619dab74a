"""What the Dockerfile copies exists and suffices; no engine builds the image here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")), re.MULTILINE
)
COPIED = [
    source
    for instruction, arguments in INSTRUCTIONS
    if instruction == "COPY" and not arguments.startswith("--from")
    for source in arguments.split()[:-1]
]


def test_every_file_that_it_copies_exists_and_is_not_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert len(COPIED) > 5
    assert not [source for source in COPIED if not (ROOT / source).exists()]
    assert not [source for source in COPIED if source.split("/")[0] in ignored]


def test_it_copies_all_that_a_wheel_is_made_of():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = settings["project"]
    wanted = {*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]}
    assert wanted | {"pyproject.toml", "requirements.lock"} == set(COPIED)


def test_its_base_is_an_argument_and_the_command_its_entry():
    assert INSTRUCTIONS[0][0] == "ARG" and INSTRUCTIONS[0][1].startswith("BASE=python:")
    assert ("FROM", "${BASE}") in INSTRUCTIONS
    assert ("ENTRYPOINT", '["evomerge"]') in INSTRUCTIONS
