"""Gradient steps in a worker: too little memory, numbers that are not finite, and what penalties add."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.config.load import load_mapping
from evomerge.merging.engine.placement import FreeMemory
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers import start as worker_start
from evomerge.workers.base import OUT_OF_MEMORY, Request
from evomerge.workers.gradient_steps import StepMemoryError
from evomerge.workers.start import LocalWorker
from evomerge.workers.step_parts import joined, split
from tests.search.test_gradient_search import config


def problem_of(**strategy: Any) -> Problem:
    return Problem(load_mapping(config(strategy={"kind": "gradient", "items": 8} | strategy, out_dtype="float32"), []))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of()


@pytest.fixture(scope="module")
def local(problem: Problem) -> LocalWorker:
    return local_worker(problem)


@pytest.fixture
def worker(local: LocalWorker, monkeypatch: pytest.MonkeyPatch) -> Any:
    ready = local.ready()
    assert ready.steps is not None
    monkeypatch.setattr(ready.steps, "batch_size", 8)
    monkeypatch.setattr(ready.steps, "recomputes", False)
    return ready


def step_of(problem: Problem) -> Request:
    point = problem.space.start
    return Request(problem.space.decode(point), problem.steps.items(0), gradient_at=tuple(point.tolist()))


def same(found: Any, expected: Any) -> None:
    assert (found.status, found.items) == ("step", expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-3, atol=1e-5)


def test_parts_of_a_step_add_up_to_it(worker: Any, problem: Problem) -> None:
    step = step_of(problem)
    found = joined(step, [worker.evaluate(part) for part in split(step, 3)])
    same(found, worker.evaluate(step))


def starve(monkeypatch: pytest.MonkeyPatch, worker: Any, *, largest: int, recomputed: bool) -> None:
    """Let memory run out in batches above `largest`, and in all where layers are not computed again if they must be."""
    steps, plan = worker.steps, worker.steps.plan

    def short(request: Request, module: Any, predictions: Any, rows: int) -> Any:
        if rows > largest or (recomputed and not steps.recomputes):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return plan(request, module, predictions, rows)

    monkeypatch.setattr(steps, "plan", short)


def test_too_little_memory_makes_smaller_batches(
    worker: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = worker.evaluate(step_of(problem))
    starve(monkeypatch, worker, largest=2, recomputed=False)
    same(worker.evaluate(step_of(problem)), expected)
    assert (worker.steps.batch_size, worker.steps.recomputes) == (2, False)
    assert worker.evaluator.batch_size == 64  # scoring has room for more
    assert "out of memory in a gradient step: from here on 2 sequences a batch" in caplog.text


def test_then_layers_are_computed_again(worker: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = worker.evaluate(step_of(problem))
    starve(monkeypatch, worker, largest=8, recomputed=True)
    same(worker.evaluate(step_of(problem)), expected)
    assert (worker.steps.batch_size, worker.steps.recomputes) == (1, True)


def test_then_the_step_fails_in_one_sentence(worker: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, worker, largest=0, recomputed=False)
    found = worker.evaluate(step_of(problem))
    assert found.status == "failed" and found.reason.startswith(f"{OUT_OF_MEMORY} (1 sequence a batch, layers computed")
    assert "write a smaller fitness.max_length" in found.reason


@pytest.mark.parametrize(("share", "rows", "recomputes"), [(1.0, 64, False), (0.7, 64, True), (0.2, 8, True)])
def test_what_fits_is_chosen_before_the_search(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, share: float, rows: int, recomputes: bool
) -> None:
    whole = local_worker(problem).step_memory
    assert whole is not None
    free = int(share * whole.total)
    monkeypatch.setattr(worker_start, "free_memory", lambda device, part: FreeMemory(None, free))
    worker = local_worker(problem)
    memory = worker.step_memory
    assert memory is not None and memory.total <= free
    steps = worker.worker.steps
    assert steps is not None
    assert steps.recomputes == recomputes and steps.batch_size <= rows


def test_too_little_memory_for_any_step_is_refused_with_numbers(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_start, "free_memory", lambda device, share: FreeMemory(None, 100_000))
    with pytest.raises(
        StepMemoryError, match=r"needs \S+ GB beside the models \(1 sequence a batch, .*0\.00 GB are free"
    ):
        local_worker(problem).ready()


def test_a_loss_that_is_not_finite_names_its_item(
    worker: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = worker.engine.apply

    def spoilt(recipe: Any) -> Any:
        model = apply(recipe)
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        return model

    monkeypatch.setattr(worker.engine, "apply", spoilt)
    found = worker.evaluate(step_of(problem))
    assert found.status == "failed" and "the loss of item zoo_target_ja/" in found.reason and " is nan" in found.reason


def test_a_gradient_that_is_not_finite_names_its_tensor_and_item(
    worker: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, slopes = step_of(problem), worker.engine.slopes

    def spoilt(recipe: Any, plan: Any, wanted: Any, gradient: Any) -> Any:
        return (
            [float("inf") for _ in wanted]
            if plan.name.endswith("1.mlp.up_proj.weight")
            else slopes(recipe, plan, wanted, gradient)
        )

    monkeypatch.setattr(worker.engine, "slopes", spoilt)
    found = worker.evaluate(step)
    assert found.status == "failed"
    assert (
        f"the gradient of model.layers.1.mlp.up_proj.weight is not finite (item {step.items[0].split('/')[0]}/"
        in found.reason
    )


def test_the_distance_to_the_base_is_one_for_the_mean_expert(worker: Any, problem: Problem) -> None:
    assert worker.steps is not None
    steps = worker.steps
    before = steps.inputs
    try:
        steps.inputs = replace(before, loss=before.loss.model_copy(update={"distance_to_base": 2.0}))
        far = worker.evaluate(step_of(problem))
    finally:
        steps.inputs = before
    near = worker.evaluate(step_of(problem))
    assert 0 < near.objectives[0] - far.objectives[0] < 2.0
    assert sum(far.gradient) > sum(near.gradient)  # weights above 0 are pulled down


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 40, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.mark.parametrize("kind", ["entropy", "js", "kl"])
def test_label_free_losses_have_the_derivatives_of_finite_differences(kind: str, texts: Path) -> None:
    text = {} if kind == "entropy" else {"text": str(texts), "window": 16}
    settings = config(strategy={"kind": "gradient", "items": 4, "loss": {"kind": kind, **text}}, out_dtype="float32")
    settings["fitness"]["tasks"] = ["zoo_target_mc"]  # greedy answers would differ between the points of a difference
    problem = Problem(load_mapping(settings, []))
    worker = local_worker(problem).ready()
    point, items = problem.space.start.copy(), problem.steps.items(0)

    def step(at: Any) -> Any:
        return worker.evaluate(Request(problem.space.decode(at), items, gradient_at=tuple(at.tolist())))

    found = step(point)
    assert found.status == "step", found.reason
    for gene in (0, 2):
        high, low = point.copy(), point.copy()
        high[gene] += 0.01
        low[gene] -= 0.01
        slope = (step(low).objectives[0] - step(high).objectives[0]) / 0.02
        assert found.gradient[gene] == pytest.approx(slope, rel=0.1, abs=2e-3)
    logging.getLogger("evomerge").handlers.clear()
