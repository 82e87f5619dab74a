"""One task of a search: its items, their requests, and the scores of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lm_eval.api.task import ConfigurableTask

from fitness.items import Item, ItemText
from fitness.overlap import Question
from fitness.results import TaskError
from fitness.tasks.config import TaskConfig
from fitness.tasks.documents import Documents
from fitness.tasks.loss_metrics import (
    CHOICE_CERTAINTY,
    NEED_RIGHT_ANSWER,
    OF_THE_RIGHT_ANSWER,
    AnswerExtractor,
    Scorer,
    loss_scorer,
)
from fitness.tasks.messages import one_line
from fitness.tasks.metrics import choose_metric
from fitness.tasks.prompts import ChatTemplate, Prompts, Request
from fitness.tasks.scores import TaskScores


class LoadedTask:
    """One lm-eval task: from documents to requests, and from responses to one score per item.

    Attributes
    ----------
    name
        As in lm-eval.
    kind
        Its output type: `multiple_choice`, `loglikelihood` or `generate_until`.
    documents, prompts, metric, scores
        The parts: its items, their requests, the metric, and the scores of answers.

    Raises
    ------
    TaskError
        The metric does not exist, or has no value for single items.
    """

    def __init__(self, task: ConfigurableTask, entry: TaskConfig) -> None:
        self.name = entry.task
        self.kind: str = task.OUTPUT_TYPE
        self.documents = Documents(task, self.name)
        self.prompts = Prompts(task, self.name, self.documents)
        metric = choose_metric(task, self.name, self.documents, entry.metric)
        self.metric = replace(metric, sign=-1.0) if entry.lowered else metric
        self.scores = TaskScores(task, self.name, self.documents, self.prompts, self.metric)

    def requests(self, item: Item, chat_template: ChatTemplate | None = None) -> tuple[Request, ...]:
        """Return the requests for one item; they are built once, with the `chat_template` of the first call."""
        if self.metric.name not in OF_THE_RIGHT_ANSWER:
            return self.prompts.requests(item, chat_template)
        request = self.prompts.right_answer(item, chat_template)
        if request is None:
            raise TaskError(
                f"task {self.name!r}: item {item.index} of its {item.split} split has no right answer, which metric "
                f"{self.metric.name!r} needs: use another metric",
                task=self.name,
            )
        return (request,)

    def question(self, item: Item) -> str:
        """Return an item's question, without examples."""
        return self.documents.question(self.documents.of(item.split)[item.index])

    def check_scores(self, items: Sequence[Item]) -> None:
        """Check that every item has a score, as far as that is known without a model's answers.

        Raises
        ------
        TaskError
            The metric has no value for an item, or a template fails.
        """
        without = [item for item in items if not self._has_score(item)]
        if without:
            place = f"item {without[0].index} of its {without[0].split} split"
            raise TaskError(
                f"task {self.name!r}: metric {self.metric.name!r} has no value for {len(without)} of {len(items)} "
                f"items, such as {place}: use another metric, or leave such items out with the task's process_docs",
                task=self.name,
            )

    def check_right_answers(self, items: Sequence[Item]) -> None:
        """Check that some item of a split has a right answer, where lm-eval's own code needs one.

        Raises
        ------
        TaskError
            None has one, or a label cannot be read.
        """
        try:
            unlabelled = self.scores.without_right_answer(items)
        except Exception as error:  # the author's templates can raise anything, and give a label of any type
            raise TaskError(
                f"task {self.name!r}: the right answer of an item of its {items[0].split} split cannot be read "
                f"({one_line(error)}): correct doc_to_target in the task's YAML",
                task=self.name,
            ) from error
        if unlabelled and len(unlabelled) == len(items):
            raise TaskError(
                f"task {self.name!r}: none of {len(items)} items of its {items[0].split} split has a right answer "
                "(published test splits often lack them), so all models score 0: use another split, or correct "
                "doc_to_target in the task's YAML",
                task=self.name,
            )

    def _has_score(self, item: Item) -> bool:
        if self.metric.name not in NEED_RIGHT_ANSWER:
            return self.metric.is_loss or self.metric.name == CHOICE_CERTAINTY or self.scores.can_score(item)
        try:
            return self.prompts.names_right_answer(item)
        except Exception as error:  # the author's templates can raise anything
            raise TaskError(
                f"task {self.name!r}: its right answer to item {item.index} of its {item.split} split cannot be read "
                f"({one_line(error)}): correct doc_to_target in the task's YAML",
                task=self.name,
            ) from error

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return the questions of some items of this task, for comparison."""
        return [Question(item.key, self.question(item), item.id) for item in items]

    def shown_questions(self) -> list[Question]:
        """Return the questions of the examples in the prompts built so far, as far as they have one."""
        shown = self.prompts.shown.items()
        return [Question(key, self.documents.question(document)) for key, document in shown if key]

    def check_losses(self, items: Sequence[Item]) -> None:
        """Check that every item has a differentiable loss.

        Raises
        ------
        TaskError
            An item has no right answer.
        """
        for item in items:
            if not self.prompts.names_right_answer(item):
                raise TaskError(
                    f"task {self.name!r}: item {item.index} of its {item.split} split has no right answer, so it has "
                    "no loss to differentiate: write strategy.loss: entropy, or a strategy.kind without gradients, "
                    "such as cma_es",
                    task=self.name,
                )

    def loss_requests(self, item: Item, chat_template: ChatTemplate | None = None) -> tuple[tuple[Request, ...], int]:
        """Return the requests for an item's differentiable loss, and the position of the right one.

        All choices if the item has choices; else the right answer alone, with its generation settings.

        Raises
        ------
        TaskError
            The item has no right answer.
        """
        self.check_losses([item])
        found = self.prompts.right_answer(item, chat_template)
        assert found is not None
        requests = self.prompts.requests(item, chat_template)
        if self.kind == "multiple_choice":
            return requests, requests.index(found)
        return (replace(found, generation=requests[0].generation),), 0

    def scorer(self, items: Sequence[Item], first: Sequence[int]) -> Scorer:
        """Return a function from the model's answers to the items' scores.

        Parameters
        ----------
        items
            Items of this task whose requests have been built; I of them.
        first
            int[I], the position of each item's first request among the answers; its other requests follow.
        """
        if self.metric.is_loss:
            return loss_scorer(self.metric.name, [self.requests(item)[0].continuation for item in items], first)
        return self.scores.scorer(items, first)

    def answer_extractor(self, items: Sequence[Item], first: Sequence[int]) -> AnswerExtractor:
        """Return a function from the model's answers to its answer to each item, as text; parameters as in `scorer`.

        That is the text which the task's filter leaves, or the position of the choice that the metric prefers, where it
        prefers one, else of the likeliest. Without choices it is the right text if the model would write it. A long
        text is cut and ends in a hash. Empty: the answer is not known, as where the metric only scores the right one.
        """
        if self.metric.is_loss:
            return lambda answers: [answers.texts[at] or "" for at in first]
        return self.scores.answer_extractor(items, first)

    def shown(self, item: Item) -> ItemText:
        """Return an item's question, right answers and choices, for people."""
        return self.documents.shown(self.documents.of(item.split)[item.index])
