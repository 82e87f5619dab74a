"""The merge benchmark: it runs, completes its table, and measures memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.merge_speed import compilers, memory, whole
from experiments.merge_speed.__main__ import Result, main, markdown
from experiments.merge_speed.cases import QUICK, Size, make_models, recipe

START, END = "Before.\n<!-- table -->\n", "\n<!-- /table -->\nAfter.\n"


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(f"{START}| old |{END}", encoding="utf-8")
    for method in ("magmax", "model_stock"):
        main(["--quick", "--threads", "1", "--method", method, "-o", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results = [Result(**result) for result in found["results"]]
    assert [result.method for result in results] == ["magmax", "model_stock"]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme == START + markdown(results) + END
    assert markdown(results) in capsys.readouterr().out
    for result in results:
        assert result.experts == 2
        assert result.bytes_touched == 10
        assert result.limit is not None
        assert result.limit > 0
        assert result.wall > 0


@pytest.mark.slow
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


def test_the_table_of_whole_processes_shows_medians() -> None:
    def used(wall: float, peak: int) -> dict[str, float]:
        return {"wall": wall, "cpu": 2 * wall, "peak": peak}

    rounds = [
        {"size": size, "method": method, "load": 2.0, "evomerge": used(wall, 10**9), "mergekit": used(20.0, peak)}
        for size, method, wall, peak in [
            ("0.5 B", "linear", 8.0, 2 * 10**9),
            ("0.1 B", "ties", 7.0, 10**9),
            ("0.1 B", "ties", 2.0, 10**9),
            ("0.1 B", "ties", 5.0, 10**9),
        ]
    ]
    assert whole.table(rounds).splitlines()[2:] == [
        "| 0.1 B | ties | 3 | 2.0 | 5.0 | 10.0 | 1000 | 20.0 | 40.0 | 1000 | 0.25 | 1.00 |",
        "| 0.5 B | linear | 1 | 2.0 | 8.0 | 16.0 | 1000 | 20.0 | 40.0 | 2000 | 0.40 | 0.50 |",
    ]
    figures = whole.figures({"rounds": rounds})
    assert figures == {"whole.wall": "0.25 to 0.40", "whole.aim": "1 of 2", "whole.less": "1 of 2"}


@pytest.mark.slow
def test_rounds_of_whole_processes_add_up(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        START.replace("table", "whole") + END.replace("table", "whole"), encoding="utf-8"
    )
    models = tmp_path / "models"
    for methods in (["linear"], ["linear", "ties"]):
        asked = [part for method in methods for part in ("--method", method)]
        whole.main(["--quick", *asked, "--models", str(models), "-o", str(tmp_path)])
    rounds = json.loads((tmp_path / "whole.json").read_text(encoding="utf-8"))["rounds"]
    assert [row["method"] for row in rounds] == ["linear", "ties"]
    assert all(value > 0 for row in rounds for program in whole.PROGRAMS for value in row[program].values())
    assert whole.table(rounds) in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_table_of_compilers_says_which_weights_are_equal() -> None:
    rows = [
        {"what": "emr", "way": way, "each": each, "equal": equal}
        for way, each, equal in [("numba", 0.5, True), ("torch.compile", 0.8, False), ("blocks", 5.0, True)]
    ]
    seconds = {"numba": 9.0, "torch.compile": 30.0, "blocks": 0.1}
    (table,) = compilers.tables({"rows": rows, "cold": seconds, "warm": seconds})
    assert table.splitlines()[2] == "| emr | 0.5 | 0.8 | 5 |  | 10.0 | blocks |"


@pytest.mark.slow
def test_each_compiler_merges(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU by a C++ compiler")
    paths = make_models(QUICK[0], tmp_path, 2, 0)
    rows = compilers._in_process(f"applied('magmax', {paths!r}, 1) + sorted_by('ties', {paths!r}, 1)", tmp_path)
    assert [row["way"] for row in rows] == [*compilers.WAYS, "numba", "blocks"]
    assert all(row["equal"] for row in rows if row["way"] != "torch.compile")
