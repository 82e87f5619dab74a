"""The soak experiment: that its models can be searched, and that it notices what grows or stays behind."""

import json
import mmap
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.scale.processes import handles, memory, shared_files
from experiments.scale.soak import figures, growth, main, tables, thinned, write_models

ME = os.getpid()


def test_memory_that_a_process_takes_is_seen():
    before = memory(ME)
    taken = mmap.mmap(-1, 40 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no memory that was freed before
    taken.write(bytes([1]) * len(taken))
    after = memory(ME)
    assert 35 < after["own"] - before["own"] < 60
    assert after["all"] >= after["own"]
    taken.close()
    assert memory(2**22 + 1) == {"own": 0.0, "all": 0.0}  # no such process


def test_open_files_are_counted_and_shared_ones_named(tmp_path):
    before = handles(ME)
    with (tmp_path / "own").open("w"):
        assert handles(ME) == before + 1
        assert not any(tmp_path in file.parents for file in shared_files(ME))
    if not Path("/dev/shm").is_dir():
        pytest.skip("no shared memory here")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        assert Path(file.name) in shared_files(ME)
    assert Path(file.name) not in shared_files(ME)


def test_the_models_have_the_size_asked_for_and_differ_a_little(tmp_path):
    places = write_models(tmp_path, 0.06)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**30
    assert size == pytest.approx(0.06, rel=0.5)
    base, one = (AutoModelForCausalLM.from_pretrained(places[name]) for name in ("base", "one"))
    ours, others = base.state_dict(), one.state_dict()
    assert ours.keys() == others.keys()
    weight = "model.layers.0.mlp.up_proj.weight"
    assert 0 < (ours[weight].float() - others[weight].float()).abs().mean() < 0.1 * ours[weight].float().abs().mean()
    assert torch.isfinite(base(torch.tensor([[1, 5, 7]])).logits).all()


def test_growth_is_counted_from_where_the_start_has_settled():
    looks = [{"own": [value]} for value in (10, 50, 99, 100, 101, 99, 100, 300, 130, 131, 132)]
    assert growth(looks, "own", 0) == (100.0, 131.0)
    assert growth([{"n": 3}], "n") == (3.0, 3.0)


def test_looks_are_thinned_and_the_last_is_kept():
    looks = [{"n": n} for n in range(100)]
    found = thinned(looks, 10)
    assert len(found) <= 11 and found[0] == looks[0] and found[-1] == looks[-1]
    assert thinned(looks[:3], 10) == looks[:3]


def test_the_table_shows_what_grows():
    look = {"minutes": 20.0, "candidates": 40, "driver_mib": 400.0, "workers_mib": [900.0], "run_mib": 1.0}
    look |= {"driver_handles": 40, "workers_handles": [30]}
    later = look | {"driver_mib": 800.0, "workers_handles": [35]}
    search = {"workers": 1, "looks": [look] * 8 + [later] * 3, "gibibytes": 1.0, "left": 0, "date": "2026-01-01"}
    (table,) = tables({"search": search})
    assert "| search | driver | 40 | 400 | 800 | 40 → 40 |" in table
    assert "| search | Ray worker 1 | 40 | 900 | 900 | 30 → 35 |" in table
    assert figures({"search": search})["soak.left"] == "nothing"
    assert figures({"search": search | {"left": 2}})["soak.left"] == "2"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_it_runs(tmp_path):
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["worker"]["failed"] == 0 and len(found["worker"]["looks"]) > 10
    assert found["search"]["left"] == 0
    assert found["search"]["looks"][-1]["candidates"] > 0
