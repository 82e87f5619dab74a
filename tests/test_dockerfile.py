"""What the Dockerfile copies exists and suffices; no engine builds the image here."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n", " ", TEXT), re.MULTILINE)
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


@pytest.fixture(scope="module")
def settings():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def arguments_of(instruction):
    return [arguments for name, arguments in INSTRUCTIONS if name == instruction]


def test_it_copies_all_that_a_wheel_is_made_of(settings):
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = settings["project"]
    wanted = {*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]}
    assert wanted | {"pyproject.toml", "requirements.lock"} == set(COPIED)


def test_stages_are_copied_from_after_they_are_made():
    stages = []
    for name, arguments in INSTRUCTIONS:
        if name == "FROM":
            stages += re.findall(r" AS (\w+)$", arguments)
        assert all(stage in stages for stage in re.findall(r"--from=(\w+)", arguments if name == "COPY" else ""))
    assert stages == ["wheel"]


def test_what_it_runs_is_bash():
    for script in arguments_of("RUN"):
        checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["WHEEL"]),
        ({"EXTRAS": "[ray,fast]"}, ["WHEEL[ray,fast]"]),
        ({"TORCH_INDEX": "https://a b/cpu"}, ["--extra-index-url", "https://a b/cpu", "WHEEL"]),
    ],
    ids=["as it is", "extras", "an index for torch"],
)
def test_it_installs_the_wheel_in_the_versions_of_the_lock(given, expected, tmp_path):
    (script,) = (script for script in arguments_of("RUN") if "pip install" in script)
    (tmp_path / "dist").mkdir()
    wheel = tmp_path / "dist" / "evomerge-1-py3-none-any.whl"
    wheel.touch()
    said = subprocess.run(
        ["bash", "-c", 'pip() { printf "%s\n" "$@"; }; ' + script.replace("/opt/evomerge", str(tmp_path))],
        env={"PATH": "/usr/bin:/bin", "EXTRAS": "", "TORCH_INDEX": "", **given},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    lock = str(tmp_path / "requirements.lock")
    wanted = ["install", "--no-cache-dir", "-c", lock, *(word.replace("WHEEL", str(wheel)) for word in expected)]
    assert said == wanted


def test_extras_that_it_names_exist(settings):
    named = {extra for words in re.findall(r"\[(\w+(?:,\w+)*)\]", TEXT) for extra in words.split(",")}
    assert named and named <= settings["project"]["optional-dependencies"].keys()


def test_its_examples_are_commands(settings):
    verbs = re.findall(r"^#     docker run .* evomerge(?::\w+)? (\w+)", TEXT, re.MULTILINE)
    documented = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert len(verbs) == 2 and all(f"`evomerge {verb}" in documented for verb in verbs)
    (entry,) = map(json.loads, arguments_of("ENTRYPOINT"))
    assert entry[0] in settings["project"]["scripts"]
    assert len(entry) == 1 and isinstance(json.loads(arguments_of("CMD")[0]), list)


def test_its_base_is_an_argument_and_the_command_its_entry():
    assert INSTRUCTIONS[0][0] == "ARG" and INSTRUCTIONS[0][1].startswith("BASE=python:")
    assert ("FROM", "${BASE}") in INSTRUCTIONS
    assert ("ENTRYPOINT", '["evomerge"]') in INSTRUCTIONS
