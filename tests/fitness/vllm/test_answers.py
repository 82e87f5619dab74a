"""Scores from an engine in another process equal the model's own, and what goes wrong there goes wrong in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitness.results import EngineUnavailable, TaskError
from fitness.scoring.engine_config import VllmEngine
from fitness.scoring.evaluator import Evaluator
from fitness.vllm import answers, process
from fitness.vllm.answers import EnginePlace, VllmAnswers
from fitness.vllm.process import EngineError
from tests.fitness.vllm.stand_in import ForkedPopen, TorchBackend

TASKS = ("mc", "mc_several", "ll", "gen", "gen_length")
PLACE = EnginePlace("cpu", 1, 2, lambda: 1 << 34)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[TorchBackend]:
    """Its class; `deaths` is a file to write into."""

    class Backend(TorchBackend):
        deaths = tmp_path / "deaths"

    Backend.deaths.write_text("")
    monkeypatch.setattr(process.subprocess, "Popen", ForkedPopen)
    monkeypatch.setattr(ForkedPopen, "backend", Backend)
    monkeypatch.setattr(ForkedPopen, "started", [])
    monkeypatch.setattr(process, "_CLOSING", 0.5)
    monkeypatch.setattr(answers, "versions", lambda engine: {"vllm": "0.32.0"})
    monkeypatch.setattr(answers, "HEAD_SIZES", (16,))
    return Backend


@pytest.fixture
def engine(backend: type[TorchBackend]) -> Iterator[VllmAnswers]:
    """Answers from a stand-in."""
    answering = VllmAnswers(VllmEngine(), PLACE)
    yield answering
    answering.close()


@pytest.fixture
def evaluators(shared_toys: Any, tokenizer: Any, engine: VllmAnswers) -> tuple[Evaluator, Evaluator, tuple[str, ...]]:
    """One that asks the model, one that asks the engine, and items of all kinds."""
    suite = shared_toys.suite(*TASKS, {"task": "mc_information", "metric": "answer_loss"})
    items = tuple(item.id for one in suite.pool.held_out.values() for item in one[:5])
    return Evaluator(suite, tokenizer), Evaluator(suite, tokenizer, answering=engine), items


def test_scores_answers_and_flaws_are_the_models_own(evaluators: Any, make_model: Callable[..., Any]) -> None:
    own, theirs, items = evaluators
    models = [make_model("llama", seed) for seed in (0, 1)] + [make_model("llama", 2, tie_word_embeddings=True)]
    theirs.prepare(items, models[0])
    for model in (*models, models[0]):
        expected, found = (one.score(model, items, want_answers=True) for one in (own, theirs))
        assert found.scores == pytest.approx(expected.scores, abs=2e-5)
        assert (found.answers, found.flaws, found.items) == (expected.answers, expected.flaws, items)
    assert len(ForkedPopen.started) == 3  # tied embeddings are another config
    variables = ForkedPopen.started[0]
    assert variables["OMP_NUM_THREADS"] == "2"
    assert "PYTHONPATH" not in variables


def test_other_depths_and_longer_requests_start_another_engine(
    evaluators: Any, llama: Any, make_model: Callable[..., Any]
) -> None:
    own, theirs, items = evaluators
    deep = make_model("llama", 3, head_dim=16)
    shallow = make_model("llama", 3)
    shallow.config.num_hidden_layers = 1
    shallow.model.layers = shallow.model.layers[:1]
    for model in (deep, shallow):
        assert theirs.score(model, items[:4]).scores == pytest.approx(own.score(model, items[:4]).scores, abs=2e-5)
    assert len(ForkedPopen.started) == 2
    theirs.answering.loglikelihoods([((1,) * 150, (2,))], max_length=200, batch_size=8, device="cpu")
    theirs.score(shallow, items[:4])
    assert len(ForkedPopen.started) == 3


@pytest.mark.parametrize("question", ["load", "score", "generate"])
def test_an_engine_that_dies_is_started_again_and_asked_once_more(
    question: str, evaluators: Any, llama: Any, backend: type[TorchBackend]
) -> None:
    own, theirs, items = evaluators
    assert backend.deaths is not None
    backend.deaths.write_text(question)
    assert theirs.score(llama, items).scores == pytest.approx(own.score(llama, items).scores, abs=2e-5)
    assert len(ForkedPopen.started) == 2
    backend.deaths.write_text(f"{question} {question}")
    with pytest.raises(EngineError, match=r"ended \(signal 9: RuntimeError: the device is lost\), 2 times in a row"):
        theirs.score(llama, items)
    assert theirs.score(llama, items).scores == pytest.approx(own.score(llama, items).scores, abs=2e-5)


def test_an_engine_that_does_not_start_is_no_candidates_fault(
    evaluators: Any, llama: Any, backend: type[TorchBackend]
) -> None:
    assert backend.deaths is not None
    backend.deaths.write_text("start start")
    with pytest.raises(EngineUnavailable, match=r"vLLM does not start: .*the device is lost"):
        evaluators[1].score(llama, evaluators[2])


def test_an_engine_that_computes_another_model_is_refused(
    evaluators: Any, llama: Any, backend: type[TorchBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "reads_weights", False)
    with pytest.raises(EngineError, match=r"so it computes another model; write fitness.engine: transformers"):
        evaluators[1].prepare(evaluators[2], llama)


def test_weights_of_another_shape_fail_their_candidate_and_the_next_is_right(
    evaluators: Any, make_model: Callable[..., Any]
) -> None:
    own, theirs, items = evaluators
    odd, model = make_model("llama", 1), make_model("llama", 1)
    odd.model.norm.weight = torch.nn.Parameter(torch.ones(16))
    with pytest.raises(EngineError, match=r"vLLM: RuntimeError: .*size mismatch for model.norm.weight"):
        theirs.answering.taken(odd)
    assert theirs.score(model, items).scores == pytest.approx(own.score(model, items).scores, abs=2e-5)


def test_nan_is_refused(evaluators: Any, make_model: Callable[..., Any]) -> None:
    model = make_model("llama", 1)
    theirs, items = evaluators[1], evaluators[2]
    theirs.score(model, items)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        theirs.score(model, items)


def test_heads_that_vllm_does_not_know(evaluators: Any, make_model: Callable[..., Any]) -> None:
    with pytest.raises(TaskError, match=r"no attention for heads of size 24, only for 16; write fitness.engine"):
        evaluators[1].prepare(evaluators[2], make_model("llama", head_dim=24))


def test_out_of_memory_there_is_out_of_memory_here(
    evaluators: Any, llama: Any, backend: type[TorchBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(backend, "score", score)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        evaluators[1].score(llama, evaluators[2])


def test_memory_is_said(evaluators: Any, llama: Any) -> None:
    theirs = evaluators[1]
    theirs.prepare(evaluators[2], llama)
    (first, second) = theirs.answering.describe()
    assert "vLLM 0.32.0 answers in float32, on cpu" in first
    assert "up to 64 sequences of 128 tokens" in first
    assert "layers in another order or number" in second
    assert np.isfinite(theirs.score(llama, evaluators[2][:2]).scores).all()
