"""The requests for an item: prompts with few-shot examples, as `lm_eval.simple_evaluate` builds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import ends_with_whitespace
from lm_eval.defaults import DEFAULT_OTHER_SEED

from fitness.items import Item
from fitness.results import TaskError
from fitness.tasks.documents import Document, Documents
from fitness.tasks.few_shot import CleanSampler
from fitness.tasks.messages import one_line

ChatTemplate = Callable[..., str]


@dataclass(frozen=True)
class Request:
    """One request to the model: the log-likelihood of a continuation, or a text to generate.

    Attributes
    ----------
    context
        The text that the model reads first.
    continuation
        The text to score; None if a text is to be generated.
    generation
        The task's generation settings (`until`, `max_gen_toks`, ...), if a text is to be generated.
    repeats
        How many answers the task's filters expect.
    """

    context: str
    continuation: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1


class Prompts:
    """Prompts of one task; each is built once, with the chat template of the first call."""

    def __init__(self, task: ConfigurableTask, name: str, documents: Documents) -> None:
        self._task = task
        self._name = name
        self._documents = documents
        self._instances: dict[tuple[str, int], list[Any]] = {}
        self.shots: int = task.config.num_fewshot or 0
        self._examples: CleanSampler | None = None
        if self.shots and hasattr(task, "sampler"):
            task.sampler = self._examples = CleanSampler(task.sampler, documents.near_key)

    def hold_out(self, keys: frozenset[str]) -> None:
        """Show no example whose question has one of these near keys; call it before the first prompt is built."""
        if self._examples is not None:
            self._examples.held_out = keys

    @property
    def shown(self) -> Mapping[str, Document]:
        """Documents that prompts built so far show as examples, by the keys of their questions."""
        documents = [] if self._examples is None else self._examples.shown.values()
        return {self._documents.key(document) or "": document for document in documents}

    def requests(self, item: Item, chat_template: ChatTemplate | None = None) -> tuple[Request, ...]:
        """Return the task's requests for one item."""
        self._ensure_built(item, chat_template)
        return tuple(_request(instance, self._name) for instance in self._instances[item.split, item.index])

    def right_answer(self, item: Item, chat_template: ChatTemplate | None = None) -> Request | None:
        """Return the request for the log-likelihood of the right answer; None if the document has no right answer."""
        requests = self.requests(item, chat_template)
        kind = self._task.OUTPUT_TYPE
        if kind == "loglikelihood":
            return requests[0]
        named = self._named_answer(item)
        if named is None:
            return None
        if isinstance(named, int):
            return requests[named]
        delimiter = self._task.config.target_delimiter
        if chat_template is not None:  # as lm-eval puts choices, and answers of examples, behind a turn's beginning
            prefix = self._task.config.gen_prefix
            delimiter = delimiter if prefix and not ends_with_whitespace(prefix) else ""
        return Request(requests[0].context, delimiter + named)

    def names_right_answer(self, item: Item) -> bool:
        """Return whether the document has a right answer; no prompt is built."""
        return self._task.OUTPUT_TYPE == "loglikelihood" or self._named_answer(item) is not None

    def _named_answer(self, item: Item) -> int | str | None:
        """Return the right choice's position, or the right text; None if the document has neither."""
        doc = self._documents.of(item.split)[item.index]
        if self._task.OUTPUT_TYPE == "multiple_choice":
            right = self._documents.right_choice(doc)
            return right if right >= 0 else None
        target = self._task.doc_to_target(doc)
        return target if isinstance(target, str) and target.strip() else None

    def instances(self, split: str, index: int) -> Sequence[Any]:
        """Return lm-eval's requests for an item whose prompt has been built; filters store their results in them."""
        return self._instances[split, index]

    def _ensure_built(self, item: Item, chat_template: ChatTemplate | None) -> None:
        if (item.split, item.index) in self._instances:
            return
        self._task.set_fewshot_seed(DEFAULT_OTHER_SEED)  # as in lm_eval.simple_evaluate
        # An item's examples depend on all draws before it: build the whole split, in order.
        indices = range(len(self._documents.of(item.split))) if self.shots else [item.index]
        with _evaluated_split(self._task, item.split):
            for index in indices:
                self._instances[item.split, index] = self._build(item.split, index, chat_template)

    def _build(self, split: str, index: int, chat_template: ChatTemplate | None) -> list[Any]:
        doc, task, chat = self._documents.of(split)[index], self._task, chat_template is not None
        if self._examples is not None:
            self._examples.asked = self._documents.near_key(doc)
        try:
            context = task.fewshot_context(
                doc,
                num_fewshot=self.shots,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=chat_template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            instances = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(self._name, index, task.config.repeats),
                apply_chat_template=chat,
                chat_template=chat_template,
            )
        except Exception as error:  # the author's templates and functions can raise anything
            raise TaskError(
                f"task {self._name!r}: no prompt could be built for item {index} of its {split} split "
                f"({one_line(error)}): correct the task's YAML, or num_fewshot ({self.shots})",
                task=self._name,
            ) from error
        return instances if isinstance(instances, list) else [instances]


def _request(instance: Any, task: str) -> Request:
    repeats = instance.repeats or 1
    if instance.request_type == "loglikelihood":
        context, continuation = instance.args
        return Request(context, continuation, repeats=repeats)
    if instance.request_type == "generate_until":
        context, generation = instance.args
        return Request(context, generation=generation, repeats=repeats)
    raise TaskError(
        f"task {task!r} has requests of type {instance.request_type}: use a task that scores choices or generates text",
        task=task,
    )


@contextmanager
def _evaluated_split(task: ConfigurableTask, split: str) -> Iterator[None]:
    """Make lm-eval treat `split` as the evaluated one.

    lm-eval leaves the evaluated document out of the few-shot examples only if they come from `config.test_split`.
    """
    config, fewshot = task.config, task.fewshot_cfg
    if split == ("test" if task.has_test_docs() else "validation"):
        yield
        return
    names = {"train": config.training_split, "validation": config.validation_split, "test": config.test_split}
    before = config.test_split, fewshot.split
    config.test_split = names[split]
    fewshot.split = fewshot.split or next(name for name in names.values() if name is not None)
    try:
        yield
    finally:
        config.test_split, fewshot.split = before
