"""A missing optional package is one line with the command that installs it."""

import re
from pathlib import Path

import pytest

from evomerge.extras import MissingExtraError, how_to_install, require

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
CALL = re.compile(r"require\(\s*\"([\w.]+)\",\s*\"(\w+)\"|how_to_install\([\"'](\w+)[\"']\)")


def test_what_is_there_is_imported():
    assert require("json.decoder", "ray", "a test").JSONDecoder


def test_the_message_names_what_needs_it_and_how_to_get_it():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", "gguf", "a.gguf: reading GGUF")
    assert str(caught.value) == ("a.gguf: reading GGUF needs the package no_such_package; pip install 'evomerge[gguf]'")


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_part_of_it", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"cannot be imported \(.*no_such_part_of_it.*\); pip install"):
        require("broken_package", "gguf", "a test")


def test_every_extra_that_a_message_names_exists():
    named = [
        match.groups()
        for package in ("evomerge", "fitness", "search_spaces")
        for file in (ROOT / package).rglob("*.py")
        for match in CALL.finditer(file.read_text(encoding="utf-8"))
    ]
    assert {extra or other for _, extra, other in named} >= {"ray", "gguf", "strategies"}
    for package, extra, other in named:
        distributions = [re.split(r"[\[<>=~ ]", wanted)[0] for wanted in EXTRAS[extra or other]]
        assert not package or package.partition(".")[0] in [name.replace("-skinny", "") for name in distributions]


def test_no_message_about_a_package_is_written_elsewhere():
    elsewhere = [
        file.name
        for package in ("evomerge", "fitness", "search_spaces")
        for file in (ROOT / package).rglob("*.py")
        if "pip install" in file.read_text(encoding="utf-8") and file.name not in ("extras.py", "ray_local.py")
    ]
    assert not elsewhere, "use evomerge.extras"
    assert how_to_install("ray") == "pip install 'evomerge[ray]'"
