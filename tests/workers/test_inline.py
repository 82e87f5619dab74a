"""The worker's answers to too little memory, broken numbers, a broken GPU and sources that change under it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.config.load import load
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.testing import PoolSuite
from evomerge.workers.base import OUT_OF_MEMORY, BrokenWorker, Request, WorkerError
from evomerge.workers.inline import InlinePool
from fitness.results import EngineUnavailable, ItemScores
from search_spaces.recipes.baselines import source_recipe
from tests.workers.searches import ZOO, write_config


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Return a small problem on copies of the zoo's models."""
    folder = tmp_path_factory.mktemp("worker")
    shutil.copytree(ZOO / "models", folder / "models")
    models = {name: str(folder / "models" / name) for name in ("base", "ja")}
    write_config(folder / "search.yaml", {"threads": 1}, models=models)
    return Problem(load(folder / "search.yaml"))


@pytest.fixture(scope="module")
def local(problem):
    return local_worker(problem)


@pytest.fixture
def worker(local, monkeypatch):
    monkeypatch.setattr(local.worker.evaluator, "batch_size", 8)
    return local.ready()


@pytest.fixture
def start(problem):
    """Return the request that scores the start point."""
    return Request(problem.space.decode(problem.space.start), tuple(problem.subset))


def test_a_round_may_be_without_items_of_a_task(worker, problem, start, monkeypatch):
    expected = worker.evaluate(start)
    suite = worker.evaluator.suite
    monkeypatch.setattr(suite, "weights", {"other": 3.0, **suite.weights})
    found = worker.evaluate(start)
    assert (found.status, found.objectives) == ("ok", expected.objectives)


def failing(evaluator, error, *, above=0, of="score"):
    """Return a method of the evaluator that raises `error` for batches larger than `above`."""
    score = getattr(evaluator, of)

    def scoring(model, items, **options):
        if evaluator.batch_size > above:
            raise error
        return score(model, items, **options)

    return scoring


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_makes_smaller_batches_until_it_fits(worker, problem, start, monkeypatch, caplog, error):
    expected = worker.evaluate(start)
    monkeypatch.setattr(worker.evaluator, "score", failing(worker.evaluator, error, above=2))
    found = worker.evaluate(start)
    assert found.status == "ok" and worker.evaluator.batch_size == 2
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert "from here on 2 sequences a batch" in caplog.text


def test_out_of_memory_at_every_batch_size_is_a_failure_with_the_reason(worker, problem, start, monkeypatch):
    monkeypatch.setattr(worker.evaluator, "score", failing(worker.evaluator, MemoryError("none left")))
    found = worker.evaluate(start)
    assert found.status == "failed"
    assert found.reason == f"{OUT_OF_MEMORY} (1 sequence a batch): MemoryError: none left"


def test_out_of_memory_while_merging_is_a_failure_with_the_reason(worker, problem, start, monkeypatch):
    def apply(recipe, **_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker.engine, "apply", apply)
    assert worker.evaluate(start).reason.startswith(OUT_OF_MEMORY)
    assert worker.evaluator.batch_size == 8


def test_a_gpu_in_error_is_no_failure_of_the_candidate(worker, problem, start, monkeypatch):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(worker.evaluator, "score", failing(worker.evaluator, error))
    with pytest.raises(BrokenWorker, match=r"the GPU cannot continue .*resume the run"):
        worker.evaluate(start)


def test_weights_that_are_no_numbers_fail_the_candidate(worker, problem, start, monkeypatch):
    apply = worker.engine.apply

    def spoilt(recipe, **options):
        model = apply(recipe, **options)
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        return model

    monkeypatch.setattr(worker.engine, "apply", spoilt)
    found = worker.evaluate(start)
    assert found.status == "failed" and "the model produced NaN" in found.reason
    monkeypatch.undo()
    assert worker.evaluate(start).status == "ok"


def test_scores_that_are_no_numbers_fail_the_candidate(worker, problem, start, monkeypatch):
    items = tuple(problem.subset)
    scores = np.full(len(items), np.nan, np.float32)
    monkeypatch.setattr(worker.evaluator, "score", lambda model, asked, **options: ItemScores(items, scores, 0.1))
    assert "not a finite number" in worker.evaluate(start).reason


def weights(problem):
    return Path(problem.config.models["ja"]) / "model.safetensors"


def test_a_touched_source_is_still_the_same(worker, problem, start):
    os.utime(weights(problem))
    assert worker.evaluate(start).status == "ok"


def test_a_changed_source_stops_the_search_and_nothing_is_recorded(worker, problem, start):
    file = weights(problem)
    before = file.read_bytes()
    changed = bytearray(before)
    changed[-1] ^= 1
    other = file.with_name("other")
    other.write_bytes(changed)
    os.replace(other, file)
    with pytest.raises(WorkerError, match=r"model\.safetensors has changed during the search.*resume the run"):
        worker.evaluate(start)
    file.write_bytes(before)
    assert worker.evaluate(start).status == "ok"


def test_a_source_that_changes_during_an_evaluation_is_noticed(worker, problem, start, monkeypatch):
    file, score = weights(problem), worker.evaluator.score
    before = file.read_bytes()

    def scoring(model, items, **options):
        file.rename(file.with_name("hidden"))
        return score(model, items, **options)

    monkeypatch.setattr(worker.evaluator, "score", scoring)
    with pytest.raises(WorkerError, match="has vanished during the search"):
        worker.evaluate(start)
    file.with_name("hidden").rename(file)
    assert file.read_bytes() == before


class TestAWorkerOfTheZooInAPool(PoolSuite):
    """The real worker behind the pool in this process."""

    most = 3

    @pytest.fixture(autouse=True)
    def _use(self, worker, problem):
        self.worker, self.problem = worker, problem

    def make(self):
        return InlinePool(self.worker)

    def requests(self, count):
        space, items = self.problem.space, tuple(self.problem.subset[:4])
        points = np.linspace(0.2, 0.6, count)
        return [Request(space.decode(np.full(space.dimension, point)), items) for point in points]

    def broken(self):
        return Request(source_recipe("/models/nowhere", 2), self.requests(1)[0].items)


def test_an_engine_that_cannot_start_stops_the_worker_and_not_the_candidate(worker, problem, monkeypatch):
    closed = []

    def taken(model):
        raise EngineUnavailable("vLLM does not start: no")

    monkeypatch.setattr(worker.evaluator.answering, "taken", taken)
    monkeypatch.setattr(worker.evaluator.answering, "prepare", lambda model, sample: taken(model))
    monkeypatch.setattr(worker.evaluator.answering, "close", lambda: closed.append(True))
    recipe, items = problem.space.decode(problem.space.start), tuple(problem.subset[:2])
    with pytest.raises(BrokenWorker, match="vLLM does not start: no"):
        worker.evaluate(Request(recipe, items))
    with pytest.raises(WorkerError, match="vLLM does not start: no"):
        worker.prepare(recipe, items)
    InlinePool(worker).close()
    assert closed == [True]
