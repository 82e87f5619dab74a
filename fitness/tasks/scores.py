"""From the model's answers to the items' scores: the task's filter and metric, and faster code for the common ones."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lm_eval.api.task import ConfigurableTask

from fitness.items import Item
from fitness.results import TaskError
from fitness.sandbox.code_eval import PROGRAMS_AT_ONCE
from fitness.tasks.documents import NO_ANSWER, Document, Documents
from fitness.tasks.lm_eval_rules import RightTexts
from fitness.tasks.loss_metrics import (
    CHOICE_CERTAINTY,
    CHOICE_PROBABILITY,
    OF_CHOICES,
    AnswerExtractor,
    Answers,
    Response,
    Scorer,
)
from fitness.tasks.messages import one_line
from fitness.tasks.metrics import Metric, is_number
from fitness.tasks.prompts import Prompts
from fitness.tasks.templates import TemplateLimit

PLAIN_ACCURACIES = ("acc", "acc_norm", "acc_bytes")
LONGEST_ANSWER = 200  # characters kept of an answer for voting; a hash replaces the rest
SCORES_KEPT = 100_000  # scored texts kept per task; bounds the memory, reached after hours

_FAILS = object()  # what a trial gives that raises
_Key = tuple[str, int, tuple[Response, ...]]  # split, index, answers


class TaskScores:
    """Scores the items of one task by one of its own metrics."""

    def __init__(
        self, task: ConfigurableTask, name: str, documents: Documents, prompts: Prompts, metric: Metric
    ) -> None:
        self._task, self._name = task, name
        self._documents, self._prompts, self._metric = documents, prompts, metric
        self._runs_programs = bool(getattr(task, "UNSAFE_CODE", False))
        self._known: dict[_Key, float] = {}

    def scorer(self, items: Sequence[Item], first: Sequence[int]) -> Scorer:
        """Return a function from the model's answers to the scores of I items; see `LoadedTask.scorer`."""
        if self._is_plain_accuracy():
            return self._choices(items, first)
        if self._metric.name in OF_CHOICES:
            choices, sign = self._choices(items, first), np.float32(self._metric.sign)
            read = choices.probability if self._metric.name == CHOICE_PROBABILITY else choices.certainty
            return lambda answers: sign * read(answers)
        if self._is_plain_greedy():
            where = np.array(first)
            return lambda answers: answers.greedy[where].astype(np.float32)

        def score(answers: Answers) -> npt.NDArray[np.float32]:
            counts = [len(self._prompts.instances(item.split, item.index)) for item in items]
            responses = [answers.responses(start, count) for start, count in zip(first, counts, strict=True)]
            return self.of(items, responses)

        return score

    def right_texts(self, item: Item) -> RightTexts | None:
        """Return the only generated texts that have a score; None where the metric may score other texts.

        That is known for lm-eval's own `exact_match` of the whole text. With a filter that reads the text (a pattern),
        with patterns to ignore and with code of the task, any text may score.
        """
        task, options = self._task, dict(self._task._metric_fn_kwargs.get(self._metric.name) or {})
        if (
            task.OUTPUT_TYPE != "generate_until"
            or self._metric.name != "exact_match"
            or getattr(task._metric_fn_list["exact_match"], "__module__", "") != "lm_eval.api.metrics"
            or not self._is_plain(filtered=True)
            or not self._takes_whole_texts()
            or task.config.doc_to_choice is not None
            or not set(options) <= {"ignore_case", "ignore_punctuation", "ignore_numbers"}
        ):
            return None
        target = task.doc_to_target(self._documents.of(item.split)[item.index])
        texts = list(target) if task.multiple_target else [target]
        return RightTexts(tuple(str(text) for text in texts), **{name: bool(value) for name, value in options.items()})

    def _takes_whole_texts(self) -> bool:
        filters = {each["name"]: each["filter"] for each in self._task.config.filter_list or ()}
        return all(step["function"] == "take_first" for step in filters.get(self._metric.filter, ()))

    def can_score(self, item: Item) -> bool:
        """Return whether the task's own code gives the metric as a number for some answer to an item.

        True, too, where the code fails on the answers that are tried.
        """
        if self._is_plain() or self._runs_programs:  # thousands of programs take minutes
            return True
        doc = self._documents.of(item.split)[item.index]
        values = [self._tried(doc, answers) for answers in self._trials(doc)]
        known = [value for value in values if value is not _FAILS]
        return not known or any(map(is_number, known))

    def without_right_answer(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that count as wrong whatever a model answers, as far as lm-eval's own code judges them."""
        if not self._is_plain(filtered=True) or self._metric.name == CHOICE_CERTAINTY or self._metric.is_loss:
            return []
        docs = (self._documents.of(item.split)[item.index] for item in items)
        return [item for item, doc in zip(items, docs, strict=True) if not self._documents.has_right_answer(doc)]

    def _trials(self, doc: Document) -> list[list[Any]]:
        """Return answers to try: a wrong one and the right one, or as near as can be known."""
        if self._task.OUTPUT_TYPE == "generate_until":
            try:
                return [[""], [str(self._task.doc_to_target(doc))]]
            except Exception:  # the author's template; scoring does not always need it
                return [[""]]
        try:
            count = len(self._task.doc_to_choice(doc)) if self._task.config.doc_to_choice else 1
        except Exception:
            return []
        count *= 2 if self._metric.name == "acc_mutual_info" else 1
        return [[(-1.0, greedy)] * count for greedy in (False, True)]

    def _tried(self, doc: Document, answers: list[Any]) -> object:
        try:
            value: object = self._documents.results(doc, answers).get(self._metric.name)
            return value
        except Exception:  # the author's code may take other answers only
            return _FAILS

    def answer_extractor(self, items: Sequence[Item], first: Sequence[int]) -> AnswerExtractor:
        """Return a function from the model's answers to its answers to I items; see `LoadedTask.answer_extractor`."""
        if self._is_plain_accuracy():
            choices = self._choices(items, first)
            return lambda answers: [str(choice) for choice in choices.chosen(answers)]
        if self._task.OUTPUT_TYPE != "generate_until":
            return lambda answers: [self._likeliest(*at, answers) for at in zip(items, first, strict=True)]

        def tell(answers: Answers) -> list[str]:
            told = []
            for item, start in zip(items, first, strict=True):
                instances = self._prompts.instances(item.split, item.index)
                self._filter([(item.split, item.index, answers.responses(start, len(instances)))])
                told.append(_short([each.filtered_resps[self._metric.filter] for each in instances]))
            return told

        return tell

    def _likeliest(self, item: Item, start: int, answers: Answers) -> str:
        """Return the position of the likeliest choice; without choices, the right text if the model would write it."""
        instances = self._prompts.instances(item.split, item.index)
        if self._task.OUTPUT_TYPE == "multiple_choice":
            choices = len(self._task.doc_to_choice(self._documents.of(item.split)[item.index]))
            return str(int(answers.loglikelihood[start : start + min(choices, len(instances))].argmax()))
        return str(instances[0].args[1]) if answers.greedy[start] else ""

    @property
    def vote_obstacle(self) -> str | None:
        """Why several models cannot vote on an answer; None if they can: equal answers have equal scores."""
        if self._metric.is_loss:
            return "is a number that differs between models and not an answer"
        if self._task.OUTPUT_TYPE == "generate_until" or self._is_plain_accuracy():
            return None
        return "depends on log-likelihoods and not on one chosen answer"

    def of(self, items: Sequence[Item], responses: Sequence[tuple[Response, ...]]) -> npt.NDArray[np.float32]:
        """Return the scores by the task's filter and metric, NaN where it has no value; known texts are looked up."""
        keys = [(item.split, item.index, given) for item, given in zip(items, responses, strict=True)]
        if self._task.OUTPUT_TYPE != "generate_until" or len(self._known) > SCORES_KEPT:
            self._known.clear()  # log-likelihoods hardly ever repeat
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            self._filter(new)
            for key, score in zip(new, self._item_scores(new), strict=True):
                self._known[key] = score
        return np.array([self._known[key] for key in keys], np.float32)

    def _filter(self, keys: Sequence[_Key]) -> None:
        """Run the chosen filter over the responses; it stores its results in the instances, as in lm-eval."""
        batch = []
        for split, index, responses in keys:
            for instance, response in zip(self._prompts.instances(split, index), responses, strict=True):
                instance.resps = [response] * (instance.repeats or 1)
                instance.filtered_resps = {}
                batch.append(instance)
        ensemble = next(e for e in self._task._filters if e.name == self._metric.filter)
        try:
            ensemble.apply(batch)
        except TemplateLimit as error:
            raise TaskError(f"task {self._name!r}: {error}", task=self._name) from None

    def _item_scores(self, keys: Sequence[_Key]) -> Iterable[float]:
        """Return the scores of filtered responses; those of programs that run in the sandbox, several at once."""
        if not self._runs_programs:
            return [self._item_score(split, index) for split, index, _ in keys]
        with ThreadPoolExecutor(min(PROGRAMS_AT_ONCE, os.cpu_count() or 1)) as pool:
            return list(pool.map(lambda key: self._item_score(key[0], key[1]), keys))

    def _item_score(self, split: str, index: int) -> float:
        instances = sorted(self._prompts.instances(split, index), key=lambda instance: instance.idx)
        doc = self._documents.of(split)[index]
        value = self._value(doc, [i.filtered_resps[self._metric.filter] for i in instances], split, index)
        missing = value is None or (is_number(value) and math.isnan(float(value)))
        if missing and self._metric.sign > 0:
            return math.nan  # no score: counted, and 0
        if missing or not is_number(value):
            raise TaskError(
                f"task {self._name!r}: metric {self._metric.name!r} gave {value!r} for item {index} of its {split} "
                "split: choose a metric that is a number for each item",
                task=self._name,
            )
        return self._metric.sign * float(value)

    def _value(self, doc: Document, answers: list[Any], split: str, index: int) -> object:
        """Return what the metric gives for answers to a document; None where the task has no value for it."""
        if self._is_plain(filtered=True) and not self._documents.has_right_answer(doc):
            return None
        try:
            value: object = self._documents.results(doc, answers).get(self._metric.name)
            return value
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the worker tries a smaller batch
        except Exception as error:  # the author's code can raise anything
            raise TaskError(
                f"task {self._name!r}: its metric fails on an answer to item {index} of its {split} split "
                f"({one_line(error)}): correct the code of the task",
                task=self._name,
            ) from error

    def _choices(self, items: Sequence[Item], first: Sequence[int]) -> _Choices:
        docs = [self._documents.of(item.split)[item.index] for item in items]
        return _Choices(self._task, self._documents, self._metric.name, docs, first)

    def _is_plain(self, filtered: bool = False) -> bool:
        """Whether lm-eval's own code turns responses into metrics, without any code of the task but its filters."""
        task = self._task
        return (
            type(task).process_results is ConfigurableTask.process_results
            and type(task).construct_requests is ConfigurableTask.construct_requests
            and not callable(task.config.process_results)
            and (filtered or task.config.filter_list is None)
        )

    def _is_plain_accuracy(self) -> bool:
        return (
            self._task.OUTPUT_TYPE == "multiple_choice"
            and self._metric.sign > 0
            and self._metric.name in PLAIN_ACCURACIES
            and self._is_plain()
            and not self._task.multiple_target
            and "acc_mutual_info" not in self._task.aggregation()  # appends requests without context
        )

    def _is_plain_greedy(self) -> bool:
        plain = self._metric.name == "acc" and self._metric.sign > 0 and self._is_plain()
        return self._task.OUTPUT_TYPE == "loglikelihood" and plain


class _Choices:
    """lm-eval's `acc`, `acc_norm` and `acc_bytes`, and the right choice's probability, of many items at once.

    `process_results` takes as long as the forward pass of a tiny model; a test checks that the two agree.
    """

    def __init__(
        self, task: ConfigurableTask, documents: Documents, metric: str, docs: Sequence[Document], first: Sequence[int]
    ) -> None:
        choices = [task.doc_to_choice(doc) for doc in docs]
        width = max(len(c) for c in choices)
        self.request_IC = np.full((len(docs), width), -1)  # -1: the answers' trailing -inf
        self.length_IC = np.ones((len(docs), width))
        labelled = metric != CHOICE_CERTAINTY  # which needs no right answers, so there may be none
        self.right_I = np.array([documents.right_choice(doc) if labelled else NO_ANSWER for doc in docs])
        for row, (start, texts) in enumerate(zip(first, choices, strict=True)):
            self.request_IC[row, : len(texts)] = range(start, start + len(texts))
            if metric == "acc_norm":
                self.length_IC[row, : len(texts)] = [len(text) for text in texts]
            elif metric == "acc_bytes":
                self.length_IC[row, : len(texts)] = [len(text.encode()) for text in texts]

    def __call__(self, answers: Answers) -> npt.NDArray[np.float32]:
        right_I: npt.NDArray[np.float32] = (self.chosen(answers) == self.right_I).astype(np.float32)
        right_I[self.right_I == NO_ANSWER] = np.nan  # no score: counted, and 0
        return right_I

    def probability(self, answers: Answers) -> npt.NDArray[np.float32]:
        """Return the probability of the right choice among the choices, float32[I]."""
        share_IC = self._shares(answers)
        right_I: npt.NDArray[np.float32] = share_IC[np.arange(len(share_IC)), self.right_I].astype(np.float32)
        return right_I

    def certainty(self, answers: Answers) -> npt.NDArray[np.float32]:
        """Return 1 less the entropy of the choices by that of equally probable ones, float32[I]; 1 for one choice."""
        share_IC = self._shares(answers)
        entropy_I = -(share_IC * np.log(np.maximum(share_IC, np.finfo(np.float64).tiny))).sum(axis=1)
        most_I = np.log(np.maximum(2, (self.request_IC >= 0).sum(axis=1)))
        certain_I: npt.NDArray[np.float32] = np.clip(1 - entropy_I / most_I, 0, 1).astype(np.float32)
        return certain_I

    def _shares(self, answers: Answers) -> npt.NDArray[np.float64]:
        """Return the softmax over the choices' log-likelihoods, float64[I, C]."""
        score_IC = answers.loglikelihood[self.request_IC]
        share_IC = np.exp(score_IC - score_IC.max(axis=1, keepdims=True))
        share_IC /= share_IC.sum(axis=1, keepdims=True)
        shares: npt.NDArray[np.float64] = share_IC
        return shares

    def chosen(self, answers: Answers) -> npt.NDArray[np.int64]:
        """Return the position of the model's preferred choice, int64[I]."""
        score_IC = answers.loglikelihood[self.request_IC] / self.length_IC
        chosen_I: npt.NDArray[np.int64] = score_IC.argmax(axis=1)
        return chosen_I


def _short(filtered: Sequence[object]) -> str:
    """Return one text for an item's filtered responses; equal responses have equal texts."""
    text = filtered[0] if len(filtered) == 1 and isinstance(filtered[0], str) else json.dumps(filtered, default=str)
    assert isinstance(text, str)
    if len(text) <= LONGEST_ANSWER:
        return text
    return f"{text[: LONGEST_ANSWER - 20]} ... {hashlib.sha256(text.encode()).hexdigest()[:15]}"
