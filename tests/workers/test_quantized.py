"""Searches with rounded weights: who answers with them, what `plan` says, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.merging.engine.placement import DeviceError
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Entry
from evomerge.runs.run import Run, RunError
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.resuming import check_unchanged
from evomerge.search.scoring_workers import local_worker
from evomerge.testing.pools import ScriptedPool, answered
from evomerge.workers import start
from evomerge.workers.base import Request, WorkerSettings
from evomerge.workers.inline import InlinePool
from fitness.results import TaskError
from fitness.scoring import products, quantized
from fitness.scoring.engine_config import VllmEngine
from tests.workers.searches import write_config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("quantized") / "search.yaml"
    write_config(file, {"threads": 1})
    return file


@pytest.fixture(scope="module")
def exact(file):
    return Problem(load(file), scan=False)


@pytest.fixture(scope="module")
def problem(file):
    return Problem(load(file, ["fitness.engine.quantization=int4"]), scan=False)


def test_candidates_have_rounded_weights_and_held_out_rows_have_not(problem, exact, tmp_path):
    local = local_worker(problem)
    worker, plain = local.ready(), local_worker(exact).ready()
    entry = Entry("start", "start", problem.space.decode(problem.space.start))
    items = tuple(problem.held_out_items[:40])
    score, rounded = worker.evaluator.score, []

    def scoring(model, items, **options):
        rounded.append(quantized.is_quantized(model))
        return score(model, items, **options)

    worker.evaluator.score = scoring
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as run:
        scorer = RecordedScorer(run, RunHistory(()), InlinePool(worker))
        scorer.score("parent", entry, items)
        found = scorer.score("held_out", entry, items)
        np.testing.assert_array_equal(found.scores, plain.evaluate(Request(entry.recipe, items)).scores)
        scorer.confirm(entry, tuple(problem.search_items[:10]))  # completes the answers of the search
    assert rounded == [True, False, True]
    (note,) = local.engine_notes()
    assert "quantization int4: 663,552 of 690,336 weights are rounded; the resident model takes 0.7 MB" in note
    assert "2.8 MB for held-out items" in note


def test_packed_weights_are_counted_where_texts_are_generated(exact, monkeypatch):
    local = local_worker(exact)
    monkeypatch.setattr(products, "faster_by_onednn", lambda: True)
    monkeypatch.setattr(exact.suite, "kinds", {"choices": "multiple_choice"})
    assert local.packed_bytes == 0
    monkeypatch.setattr(exact.suite, "kinds", {"choices": "multiple_choice", "texts": "generate_until"})
    assert 4 * 663_552 < local.packed_bytes < local.footprint.resident_bytes + 4 * 100_000


def test_a_candidates_own_answers_are_never_those_of_a_held_out_row(exact, tmp_path):
    """Even where it was asked the very same items: it may have been quantised."""
    entry = Entry("start", "start", exact.space.decode(exact.space.start))
    pool, history = ScriptedPool(lambda _, request: answered(request, [1.0, 0.0])), RunHistory(())
    items = tuple(exact.search_items[:2])
    history.by_recipe[entry.recipe.hash] = answered(Request(entry.recipe, items), [0.0, 0.0])
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as run:
        scorer = RecordedScorer(run, history, pool)
        assert scorer.score("parent", entry, items).fitness == 0
        assert scorer.score("held_out", entry, items).scores.tolist() == [1.0, 0.0]
    assert [request.unquantized for _, request in pool.asked] == [True]


def test_a_run_is_not_resumed_with_other_bits(problem, exact, tmp_path):
    recorded = problem.environment(frozenset(problem.subset))
    with Run.create(tmp_path / "run", "seed: 0\n", recorded.model_dump(mode="json")) as run:
        check_unchanged(run, recorded)
        with pytest.raises(RunError, match="engine"):
            check_unchanged(run, exact.environment(frozenset(problem.subset)))


def test_steps_by_gradients_are_refused_and_auto_goes_without(file):
    rounded = "fitness.engine.quantization=int8"
    with pytest.raises(ConfigError, match=r"rounded weights have no derivatives .*int8\); remove quantization, or"):
        Problem(load(file, [rounded, "strategy={kind: gradient}"]), scan=False)
    assert "there are no gradients: rounded" in Problem(load(file, [rounded, "strategy=auto"]), scan=False).chosen


@pytest.mark.parametrize("engine", ["{quantization: int2}", "{kind: vllm, quantization: int8}"])
def test_what_no_engine_has_is_refused_when_the_file_is_read(file, engine):
    with pytest.raises(ConfigError, match=r"quantization"):
        load(file, [f"fitness.engine={engine}"])


def test_a_device_without_the_operations_is_refused_before_the_search(problem, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("not implemented here")

    monkeypatch.setattr(quantized.Int4Linear, "weight", lacking)
    with pytest.raises(TaskError, match=r"quantization int4 does not work on cpu \(not implemented here\); remove"):
        local_worker(problem, WorkerSettings("cpu")).ready()


def test_a_model_that_two_devices_share_scores_the_same(exact, monkeypatch):
    request = Request(exact.space.decode(exact.space.start), tuple(exact.subset))
    expected = local_worker(exact).ready().evaluate(request)
    cpus = (torch.device("cpu"), torch.device("cpu"))
    monkeypatch.setattr(start, "devices_of", lambda *_: cpus)
    local = local_worker(exact)
    found = local.ready().evaluate(request)
    assert found.status == "ok", found.reason
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert local.placement.device == "cpu and cpu"
    shares = local.engine_notes()
    assert len(shares) == 2 and all(" % of the weights: " in share for share in shares)


def test_gpus_of_a_worker_share_its_model(exact, monkeypatch):
    inputs = local_worker(exact)._inputs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    two = WorkerSettings("cuda", gpus=2)
    assert [str(device) for device in start.devices_of("cuda", two, inputs)] == ["cuda:0", "cuda:1"]
    vllm = replace(inputs, engine=VllmEngine())
    for device, settings, what in (("cpu", two, inputs), ("cuda", WorkerSettings("cuda"), inputs), ("cuda", two, vllm)):
        assert start.devices_of(device, settings, what) == ()
    with pytest.raises(DeviceError, match=r"gpus_per_worker is 3, and this process sees 2 GPUs; write a lower one"):
        start.devices_of("cuda", WorkerSettings("cuda", gpus=3), inputs)
    with pytest.raises(DeviceError, match=r"gradient steps need the model on one; write 1, or"):
        start.devices_of("cuda", two, replace(inputs, steps=object()))
