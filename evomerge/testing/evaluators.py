"""What every evaluator must do, as a suite of tests to subclass.

An evaluator scores models on items; `fitness.scoring.evaluator.Evaluator` is ours. A worker can use any object with the
members of `ModelEvaluator`.

::

    from evomerge.testing import EvaluatorSuite

    class TestMine(EvaluatorSuite):
        def evaluator(self, batch_size):
            return MyEvaluator(TASKS, TOKENIZER, batch_size=batch_size)

        def models(self):
            return small_model(seed=0), small_model(seed=1)

        def items(self):
            return [f"mine/validation/{index}" for index in range(12)]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import pytest
import torch

from fitness.items import task_of
from fitness.results import ItemScores

BATCH_SIZE = 4
"""Sequences per forward pass where a test does not compare batch sizes."""


class ModelEvaluator(Protocol):
    """What a worker needs from an evaluator."""

    batch_size: int
    """Sequences per forward pass."""
    device: str
    """Torch device of the models that it scores."""

    @property
    def suite(self) -> Any:
        """The tasks; ``suite.weights`` maps the name of each to its weight."""

    def prepare(self, items: Sequence[str], model: Any = None) -> None:
        """Do what does not depend on a model; errors in tasks and items come here."""

    def use_batch_size(self, batch_size: int) -> None:
        """Use batches of another size from here on."""

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        """Score a model."""


class EvaluatorSuite:
    """Tests that every evaluator passes; subclass it as ``Test...`` and give an evaluator, two models and items.

    Attributes
    ----------
    tolerance
        By how much scores may differ between batch sizes, in the unit of the metrics; 0 for 0/1 scores.
    tells_answers
        Whether the evaluator can return the models' answers for these items.
    """

    tolerance: ClassVar[float] = 0.0
    tells_answers: ClassVar[bool] = True

    def evaluator(self, batch_size: int) -> ModelEvaluator:
        """Return a new evaluator that reads so many sequences at a time."""
        raise NotImplementedError("give an evaluator")

    def models(self) -> tuple[Any, Any]:
        """Return two new small models of the same kind whose scores on the items differ, in evaluation mode."""
        raise NotImplementedError("give two models")

    def items(self) -> Sequence[str]:
        """Return the ids of at least six items."""
        raise NotImplementedError("give the ids of items")

    @pytest.fixture
    def subject(self) -> ModelEvaluator:
        """An evaluator that has scored nothing yet."""
        return self.evaluator(BATCH_SIZE)

    @pytest.fixture
    def model(self) -> Any:
        """The first model."""
        return self.models()[0]

    # --- what a score is ---

    def test_every_item_has_one_finite_score(self, subject: ModelEvaluator, model: Any) -> None:
        """One float32 score per item, in the order asked; the time in the model is counted."""
        items = self.items()
        assert len(items) >= 6, "give at least six items"
        found = subject.score(model, items)
        assert found.items == tuple(items)
        assert found.scores.dtype == np.float32 and found.scores.shape == (len(items),)
        assert bool(np.isfinite(found.scores).all())
        assert 0 <= found.forward_seconds < float("inf")

    def test_scores_follow_their_items(self, subject: ModelEvaluator, model: Any) -> None:
        """Another order of the items, or fewer of them, leaves each item its score."""
        items = list(self.items())
        scores = dict(zip(items, subject.score(model, items).scores.tolist(), strict=True))
        shuffled = [items[at] for at in np.random.default_rng(0).permutation(len(items))]
        for asked in (items[::-1], shuffled, items[1::2], shuffled[:3], items[-1:]):
            found = subject.score(model, asked).scores.tolist()
            assert found == pytest.approx([scores[item] for item in asked], rel=0, abs=self.tolerance)

    def test_scores_are_deterministic(self, subject: ModelEvaluator, model: Any) -> None:
        """Asked again, and by a new evaluator, a model scores the same, bit for bit."""
        items = self.items()
        first = subject.score(model, items).scores
        assert bool((subject.score(model, items).scores == first).all())
        assert bool((self.evaluator(BATCH_SIZE).score(model, items).scores == first).all())

    def test_the_batch_size_does_not_matter(self, model: Any) -> None:
        """Scores differ by no more than `tolerance`, whether the size is given at first or later."""
        items = self.items()
        first = self.evaluator(1).score(model, items).scores
        for batch_size in (3, 1000):
            subject = self.evaluator(batch_size)
            assert subject.batch_size == batch_size
            assert subject.score(model, items).scores == pytest.approx(first, rel=0, abs=self.tolerance)
        subject.use_batch_size(2)
        assert subject.batch_size == 2
        assert subject.score(model, items).scores == pytest.approx(first, rel=0, abs=self.tolerance)

    def test_a_model_in_training_mode_scores_the_same(self, subject: ModelEvaluator, model: Any) -> None:
        """Dropout is off while a model is scored."""
        items = self.items()
        expected = subject.score(model, items).scores
        assert bool((subject.score(model.train(), items).scores == expected).all())

    # --- several models ---

    def test_nothing_is_kept_from_one_model_to_the_next(self, subject: ModelEvaluator) -> None:
        """Models scored in turn have the scores that each has alone; and the two differ."""
        items = self.items()
        models = self.models()
        alone = [self.evaluator(BATCH_SIZE).score(model, items).scores for model in models]
        assert bool((alone[0] != alone[1]).any()), "give two models whose scores differ"
        for at in (0, 1, 0, 1):
            assert bool((subject.score(models[at], items).scores == alone[at]).all())

    def test_new_weights_in_the_same_model_count(self, subject: ModelEvaluator) -> None:
        """A worker writes each candidate's weights into one resident model."""
        items = self.items()
        resident, other = self.models()
        subject.score(resident, items)
        resident.load_state_dict(other.state_dict())
        assert bool((subject.score(resident, items).scores == subject.score(other, items).scores).all())

    def test_models_stay_as_they_are(self, subject: ModelEvaluator, model: Any) -> None:
        """Scoring changes no weight and leaves no gradient."""
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        subject.score(model, self.items())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_weights_that_are_not_finite_are_an_error(self, subject: ModelEvaluator, model: Any) -> None:
        """A model that computes NaN has no score; the evaluator works on with the next one."""
        items = self.items()
        broken, _ = self.models()
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            subject.score(broken, items)
        assert bool(np.isfinite(subject.score(model, items).scores).all())

    # --- answers ---

    def test_answers_come_where_they_are_wanted(self, subject: ModelEvaluator, model: Any) -> None:
        """One text per item, and the scores are the same with them; without the wish there are none."""
        items = self.items()
        plain = subject.score(model, items)
        assert plain.answers == ()
        if not self.tells_answers:
            pytest.skip("the evaluator tells no answers for these items")
        told = subject.score(model, items, want_answers=True)
        assert len(told.answers) == len(items)
        assert all(isinstance(answer, str) for answer in told.answers)
        assert bool((told.scores == plain.scores).all())
        assert subject.score(model, items[::-1], want_answers=True).answers == told.answers[::-1]

    # --- tasks and items ---

    def test_every_task_has_a_weight(self, subject: ModelEvaluator) -> None:
        """A worker weighs the tasks of the items that a candidate was asked."""
        assert {task_of(item) for item in self.items()} <= set(subject.suite.weights)
        assert all(weight > 0 for weight in subject.suite.weights.values())

    def test_preparing_changes_no_score(self, subject: ModelEvaluator, model: Any) -> None:
        """With and without a model at hand."""
        items = self.items()
        expected = self.evaluator(BATCH_SIZE).score(model, items).scores
        subject.prepare(items)
        subject.prepare(items, model)
        assert bool((subject.score(model, items).scores == expected).all())

    def test_bad_requests_are_refused(self, subject: ModelEvaluator, model: Any) -> None:
        """An unknown item is named; no items and batches of none are errors."""
        unknown = f"{task_of(self.items()[0])}/validation/123456789"
        for ask in (subject.score, lambda model, items: subject.prepare(items, model)):
            with pytest.raises(ValueError, match="123456789"):
                ask(model, [*self.items(), unknown])
        with pytest.raises(ValueError, match="item"):
            subject.score(model, [])
        with pytest.raises(ValueError, match="0"):
            subject.use_batch_size(0)
        with pytest.raises(ValueError, match="0"):
            self.evaluator(0)
