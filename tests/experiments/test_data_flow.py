"""Layer orders on the zoo: the edits of a model, and a quick run of the experiment."""

from __future__ import annotations

import re

import pytest

from experiments.data_flow.__main__ import EXPERIMENT, main
from experiments.data_flow.edits import MERGE, edits


def test_every_layer_is_repeated_skipped_and_swapped() -> None:
    names = [name for name, _ in edits(6)]
    assert len(names) == len(set(names)) == 3 * 6 + 5


def test_edits_change_one_place() -> None:
    found = dict(edits(3))
    assert found["repeat 1"] == [(0, 1.0), (1, 1.0), (1, 1.0), (2, 1.0)]
    assert found["repeat 2 at half strength"] == [(0, 1.0), (1, 1.0), (2, 0.5), (2, 0.5)]
    assert found["skip 0"] == [(1, 1.0), (2, 1.0)]
    assert found["swap 0 and 1"] == [(1, 1.0), (0, 1.0), (2, 1.0)]


@pytest.mark.slow
def test_quick(capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in EXPERIMENT.folder.iterdir() if file.is_file()}
    main(["--quick"])
    assert {file: file.read_bytes() for file in EXPERIMENT.folder.iterdir() if file.is_file()} == before
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    edited, planted, searched = [
        row.strip("| ").split(" | ") for row in rows if not re.match(r"\| (model|planted|search) ", row)
    ]
    assert edited[:3] == [MERGE, "zoo_target_gen", "3"]
    assert planted[:4] == ["shuffled", "eda", "0", "16"]
    assert planted[7].split()[0] == "0" and planted[7].split()[-1] == "5"  # the ends stay
    assert searched[:3] == ["stacked", "0", "24"]
    scores = [*edited[4].split(" → "), *edited[5].split(" → "), *planted[4:7], *searched[3:5]]
    assert all(0 <= float(score) <= 1 for score in scores)
