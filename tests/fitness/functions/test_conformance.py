"""The evaluator of own functions passes the suite that every evaluator must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from evomerge.testing.evaluators import EvaluatorSuite
from fitness.config import FitnessConfig
from fitness.functions.evaluator import FunctionEvaluator
from fitness.functions.loading import FitnessFunction
from fitness.functions.suite import FunctionSuite

TEXTS = [f"sum {number} and {number + 3}" for number in range(24)]


def losses(model: Any, tokenizer: Any, items: Sequence[str], batch_size: int = 8) -> list[float]:
    """Return the negative loss of each text; batches have one size, so that rounding does not depend on it."""
    found = []
    for text in items:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        found.append(-float(model(input_ids=ids, labels=ids).loss))
    return found


def both(model: Any, tokenizer: Any, items: Sequence[str]) -> dict[str, Any]:
    values = torch.tensor(losses(model, tokenizer, items))
    return {"loss": values, "half": 0.5 * values}


@cache
def opened(function: Callable[..., Any]) -> FitnessFunction:
    """Return a function with its code read once for all tests."""
    return FitnessFunction.of(function, TEXTS)


class _Functions(EvaluatorSuite):
    tells_answers = False
    function: Callable[..., Any]
    tasks: tuple[Any, ...]

    @pytest.fixture(autouse=True)
    def _made(self, tokenizer: Any, make_model: Callable[..., Any]) -> None:
        config = FitnessConfig.model_validate(
            {"function": "x.py:loss", "function_items": "X", "tasks": list(self.tasks)}
        )
        self.own = FunctionSuite(opened(type(self).function), config, seed=0)
        self.tokenizer, self.make_model = tokenizer, make_model

    def evaluator(self, batch_size: int) -> FunctionEvaluator:
        return FunctionEvaluator(self.own, self.tokenizer, batch_size=batch_size)

    def models(self) -> tuple[Any, Any]:
        return self.make_model("llama", seed=0), self.make_model("llama", seed=1)

    def items(self) -> Sequence[str]:
        return [item.id for items in self.own.pool.held_out.values() for item in items[:8]]


class TestOneScore(_Functions):
    function = staticmethod(losses)
    tasks = ("loss",)


class TestSeveralScores(_Functions):
    function = staticmethod(both)
    tasks = ("loss", {"task": "half", "weight": -2})
