"""The experiment for a GPU: its dry form runs everywhere, and what it carries is small and known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from experiments.gpu.__main__ import EXPERIMENT, main
from experiments.gpu.merging import METHODS
from experiments.gpu.parts import PARTS
from experiments.gpu.tables import tables
from experiments.gpu.traffic import Traffic
from experiments.gpu.wheels import LOCK, NEEDED, pinned


@pytest.mark.slow
def test_a_dry_run_goes_through_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXPERIMENT.folder / "README.md", tmp_path)
    main(["--dry", "-o", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    parts = results["parts"]
    assert results["dry"] and list(parts) == list(PARTS)
    assert [row["method"] for row in parts["apply"]["methods"]] == list(METHODS)
    assert all(row["differs"] == 0 and row["share"] > 0 and row["moved"] > 1 for row in parts["apply"]["methods"])
    assert parts["search"]["answers"] > 0 and parts["search"]["planned_bytes"] > 0
    assert (parts["out_of_memory"]["batch_after"], parts["out_of_memory"]["next"]) == (2, "ok")
    assert parts["out_of_memory"]["differs"] < 1e-5
    assert "NaN" in parts["not_finite"]["reason"]
    assert parts["resume"]["same_recipe"] and parts["resume"]["differs"] == 0
    assert parts["gradient_step"]["differs"] == 0 and parts["gradient_step"]["coefficients"] > 0
    for kind in ("equal", "unequal"):
        assert parts["generation"][kind]["generate"]["same_answers"] > 0
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(table in readme for table in tables(results))
    assert "CPU (a dry run)" in capsys.readouterr().out


def test_traffic_is_what_operations_read_and_write() -> None:
    a, b = torch.ones(10), torch.zeros(10)
    with Traffic() as traffic:
        b.copy_(a)  # reads 40 bytes and writes 40
        b.add_(a[:10])  # reads 80 and writes 40
        b.zero_()
    assert traffic.bytes == 80 + 120 + 40


def test_a_part_that_failed_shows_its_error() -> None:
    shown = tables({"parts": {"apply": {"error": "RuntimeError: no kernel", "wall": 1.0}}})
    assert "RuntimeError: no kernel" in shown[0]
    assert all("not run" in table for table in shown[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--dry" in capsys.readouterr().err


def test_what_is_carried_is_pinned() -> None:
    found = pinned(LOCK.read_text(encoding="utf-8"))
    assert len(found) == len(NEEDED) and all("==" in each for each in found)
    with pytest.raises(ValueError, match="has no annotated-types"):
        pinned("numpy==2.0\n")
