"""Our evaluator passes the suite that every evaluator must pass, whatever the tasks ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from evomerge.testing.evaluators import EvaluatorSuite
from fitness.scoring.evaluator import Evaluator


class _Ours(EvaluatorSuite):
    """Our evaluator on one kind of task."""

    entries: ClassVar[tuple[str | dict[str, str], ...]]

    @pytest.fixture(autouse=True)
    def _toys(self, shared_toys: Any, tokenizer: Any, make_model: Callable[..., Any]) -> None:
        self.suite = shared_toys.suite(*self.entries)
        self.tokenizer, self.make_model = tokenizer, make_model

    def evaluator(self, batch_size: int) -> Evaluator:
        return Evaluator(self.suite, self.tokenizer, batch_size=batch_size)

    def models(self) -> tuple[Any, Any]:
        return self.make_model("llama", seed=0), self.make_model("llama", seed=1)

    def items(self) -> Sequence[str]:
        return [item.id for items in self.suite.pool.held_out.values() for item in items[:8]]


class TestChoices(_Ours):
    entries = ("mc", "mc_several")


class TestGeneration(_Ours):
    entries = ("gen_length",)


class TestMixedKinds(_Ours):
    entries = ("gen_length", "mc_several")


class TestLogLikelihoods(_Ours):
    """Numbers that rounding reaches, and that several models cannot vote on."""

    entries = ({"task": "mc_several", "metric": "answer_loss"},)
    tolerance = 1e-4
    tells_answers = False
