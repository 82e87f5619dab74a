"""The scale experiment on small sizes: its clock, and that it runs."""

import json

import pytest

from evomerge.workers.base import Request
from experiments.scale.__main__ import main
from experiments.scale.simulation import ITEMS, Load, SimulatedPool


def drive(pool, count):
    asked = 0
    while asked < count or pool.free < pool.count:
        while pool.free and asked < count:
            pool.submit(asked, Request(None, ITEMS))
            asked += 1
        yield from pool.wait()


def test_workers_that_are_given_work_at_once_are_hardly_idle():
    pool = SimulatedPool(20, Load(median=1000.0, stragglers=0.0, failures=0.5), seed=0)
    found = list(drive(pool, 400))
    assert sorted(tag for tag, _ in found) == list(range(400))
    assert 120 < sum(evaluation.status == "failed" for _, evaluation in found) < 280
    assert pool.idle_share() < 0.01
    assert pool.rate() == pytest.approx(20 / Load(median=1000.0, stragglers=0.0).mean(), rel=0.15)


def test_a_worker_that_waits_for_the_driver_is_idle():
    pool = SimulatedPool(2, Load(median=10.0, stragglers=0.0), seed=0)
    for tag in range(10):  # one worker of two has nothing to do
        pool.submit(tag, Request(None, ITEMS))
        pool.wait()
    assert 0.4 < pool.idle_share() < 0.6


def test_it_runs(tmp_path):
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["strategy"].split()[0] for row in found["sustained"]} == {"cma_es", "m2n2", "random"}
    assert all(row["resume_seconds"] > 0 for row in found["resume"])
