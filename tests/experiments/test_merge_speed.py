"""The merge benchmark: it runs, and its README shows the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.merge_speed import memory
from experiments.merge_speed.__main__ import FOLDER, TABLE, Result, main, markdown
from experiments.merge_speed.cases import QUICK, Size, make_models, recipe

AGAINST_MERGEKIT = 10.0  # CPU time in memory


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(
        "".join(("Before.\n", TABLE[0], "| old |\n", TABLE[1], "After.\n")), encoding="utf-8"
    )
    for method in ("magmax", "model_stock"):
        main(["--quick", "--threads", "1", "--method", method, "-o", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results = [Result(**result) for result in found["results"]]
    assert [result.method for result in results] == ["model_stock", "magmax"]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme == "".join(("Before.\n", TABLE[0], markdown(results), TABLE[1], "After.\n"))
    assert markdown(results) in capsys.readouterr().out
    for result in results:
        assert result.experts == 2
        assert result.bytes_touched == 10
        assert result.limit is not None
        assert result.limit > 0
        assert result.wall > 0


def test_a_readme_without_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("| old |\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md: no table to replace; put <!-- table --> and <!-- /table -->"):
        main(["-o", str(tmp_path)])


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs Linux")
def test_the_memory_of_a_small_merge(tmp_path: Path) -> None:
    small = Size("0.005 B", 256, 4, 8_000)
    tiny, models = (make_models(size, tmp_path / size.name, 2, 0) for size in (QUICK[0], small))
    found = memory.peak(*(recipe("task_arithmetic", paths, 2, 0) for paths in (tiny, models)), tmp_path, 1)
    assert found is not None
    held, bound = found
    parameters = small.vocabulary * small.hidden  # the embeddings alone
    assert bound > (3 * 2 + 1.3 * 4) * parameters
    assert held > 4 * parameters


@pytest.fixture(scope="module")
def committed() -> list[Result]:
    values: dict[str, Any] = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    return [Result(**result) for result in values["results"]]


def test_readme_shows_the_committed_results(committed: list[Result]) -> None:
    assert TABLE[0] + markdown(committed) + TABLE[1] in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_committed_results_reach_the_target(committed: list[Result]) -> None:
    compared = [result for result in committed if result.in_memory is not None]
    assert {result.method for result in compared} >= {"linear", "task_arithmetic", "slerp", "dare_ties", "ties"}
    for result in compared:
        assert result.in_memory is not None
        assert result.in_memory / result.cpu >= AGAINST_MERGEKIT
