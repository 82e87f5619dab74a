"""`make quickstart` does what the README says: the found recipe beats all others on the target, and loads."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MINUTES = 10


@pytest.mark.slow
def test_quickstart(tmp_path):
    out = tmp_path / "quickstart"
    done = subprocess.run(
        ["make", "quickstart", f"OUT={out}"], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held-out scores" in done.stdout

    result = json.loads((out / "run" / "result.json").read_text())
    found, *others = [row for row in result["held_out"] if row["kind"] != "mean"]
    assert found["kind"] == "found"
    assert {row["kind"] for row in others} == {"source", "uniform", "task_arithmetic", "start"}
    for row in others:
        assert found["score"] > row["score"]
        assert row["p_value"] < 0.01
    assert result["verdict"]["outcome"] == "better"
    assert result["search_items"] <= 3000
    assert sum(result["seconds"].values()) < MINUTES * 60

    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out / "merged").num_parameters() > 500_000

    # A second time, it continues from what is there: nothing is searched again.
    again = subprocess.run(
        ["make", "quickstart", f"OUT={out}"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "run" / "result.json").read_text()) == result
