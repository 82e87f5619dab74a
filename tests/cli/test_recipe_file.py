"""What is said about a recipe's file when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cli.recipe_file import read


def test_a_number_is_read_as_mergekit_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("merge_method: passthrough\nslices:\n- sources:\n  - {model: a/b, layer_range: [0, 010]}\n")
    (document,) = read(file)
    assert document.recipe.slices[0].sources[0].layer_range == (0, 8)
    said = f"warning: {file}:4: slices.0.sources.0.layer_range.1: YAML reads 010 as 8; write 8 or 10"
    assert said in capsys.readouterr().err
