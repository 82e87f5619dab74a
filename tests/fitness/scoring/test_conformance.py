"""Our evaluator passes the suite that every evaluator must pass, whatever the tasks ask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from evomerge.testing.evaluators import EvaluatorSuite
from fitness.results import ItemScores
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


class Sorting(Evaluator):
    """Returns scores in the order of the items' names."""

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        found = super().score(model, sorted(items), want_answers=want_answers)
        return ItemScores(tuple(items), found.scores, found.forward_seconds, found.answers)


class Remembering(Evaluator):
    """Returns the first model's scores for every model."""

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        if not hasattr(self, "known"):
            self.known = model
        return super().score(self.known, items, want_answers=want_answers)


class Lenient(Evaluator):
    """Leaves out the items that it does not know."""

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        return super().score(model, [item for item in items if "123456789" not in item], want_answers=want_answers)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Sorting, "test_scores_follow_their_items"),
        (Remembering, "test_nothing_is_kept_from_one_model_to_the_next"),
        (Lenient, "test_bad_requests_are_refused"),
    ],
)
def test_the_suite_finds_broken_evaluators(
    broken: type[Evaluator], test: str, shared_toys: Any, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    suite = shared_toys.suite("mc_several")

    class Run(EvaluatorSuite):
        def evaluator(self, batch_size: int) -> Evaluator:
            return broken(suite, tokenizer, batch_size=batch_size)

        def models(self) -> tuple[Any, Any]:
            return make_model("llama", seed=0), make_model("llama", seed=1)

        def items(self) -> Sequence[str]:
            return [item.id for item in suite.pool.held_out["mc_several"][:12]]

    subject, run = broken(suite, tokenizer), Run()
    arguments = {"subject": subject, "model": run.models()[0]}
    wanted = inspect.signature(getattr(run, test)).parameters
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(run, test)(**{name: value for name, value in arguments.items() if name in wanted})
