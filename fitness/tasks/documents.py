"""A task's documents: its splits, which of them a search may use, and the items they consist of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from fitness.items import Item, ItemText, prompt_key
from fitness.overlap import plain_text
from fitness.results import TaskError
from fitness.tasks.config import TaskConfig
from fitness.tasks.lm_eval_rules import seeded
from fitness.tasks.messages import one_line

if TYPE_CHECKING:  # lm-eval is imported by the code that loads tasks
    from lm_eval.api.task import ConfigurableTask

Document: TypeAlias = dict[str, Any]
"""One row of a data set, as lm-eval gives it."""

LONGEST_TEXT = 20_000
"""Characters that are kept of a question or an answer for people."""

NO_ANSWER = -100  # as in lm-eval: equals no choice


class Documents:
    """The documents of one task; a split is loaded when it is first needed.

    Attributes
    ----------
    task
        lm-eval's task.
    """

    def __init__(self, task: ConfigurableTask, name: str) -> None:
        self.task = task
        self._name = name
        self._loaded: dict[str, list[Document]] = {}

    def of(self, split: str) -> Sequence[Document]:
        """Return all documents of a split, in order."""
        if split not in self._loaded:
            docs = {
                "train": self.task.training_docs,
                "validation": self.task.validation_docs,
                "test": self.task.test_docs,
            }[split]
            with seeded():
                self._loaded[split] = list(docs())
        return self._loaded[split]

    def items(self, split: str) -> tuple[Item, ...]:
        """Return all items of a split, in order."""
        return tuple(Item.of(self._name, split, index, self.question(doc)) for index, doc in enumerate(self.of(split)))

    def right_choice(self, doc: Document) -> int:
        """Return the index of a document's right choice; `NO_ANSWER` if it has none."""
        choices = self.task.doc_to_choice(doc)
        gold = self.task.doc_to_text(doc) if self.task.multiple_input else self.task.doc_to_target(doc)
        if isinstance(gold, str):
            return choices.index(gold) if gold in choices else NO_ANSWER
        return int(gold) if gold is not None and 0 <= gold < len(choices) else NO_ANSWER

    def has_right_answer(self, doc: Document) -> bool:
        """Whether an answer can be right by lm-eval's own metrics: the label is one of the choices, the text is there.

        Data sets mark documents without an answer by −1, by null, or by a label that no choice has.
        """
        if self.task.OUTPUT_TYPE != "multiple_choice":
            return self.task.doc_to_target(doc) is not None
        if not self.task.multiple_target:
            return self.right_choice(doc) != NO_ANSWER
        gold, count = self.task.doc_to_target(doc), len(self.task.doc_to_choice(doc))
        return any(0 <= each < count for each in (gold if isinstance(gold, list) else [gold]))

    def results(self, doc: Document, answers: list[Any]) -> Any:
        """Return what the task's metrics give for answers to a document.

        Code of the task gets a copy: what it changes in a document would count for all that is scored after it.
        """
        return self.task.process_results(
            copy.deepcopy(doc) if callable(self.task.config.process_results) else doc, answers
        )

    def targets(self, doc: Document) -> object:
        """Return what a document's scores are compared with: its target, and its choices where it has some.

        An error of the author's code counts as an answer: the same one is raised in each session.
        """
        try:
            target = self.task.doc_to_target(doc)
            return [target, self.task.doc_to_choice(doc) if self.task.config.doc_to_choice else None]
        except Exception as error:  # the author's templates and functions can raise anything
            return one_line(error)

    def shown(self, doc: Document) -> ItemText:
        """Return a document for people; what the author's code fails to tell is left out."""
        told = self.targets(doc)
        target, choices = told if isinstance(told, list) else (None, None)
        texts = [str(choice)[:LONGEST_TEXT] for choice in choices or ()]
        if texts and self.task.multiple_input:
            target = self.right_choice(doc)
        named = target if isinstance(target, list | tuple) else [target]
        right = [
            texts[each] if isinstance(each, int) and 0 <= each < len(texts) else str(each)[:LONGEST_TEXT]
            for each in named
            if each is not None and each != NO_ANSWER
        ]
        are_choices = self.task.OUTPUT_TYPE == "multiple_choice"
        return ItemText(self.question(doc)[:LONGEST_TEXT], tuple(right), tuple(texts) if are_choices else ())

    @cached_property
    def _asks_by_choices(self) -> bool:
        """Whether all documents have one text ("Which sentence is right?"), so that their choices tell them apart."""
        if not self.task.config.doc_to_choice:
            return False
        first, *others = self.of("test" if self.task.has_test_docs() else "validation")
        text = self.task.doc_to_text(first)
        return bool(others) and all(self.task.doc_to_text(doc) == text for doc in others)

    def splits(self) -> tuple[str, ...]:
        """Return which of train, validation and test this task has."""
        present = {
            "train": self.task.has_training_docs(),
            "validation": self.task.has_validation_docs(),
            "test": self.task.has_test_docs(),
        }
        return tuple(split for split, there in present.items() if there)

    def search_split(self, entry: TaskConfig, allow_test_split: bool) -> str:
        """Return the split of the search items; see `TaskConfig.search_split`."""
        has = self.splits()
        split: str = entry.search_split
        if split == "auto":
            split = "validation" if "validation" in has else "test"
        self._require(split, "search_split")
        if split == "test" and not allow_test_split:
            raise TaskError(
                f"task {self._name!r}: the search would use items of its test split, which makes its published score "
                "meaningless: set fitness.allow_test_split: true to accept that, or name another search_split "
                f"(the task has {', '.join(has)})",
                task=self._name,
            )
        return split

    def final_split(self, split: str) -> str:
        """Return the split to score a finished model on; auto: test if there is one, else validation, as in lm-eval."""
        if split == "auto":
            split = "test" if "test" in self.splits() else "validation"
        self._require(split, "split")
        return split

    def held_out_items(self, split: str, search: Sequence[Item]) -> tuple[Item, ...]:
        """Return all items of the held-out split, which must not be the search items' split."""
        self._require(split, "held_out")
        if any(item.split == split for item in search):
            raise TaskError(
                f"task {self._name!r}: the whole {split} split is used for search items: "
                "set fitness.held_out to a fraction such as 0.5 or to another split",
                task=self._name,
            )
        return self.items(split)

    def _require(self, split: str, key: str) -> None:
        if split not in self.splits():
            raise TaskError(
                f"task {self._name!r} has no {split} split: set {key} to one of {', '.join(self.splits())}",
                task=self._name,
            )

    def key(self, doc: Document) -> str | None:
        """Return the key of a document's question (see `fitness.items.Item`); None where it has no such text.

        Few-shot documents may be written differently and have templates of their own.
        """
        try:
            return prompt_key(self.question(doc))
        except TaskError:
            return None

    def near_key(self, doc: Document) -> str | None:
        """Return a key that nearly equal questions share: the same words, whatever their case and punctuation."""
        try:
            return prompt_key(plain_text(self.question(doc)))
        except TaskError:
            return None

    def question(self, doc: Document) -> str:
        """Return a document's question without few-shot examples; items with equal questions count as the same."""
        try:
            text = self.task.doc_to_text(doc)
            if isinstance(text, str) and text.strip() and not self._asks_by_choices:
                return text
            if self.task.config.doc_to_choice:  # tasks such as Winogrande put the question into the choices
                return "\n".join(
                    [*([text] if isinstance(text, str) and text.strip() else []), *self.task.doc_to_choice(doc)]
                )
            return str(self.task.doc_to_target(doc))
        except Exception as error:
            raise TaskError(
                f"task {self._name!r}: its doc_to_text fails ({one_line(error)}): correct the task's YAML",
                task=self._name,
            ) from error
