"""lm-eval's tasks behind one adapter: none of lm-eval's types leaves this module.

Tasks are loaded once. Their prompts are what `lm_eval.simple_evaluate` builds, their scores what the tasks'
own filters and metrics say, one number per item. Deviations from lm-eval, each on purpose:

- Prompts do not depend on the subset. With few-shot examples drawn at random, lm-eval draws other examples
  for other subsets; here an item keeps the examples it gets when lm-eval evaluates its whole split.
- Any split can be scored, not only the one that lm-eval would choose; an item of another split is never its
  own few-shot example.
- Only metrics with a number for each item, averaged, are accepted: the search, paired tests and racing need them.
  Metrics of the whole set (F1, BLEU, perplexity) are refused. One that is better when lower (a refusal rate) must
  be named, and counts negatively.
- Three metrics are ours (`fitness.own_metrics`): the loss of the right answer, in nats or bits per byte, and the
  length of what is generated.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
from lm_eval import utils as lm_eval_utils
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager

from fitness.config import FitnessConfig, Split, TaskConfig
from fitness.evaluation import TaskError
from fitness.items import Item, ItemPool
from fitness.own_metrics import OF_THE_RIGHT_ANSWER, OWN_METRICS, Answers, Response, Scorer, own_scorer

ChatTemplate = Callable[..., str]

PLAIN_ACCURACIES = ("acc", "acc_norm", "acc_bytes")
SCORES_KEPT = 100_000  # scored texts per task; a bound on memory, reached after hours


@dataclass(frozen=True)
class Request:
    """One question to the model: a continuation's log-likelihood, or a text to generate.

    Attributes
    ----------
    context
        What the model reads first.
    continuation
        Text to score; None when a text is to be generated.
    generation
        The task's generation settings (`until`, `max_gen_toks`, ...) in that case.
    repeats
        Answers that the task's filters expect.
    """

    context: str
    continuation: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1


class TaskSuite:
    """The tasks of a search with their items; needs neither a tokenizer nor a model.

    Attributes
    ----------
    pool
        Search and held-out items.
    weights
        Task name to weight.
    kinds
        Task name to lm-eval's output type: `multiple_choice`, `loglikelihood` or `generate_until`.
    metrics
        Task name to the metric scored, as lm-eval writes it: `name,filter`.
    apply_chat_template
        Whether prompts go through the tokenizer's chat template.
    """

    def __init__(self, tasks: Sequence[LoadedTask], pool: ItemPool, config: FitnessConfig) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._items = {
            item.id: item for side in (pool.search, pool.held_out) for items in side.values() for item in items
        }
        self.pool = pool
        self.apply_chat_template = config.apply_chat_template
        self.weights: Mapping[str, float] = {task.task: task.weight for task in config.tasks}
        self.kinds: Mapping[str, str] = {task.name: task.kind for task in tasks}
        self.metrics: Mapping[str, str] = {task.name: f"{task.metric},{task.filter}" for task in tasks}

    @classmethod
    def load(cls, config: FitnessConfig, seed: int) -> TaskSuite:
        """Load the tasks and split their items.

        Parameters
        ----------
        config
            The tasks and how to measure them.
        seed
            Decides which items are held out when `config.held_out` is a fraction.

        Raises
        ------
        TaskError
            A task, split or metric does not exist or cannot be used; the message says what to change.
        """
        with _quiet(), _templates_compiled_once():
            tasks = [
                LoadedTask(task, entry, config.num_fewshot)
                for task, entry in zip(_load_tasks(config), config.tasks, strict=True)
            ]
            search = {
                task.name: task.items(task.search_split(entry, config.allow_test_split))
                for task, entry in zip(tasks, config.tasks, strict=True)
            }
            held_out: dict[str, tuple[Item, ...]] | float
            if isinstance(config.held_out, float):
                held_out = config.held_out
            else:
                held_out = {t.name: t.held_out_items(config.held_out, search[t.name]) for t in tasks}
            return cls(tasks, ItemPool.build(search, held_out, seed), config)

    @classmethod
    def whole(cls, config: FitnessConfig, split: Literal["auto"] | Split = "auto") -> TaskSuite:
        """Load the tasks to score a finished model: all items of one split, nothing held out.

        Parameters
        ----------
        config
            The tasks; their `search_split`, `config.subset` and `config.held_out` are not used.
        split
            Which items; auto: test if the task has one, else validation, as lm-eval does.

        Raises
        ------
        TaskError
            See `load`.
        """
        with _quiet(), _templates_compiled_once():
            tasks = [
                LoadedTask(task, entry, config.num_fewshot)
                for task, entry in zip(_load_tasks(config), config.tasks, strict=True)
            ]
            return cls(
                tasks,
                ItemPool({task.name: task.items(task.final_split(split)) for task in tasks}, {}),
                config,
            )

    def digest(self) -> str:
        """Hash of the tasks' items, answers included, and of what is asked and scored: equal where scores compare."""
        hashed = hashlib.sha256()
        for task in self._tasks.values():
            hashed.update(task.description().encode())
        return hashed.hexdigest()

    def item(self, item_id: str) -> Item:
        """The item with this id; TaskError when there is none."""
        try:
            return self._items[item_id]
        except KeyError:
            raise TaskError(f"no item {item_id!r}: take ids from the pool of the same search file") from None

    def task(self, name: str) -> LoadedTask:
        """The loaded task of that name."""
        return self._tasks[name]


class LoadedTask:
    """One lm-eval task: documents in, requests out; responses in, one score per item out."""

    def __init__(self, task: ConfigurableTask, entry: TaskConfig, num_fewshot: int | None) -> None:
        _check_usable(task, entry.task)
        _set_fewshot(task, num_fewshot)
        _remember_templates(task)
        self._task = task
        self.name = entry.task
        self.kind: str = task.OUTPUT_TYPE
        self.shots: int = task.config.num_fewshot or 0
        self._docs: dict[str, list[dict]] = {}
        self._instances: dict[tuple[str, int], list[Any]] = {}
        self._scores: dict[tuple[str, int, tuple[Response, ...]], float] = {}
        self.metric, self.filter = self._choose_metric(entry.metric)
        own = self.metric in OWN_METRICS
        self._sign = 1.0 if own or self._task.higher_is_better().get(self.metric, True) else -1.0

    def description(self) -> str:
        """Everything that the scores of this task follow from, besides the model, as JSON text."""
        described = [self.name, self.kind, self.metric, self.filter, self.shots, self._docs]
        return json.dumps(described, sort_keys=True, default=str)

    # --- items ---

    def splits(self) -> tuple[str, ...]:
        """Which of train, validation and test this task has."""
        present = {
            "train": self._task.has_training_docs(),
            "validation": self._task.has_validation_docs(),
            "test": self._task.has_test_docs(),
        }
        return tuple(split for split, there in present.items() if there)

    def search_split(self, entry: TaskConfig, allow_test_split: bool) -> str:
        """The split that search items come from; see `TaskConfig.search_split`."""
        has = self.splits()
        split: str = entry.search_split
        if split == "auto":
            split = "validation" if "validation" in has else "test"
        self._require(split, "search_split")
        if split == "test" and not allow_test_split:
            raise TaskError(
                f"task {self.name!r}: the search would use items of its test split, and its published score "
                "would mean nothing afterwards: set fitness.allow_test_split: true to accept that, or name "
                f"another search_split (the task has {', '.join(has)})"
            )
        return split

    def final_split(self, split: str) -> str:
        """The split to score a finished model on; see `TaskSuite.whole`."""
        if split == "auto":
            split = "test" if "test" in self.splits() else "validation"
        self._require(split, "split")
        return split

    def held_out_items(self, split: str, search: Sequence[Item]) -> tuple[Item, ...]:
        """All items of the held-out split, which must not be the search items' split."""
        self._require(split, "held_out")
        if any(item.split == split for item in search):
            raise TaskError(
                f"task {self.name!r}: its search items are the whole {split} split: "
                "set fitness.held_out to a fraction such as 0.5 or to another split"
            )
        return self.items(split)

    def _require(self, split: str, key: str) -> None:
        if split not in self.splits():
            raise TaskError(f"task {self.name!r} has no {split} split: set {key} to one of {', '.join(self.splits())}")

    def items(self, split: str) -> tuple[Item, ...]:
        """All items of a split, in its order."""
        return tuple(
            Item.of(self.name, split, index, _prompt(self._task, doc))
            for index, doc in enumerate(self._documents(split))
        )

    def _documents(self, split: str) -> list[dict]:
        if split not in self._docs:
            docs = {
                "train": self._task.training_docs,
                "validation": self._task.validation_docs,
                "test": self._task.test_docs,
            }[split]
            self._docs[split] = list(docs())
        return self._docs[split]

    # --- requests ---

    def requests(self, item: Item, chat_template: ChatTemplate | None = None) -> tuple[Request, ...]:
        """What to ask the model for one item; built once, `chat_template` is that of the first call."""
        requests = tuple(_request(instance, self.name) for instance in self._instances_of(item, chat_template))
        if self.metric in OF_THE_RIGHT_ANSWER:
            return (self._right_answer(item, requests),)
        return requests

    def _right_answer(self, item: Item, requests: tuple[Request, ...]) -> Request:
        """The request for the log-likelihood of the right answer alone."""
        if self.kind == "loglikelihood":
            return requests[0]
        doc = self._documents(item.split)[item.index]
        if self.kind == "multiple_choice":
            gold = _gold(self._task, doc, self._task.doc_to_choice(doc))
            if gold >= 0:
                return requests[gold]
        else:
            target = self._task.doc_to_target(doc)
            if isinstance(target, str) and target.strip():
                return Request(requests[0].context, self._task.config.target_delimiter + target)
        raise TaskError(
            f"task {self.name!r}: item {item.index} of its {item.split} split names no right answer, and metric "
            f"{self.metric!r} is its loss: use another metric"
        )

    def _instances_of(self, item: Item, chat_template: ChatTemplate | None) -> list[Any]:
        if (item.split, item.index) not in self._instances:
            self._task.set_fewshot_seed(DEFAULT_OTHER_SEED)  # as in lm_eval.simple_evaluate
            # The examples of an item follow from all draws before it: build the whole split, in order.
            indices = range(len(self._documents(item.split))) if self.shots else [item.index]
            with _evaluated_split(self._task, item.split):
                for index in indices:
                    self._instances[item.split, index] = self._build(item.split, index, chat_template)
        return self._instances[item.split, item.index]

    def _build(self, split: str, index: int, chat_template: ChatTemplate | None) -> list[Any]:
        doc, task, chat = self._documents(split)[index], self._task, chat_template is not None
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
                metadata=(self.name, index, task.config.repeats),
                apply_chat_template=chat,
                chat_template=chat_template,
            )
        except Exception as error:  # templates and functions of the task's author run here
            raise TaskError(
                f"task {self.name!r}: no prompt could be built for item {index} of its {split} split "
                f"({_one_line(error)}): correct the task's YAML, or num_fewshot ({self.shots})"
            ) from error
        return instances if isinstance(instances, list) else [instances]

    # --- scores ---

    def _choose_metric(self, asked: str | None) -> tuple[str, str]:
        """Name of the metric and of the filter; the first one usable when none is asked for."""
        if asked in OWN_METRICS:
            return asked, self._check_own(asked)
        filters = [ensemble.name for ensemble in self._task._filters]
        name, _, chosen = (asked or "").partition(",")
        name, chosen = name.strip(), chosen.strip() or filters[0]
        if chosen not in filters:
            raise TaskError(
                f"task {self.name!r} has no filter {chosen!r}: "
                f"name {_nearest(chosen, filters)} after the comma of metric"
            )
        known = list(self._task.aggregation())
        obstacles = {metric: self._obstacle(metric, named=metric == name) for metric in known}
        usable = [metric for metric, obstacle in obstacles.items() if obstacle is None]
        remedy = f"set metric to one of {', '.join(usable)}" if usable else "use another task"
        if name and name not in known:
            raise TaskError(
                f"task {self.name!r} has no metric {name!r}: did you mean {_nearest(name, usable or known)}? "
                f"It has {', '.join(known)}"
            )
        if name and obstacles[name] is not None:
            raise TaskError(f"task {self.name!r}: metric {name!r} {obstacles[name]}: {remedy}")
        if not usable:
            why = "; ".join(f"{metric} {obstacle}" for metric, obstacle in obstacles.items())
            raise TaskError(f"task {self.name!r} has no metric to search with ({why}): {remedy}")
        return name or usable[0], chosen

    def _check_own(self, metric: str) -> str:
        """Refuse a metric of ours that this kind of task cannot have; return the filter, which is none."""
        if metric == "answer_length" and self.kind != "generate_until":
            raise TaskError(f"task {self.name!r} generates no text that answer_length could measure: use answer_loss")
        if metric in OF_THE_RIGHT_ANSWER and self.kind == "multiple_choice" and self._task.multiple_target:
            raise TaskError(f"task {self.name!r} has several right answers, {metric} wants one: use another metric")
        return "none"

    def _obstacle(self, metric: str, named: bool) -> str | None:
        """Why a metric cannot be the score of single items; None if it can."""
        if self._task.aggregation()[metric] is not get_aggregation("mean"):
            return "is computed from all items together and has no value for a single one"
        if not self._task.higher_is_better().get(metric, True) and not named:
            return "is better when lower, and so has to be named"
        trial = self._trial(metric)
        if trial is not None and not _is_number(trial):
            return f"gives {type(trial).__name__} instead of a number for an item"
        return None

    def _trial(self, metric: str) -> object | None:
        """The metric's value for an arbitrary answer; None when that cannot be told before scoring."""
        split = "test" if self._task.has_test_docs() else "validation"  # lm-eval insists on one of them
        doc = self._documents(split)[0]
        try:
            if self.kind == "generate_until":
                return self._task.process_results(doc, [""]).get(metric)
            count = len(self._task.doc_to_choice(doc)) if self._task.config.doc_to_choice else 1
            count *= 2 if metric == "acc_mutual_info" else 1
            return self._task.process_results(doc, [(-1.0, False)] * count).get(metric)
        except Exception:  # the task's own code may not like such an answer
            return None

    def scorer(self, items: Sequence[Item], first: Sequence[int]) -> Scorer:
        """A function from the model's answers to the items' scores.

        Parameters
        ----------
        items
            Items of this task whose requests have been built; I of them.
        first
            int[I], the position of each item's first request among the answers; the others follow it.
        """
        if self.metric in OWN_METRICS:
            return own_scorer(self.metric, [self.requests(item)[0].continuation for item in items], first)
        if self._is_plain_accuracy():
            docs = [self._documents(item.split)[item.index] for item in items]
            return _PlainAccuracy(self._task, self.metric, docs, first)
        if self._is_plain_greedy():
            where = np.array(first)
            return lambda answers: answers.greedy[where].astype(np.float32)

        def score(answers: Answers) -> npt.NDArray[np.float32]:
            counts = [len(self._instances[item.split, item.index]) for item in items]
            responses = [answers.responses(start, count) for start, count in zip(first, counts, strict=True)]
            return self._score(items, responses)

        return score

    def _is_plain(self) -> bool:
        """Whether lm-eval's own code turns responses into metrics, with nothing of the task's in between."""
        task = self._task
        return (
            type(task).process_results is ConfigurableTask.process_results
            and type(task).construct_requests is ConfigurableTask.construct_requests
            and not callable(task.config.process_results)
            and task.config.filter_list is None
        )

    def _is_plain_accuracy(self) -> bool:
        return (
            self.kind == "multiple_choice"
            and self._sign > 0
            and self.metric in PLAIN_ACCURACIES
            and self._is_plain()
            and not self._task.multiple_target
            and "acc_mutual_info" not in self._task.aggregation()  # appends requests without context
        )

    def _is_plain_greedy(self) -> bool:
        return self.kind == "loglikelihood" and self.metric == "acc" and self._sign > 0 and self._is_plain()

    def _score(self, items: Sequence[Item], responses: Sequence[tuple[Response, ...]]) -> npt.NDArray[np.float32]:
        """Apply the task's filter and metric; texts seen before are looked up."""
        keys = [(item.split, item.index, given) for item, given in zip(items, responses, strict=True)]
        if self.kind != "generate_until" or len(self._scores) > SCORES_KEPT:
            self._scores.clear()  # log-likelihoods do not come twice
        new = [key for key in dict.fromkeys(keys) if key not in self._scores]
        if new:
            self._filter(new)
            for key in new:
                self._scores[key] = self._item_score(key[0], key[1])
        return np.array([self._scores[key] for key in keys], np.float32)

    def _filter(self, keys: Sequence[tuple[str, int, tuple[Response, ...]]]) -> None:
        """Run the chosen filter over the responses; results are left in the instances, as lm-eval does."""
        batch = []
        for split, index, responses in keys:
            for instance, response in zip(self._instances[split, index], responses, strict=True):
                instance.resps = [response] * (instance.repeats or 1)
                instance.filtered_resps = {}
                batch.append(instance)
        ensemble = next(e for e in self._task._filters if e.name == self.filter)
        ensemble.apply(batch)

    def _item_score(self, split: str, index: int) -> float:
        instances = sorted(self._instances[split, index], key=lambda instance: instance.idx)
        doc = self._documents(split)[index]
        metrics = self._task.process_results(doc, [i.filtered_resps[self.filter] for i in instances])
        value = metrics.get(self.metric)
        if not _is_number(value):
            raise TaskError(
                f"task {self.name!r}: metric {self.metric!r} gave {value!r} for item {index} of its {split} "
                "split: set metric to one that is a number for each item"
            )
        return self._sign * float(value)


class _PlainAccuracy:
    """lm-eval's `acc`, `acc_norm` and `acc_bytes` of many items at once.

    `process_results` costs as much as the forward pass of a tiny model; a test holds the two equal.
    """

    def __init__(self, task: ConfigurableTask, metric: str, docs: Sequence[dict], first: Sequence[int]) -> None:
        choices = [task.doc_to_choice(doc) for doc in docs]
        width = max(len(c) for c in choices)
        self.request_IC = np.full((len(docs), width), -1)  # -1: the answers' trailing -inf
        self.length_IC = np.ones((len(docs), width))
        self.gold_I = np.array([_gold(task, doc, c) for doc, c in zip(docs, choices, strict=True)])
        for row, (start, texts) in enumerate(zip(first, choices, strict=True)):
            self.request_IC[row, : len(texts)] = range(start, start + len(texts))
            if metric == "acc_norm":
                self.length_IC[row, : len(texts)] = [len(text) for text in texts]
            elif metric == "acc_bytes":
                self.length_IC[row, : len(texts)] = [len(text.encode()) for text in texts]

    def __call__(self, answers: Answers) -> npt.NDArray[np.float32]:
        score_IC = answers.loglikelihood[self.request_IC] / self.length_IC
        return (score_IC.argmax(axis=1) == self.gold_I).astype(np.float32)


def _gold(task: ConfigurableTask, doc: dict, choices: Sequence[str]) -> int:
    """Index of the right choice; -100, which never matches, when the document names none."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else -100
    return int(gold) if gold < len(choices) else -100


def _load_tasks(config: FitnessConfig) -> list[ConfigurableTask]:
    """The named tasks, in order: from the given folders, else from lm-eval's own thousands (about 15 s)."""
    folders = [Path(folder).expanduser() for folder in config.include_path]
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"include_path: {folder} is not a folder: name one that holds task YAML files")
        if next(folder.glob("**/*.yaml"), None) is None:
            raise TaskError(f"include_path: {folder} holds no .yaml file: name a folder of task YAML files")
    managers = [_task_manager(folders, include_defaults=False)] if folders else []
    wanted = [task.task for task in config.tasks]
    if not managers or any(name not in managers[0].task_index for name in wanted):
        managers.append(_task_manager(folders, include_defaults=True))
    return [_load_task(name, managers) for name in wanted]


def _task_manager(folders: Sequence[Path], *, include_defaults: bool) -> TaskManager:
    return TaskManager(include_path=[str(f) for f in folders], include_defaults=include_defaults)


def _load_task(name: str, managers: Sequence[TaskManager]) -> ConfigurableTask:
    manager = next((m for m in managers if name in m.task_index), None)
    if manager is None:
        names = sorted({known for m in managers for known in m.all_subtasks})
        raise TaskError(
            f"no task {name!r}: did you mean {_nearest(name, names)}? "
            "Name an lm-eval task, or the folder of your own with fitness.include_path"
        )
    if name not in manager.all_subtasks:
        raise TaskError(f"{name!r} is a group or tag of tasks: list its tasks one by one")
    try:
        loaded: ConfigurableTask = manager.load([name])["tasks"][name]
    except Exception as error:  # YAML, data set and functions of the task's author
        raise TaskError(
            f"task {name!r} could not be loaded ({_one_line(error)}): "
            "check its YAML and that its data set is on this machine or can be downloaded"
        ) from error
    return loaded


def _check_usable(task: Any, name: str) -> None:
    if not isinstance(task, ConfigurableTask):
        raise TaskError(f"task {name!r} is Python code without a YAML configuration: use a YAML task")
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"task {name!r} runs code that the model writes, evomerge never does: use another task")
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name!r} needs images or sound: use a text task")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise TaskError(f"task {name!r} measures perplexity, which has no score per item: use another task")
    settings = task.config.generation_kwargs or {}
    if settings.get("do_sample") or settings.get("num_beams", 1) > 1:
        raise TaskError(
            f"task {name!r} samples or searches with beams: set do_sample: false and num_beams: 1 in its "
            "generation_kwargs, so that a candidate's score does not depend on chance"
        )


def _set_fewshot(task: ConfigurableTask, num_fewshot: int | None) -> None:
    """lm-eval's rule: a task that says 0 keeps 0, others take the user's number, the default is 0."""
    if num_fewshot is not None and task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)


def _remember_templates(task: ConfigurableTask) -> None:
    """Let the task render each template of a document once; lm-eval compiles it anew for every metric.

    Measured: 0.4 ms per item and candidate, more than a tiny model's forward pass.
    """
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, _remembered(getattr(task, name)))


def _remembered(render: Callable[..., Any]) -> Callable[..., Any]:
    cache: dict[int, tuple[dict, Any]] = {}  # by identity; holding the document keeps its id taken

    def remembered(doc: dict, template: Any = None) -> Any:
        if template is not None:
            return render(doc, template)
        known = cache.get(id(doc))
        if known is None:
            known = cache[id(doc)] = (doc, render(doc))
        return known[1]

    return remembered


@contextmanager
def _evaluated_split(task: ConfigurableTask, split: str) -> Iterator[None]:
    """Let lm-eval take `split` for the one it evaluates.

    It leaves the evaluated document out of the few-shot examples only if they come from `config.test_split`.
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


def _request(instance: Any, task: str) -> Request:
    repeats = instance.repeats or 1
    if instance.request_type == "loglikelihood":
        context, continuation = instance.args
        return Request(context, continuation, repeats=repeats)
    if instance.request_type == "generate_until":
        context, generation = instance.args
        return Request(context, generation=generation, repeats=repeats)
    raise TaskError(f"task {task!r} asks for {instance.request_type}: use a task that scores choices or generates text")


def _prompt(task: ConfigurableTask, doc: dict) -> str:
    """The question of a document, without few-shot examples: what makes two items the same."""
    try:
        text = task.doc_to_text(doc)
        if isinstance(text, str) and text.strip():
            return text
        if task.config.doc_to_choice:  # tasks such as Winogrande put the question into the choices
            return "\n".join(task.doc_to_choice(doc))
        return str(task.doc_to_target(doc))
    except Exception as error:
        raise TaskError(
            f"task {task.config.task!r}: its doc_to_text fails ({_one_line(error)}): correct the task's YAML"
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, (Real, np.bool_))


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known[:3])
    return " or ".join(repr(other) for other in close) or "another one"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) < 200 else text[:200] + ' ...'}"


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Let lm-eval compile a Jinja template once, not once per document (0.5 ms each, most of loading)."""
    environment = lm_eval_utils.env
    environment.from_string = lru_cache(maxsize=256)(environment.from_string)  # on the object: hides the method
    try:
        yield
    finally:
        del environment.from_string


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from libraries while tasks load; errors still come."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
