"""The comparison of rounded weights: its figures, and its whole course on a tiny model."""

import subprocess
import sys

import numpy as np
import pytest

from experiments.quantised.__main__ import committed, compare


def test_equal_scores_agree_and_shuffled_ones_do_not():
    exact = committed()[:, :, :120]
    same = compare(exact, exact)
    assert (same["spearman"], same["kendall"], same["changed_items"], same["largest_difference"]) == (1, 1, 0, 0)
    shuffled = compare(exact, exact[np.random.default_rng(0).permutation(len(exact))])
    assert shuffled["spearman"] < 0.5 and shuffled["changed_items"] > 0.1


@pytest.mark.slow
def test_the_quick_form_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.quantised", "--quick"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    for arguments, timed in ((), False), (("--rounds", "1"), True):
        printed = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout
        assert printed.count("| int4 |") == 2 and ("not measured" in printed) != timed
    assert "int8 (" not in printed  # nothing is scored twice
