"""What model cards say, and which terms do not go together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge.merging.checks.licences import conflicts, kind_of, licence
from evomerge.merging.sources.checkpoints import Checkpoint


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: gemma-terms\n---\n", "gemma-terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit and apache-2.0"),
        ("---\nlicense: [\n---\n", None),
        ("# no front matter", None),
    ],
)
def test_licence_is_read_from_the_card(llama: Any, tmp_path: Path, card: str, expected: str | None) -> None:
    folder = Path(shutil.copytree(llama.base, tmp_path / "model"))
    (folder / "README.md").write_text(card)
    assert licence(Checkpoint.open(str(folder))) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("mistral-ai-research-licence", "non-commercial"),
        ("gpl-3.0", "copyleft"),
        ("cc-by-sa-4.0", "copyleft"),
        ("llama3.1", "vendor"),
        ("gemma", "vendor"),
        ("encyclopedia", "unknown"),
        (None, "unknown"),
    ],
)
def test_kinds(name: str | None, kind: str) -> None:
    assert kind_of(name) == kind


def test_conflicts() -> None:
    assert conflicts({"a": "apache-2.0", "b": "mit", "c": None}) == []
    assert conflicts({"a": "llama3.1", "b": "llama3.2", "c": "mit"}) == []
    (line,) = conflicts({"a": "apache-2.0", "b": "cc-by-nc-4.0"})
    assert line == "b (cc-by-nc-4.0): non-commercial terms apply to the whole merge, a included"
    (line,) = conflicts({"a": "llama3.1", "b": "gemma"})
    assert line == "a (llama3.1), b (gemma): the terms of several vendors apply to the merge at once"
    (line,) = conflicts({"a": "gpl-3.0", "b": "gemma"})
    assert "a (gpl-3.0): forbids further restrictions, and b (gemma) has some" in line
