"""The evaluator: scores a model on the items of a suite.

Scores equal those of `lm_eval.simple_evaluate` item for item; tasks, prompts, tokens and batches are built only once.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fitness.items import Item, positions_by_task
from fitness.results import ItemScores, TaskError
from fitness.scoring.answering import Answering, Generations, Loglikelihoods, OwnAnswers
from fitness.scoring.encoding import Encoder
from fitness.scoring.generation import GenerationPlan
from fitness.scoring.loglikelihood import Pair
from fitness.scoring.losses import LossItem, LossPlan
from fitness.tasks.lm_eval_rules import RightTexts, generation_settings, longest_input
from fitness.tasks.loss_metrics import AnswerExtractor, Answers, Scorer

if TYPE_CHECKING:  # lm-eval is imported by the code that loads tasks
    from fitness.tasks.prompts import Request
    from fitness.tasks.suite import TaskSuite

SPECIAL_TOKENS = 8  # more than a tokenizer adds to a text
LOOKED_AT = 500  # items of a task that are looked at for the longest
CHECKED = 4  # requests with which answers are checked
CHECKED_TOKENS = 8  # tokens of a prompt's end whose log-likelihood is asked for that
PLANS_KEPT = 16  # item sets whose batches stay in memory; the least recently used is dropped first


class Evaluator:
    """Scores models on items of a suite.

    Parameters
    ----------
    suite
        The tasks.
    tokenizer
        The transformers tokenizer of all models to score.
    batch_size
        Sequences per forward pass; >= 1.
    max_length
        Longest sequence in tokens. None: what the config of the model allows.
    device
        Torch device of the models.
    answering
        What computes the answers; None: the models themselves.
    """

    def __init__(
        self,
        suite: TaskSuite,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        max_length: int | None = None,
        device: str = "cpu",
        answering: Answering | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        self.suite = suite
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device
        self.answering = answering or OwnAnswers()
        self._encoder = Encoder(tokenizer)
        self._chat: Callable[..., str] | None = None
        if suite.apply_chat_template:
            if not getattr(tokenizer, "chat_template", None):
                raise TaskError("the tokenizer has no chat template: set fitness.apply_chat_template: false")
            self._chat = self._encoder.apply_chat_template
        self._encoded: dict[str, tuple[tuple[Request, Any], ...]] = {}
        self._plans: OrderedDict[tuple[tuple[str, ...], int], _Plan] = OrderedDict()

    def prepare(self, items: Sequence[str], model: Any = None) -> None:
        """Build prompts and tokens of these items; with a model or a `max_length` also their batches.

        `score` does this when needed; call it before the search to see errors early.

        Raises
        ------
        TaskError
            An item is unknown, or a prompt cannot be built, tokenised or fitted into `max_length`.
        """
        if self.max_length is not None or model is not None:
            plan = self._plan(tuple(items), self._limit(model))
            if model is not None:
                self.answering.prepare(model, plan.sample)
            return
        for item in items:
            self._encode(self.suite.item(item))

    def cut_items(self, items: Sequence[str], max_length: int) -> int:
        """Return how many items have a request that is longer than `max_length` tokens, so that its beginning is cut.

        Raises
        ------
        TaskError
            A prompt cannot be built or tokenised.
        """
        return sum(
            any(self._is_cut(request, max_length) for request in self.requests(self.suite.item(item))) for item in items
        )

    def _is_cut(self, request: Request, max_length: int) -> bool:
        """Whether a request does not fit; short texts are not tokenised, because a token takes a byte or more."""
        settings = request.generation
        room = max_length
        if request.continuation is None:
            end = self._encoder.tokenizer.eos_token
            room -= generation_settings(settings, end)[0]
        if len((request.context + (request.continuation or "")).encode()) + SPECIAL_TOKENS <= room:
            return False
        if request.continuation is None:
            return len(self._encoder.prompt(request.context)) > room
        context, continuation = self._encoder.pair(request.context, request.continuation)
        return len(context) + len(continuation) > max_length + 1  # the last token is not an input

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._encoder.tokenizer

    def requests(self, item: Item) -> tuple[Request, ...]:
        """Return how an item is asked, with the chat template where one is used; TaskError if that cannot be built."""
        return self.suite.task(item.task).requests(item, self._chat)

    def use_batch_size(self, batch_size: int) -> None:
        """Use batches of another size from here on."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        self.batch_size = batch_size
        self._plans.clear()

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        """Score a model.

        Parameters
        ----------
        model
            A transformers causal language model in evaluation mode, on this evaluator's device.
        items
            Item ids.
        want_answers
            Whether to return the model's answers as text too.

        Returns
        -------
        ItemScores
            In the order of `items`.

        Raises
        ------
        TaskError
            See `prepare`.
        ValueError
            The model produced NaN.

        Notes
        -----
        An item for which a metric has no value scores 0, and is counted in the flaws. Without `want_answers`, a text
        ends once it can only be wrong; it is then not counted among those that ended at the length limit.
        """
        asked = tuple(items)
        if not asked:
            raise ValueError("no items to score: give at least one item id")
        plan = self._plan(asked, self._limit(model))
        started = time.perf_counter()
        taken = self.answering.taken(model)
        taking = time.perf_counter() - started
        scores, seconds, told, flaws = plan.run(taken, want_answers)
        return ItemScores(asked, scores, taking + seconds, told, flaws)

    def close(self) -> None:
        """End what computes the answers, if it was started; may be called twice."""
        self.answering.close()

    def losses(
        self,
        model: Any,
        items: Sequence[str],
        whole: Sequence[str] = (),
        *,
        batch_size: int | None = None,
        entropy: bool = False,
    ) -> LossPlan:
        """Return the differentiable losses of some items, with the tasks' weights in the objective.

        Their weighted sum is the mean loss of each task, averaged over tasks by their weights.

        Parameters
        ----------
        model
            Whose inputs they are; for the entropy of texts that are generated, it also answers.
        items
            Item ids.
        whole
            All items whose mean is wanted, if others give the losses of the rest.
        batch_size
            Sequences per pass; None: the evaluator's.
        entropy
            Whether the losses are entropies, which need no right answers.

        Raises
        ------
        TaskError
            See `prepare`; or an item has no right answer.
        """
        counts = Counter(self.suite.item(item).task for item in whole or items)
        total = sum(self.suite.weights[task] for task in counts)
        asked = [self.suite.item(item) for item in items]
        requests = self._unlabelled(model, asked) if entropy else [self._labelled(item) for item in asked]
        return LossPlan(
            [
                LossItem(pairs, right, self.suite.weights[item.task] / total / counts[item.task], item.id)
                for item, (pairs, right) in zip(asked, requests, strict=True)
            ],
            max_length=self._limit(model),
            batch_size=batch_size or self.batch_size,
            device=self.device,
            entropy=entropy,
        )

    def _labelled(self, item: Item) -> tuple[tuple[Pair, ...], int]:
        requests, right = self.suite.task(item.task).loss_requests(item, self._chat)
        return tuple(self._encoder.pair(*self._answered(request)) for request in requests), right

    def _unlabelled(self, model: Any, items: Sequence[Item]) -> list[tuple[tuple[Pair, ...], int]]:
        """Return each item's choices; where there are none, the model's own answer."""
        requests = [self.requests(item) for item in items]
        written = [at for at, own in enumerate(requests) if own[0].continuation is None]
        answers = GenerationPlan(
            [self._encoder.prompt(requests[at][0].context) for at in written],
            [requests[at][0].generation for at in written],
            self._encoder.tokenizer,
            max_length=self._limit(model),
            batch_size=self.batch_size,
            device=self.device,
        ).run(model)[0]
        for at, answer in zip(written, answers, strict=True):
            requests[at] = (replace(requests[at][0], continuation=answer),)
        return [(tuple(self._encoder.pair(*self._answered(each)) for each in own), 0) for own in requests]

    def longest_items(self, items: Sequence[str], count: int) -> tuple[str, ...]:
        """Return the `count` items of each task with the longest requests; where there are many, some are looked at."""

        def size(item: str) -> int:
            requests = self.requests(self.suite.item(item))
            return max(len(request.context) + len(request.continuation or "") for request in requests)

        found: list[str] = []
        for places in positions_by_task(items).values():
            looked_at = [items[at] for at in places[:: max(1, len(places) // LOOKED_AT)]]
            found += sorted(looked_at, key=size)[-count:]
        return tuple(found)

    def _answered(self, request: Request) -> tuple[str, str]:
        """Return context and continuation; a stop string or the end-of-sequence token follows a generated answer."""
        assert request.continuation is not None
        if not request.generation:
            return request.context, request.continuation
        stops = request.generation.get("until") or []
        end = ([stops] if isinstance(stops, str) else [*stops, self._encoder.tokenizer.eos_token or ""])[0]
        return request.context, request.continuation + end

    def _limit(self, model: Any) -> int:
        if self.max_length is not None:
            return self.max_length
        return longest_input(model.config, self._encoder.tokenizer)

    def _plan(self, items: tuple[str, ...], limit: int) -> _Plan:
        key = (items, limit)
        if key not in self._plans:
            self._plans[key] = self._new_plan(items, limit)
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _new_plan(self, ids: tuple[str, ...], limit: int) -> _Plan:
        items = [self.suite.item(item) for item in ids]
        encoded = [self._encode(item) for item in items]
        first = np.cumsum([0, *(len(requests) for requests in encoded)])[:-1]
        asked = [request for requests in encoded for request in requests]
        scored = [at for at, (request, _) in enumerate(asked) if request.continuation is not None]
        written = [at for at, (request, _) in enumerate(asked) if request.continuation is None]
        pairs: list[Pair] = [asked[at][1] for at in scored]
        prompts = [asked[at][1] for at in written]
        common: dict[str, Any] = {"max_length": limit, "batch_size": self.batch_size, "device": self.device}
        owner = np.repeat(np.arange(len(items)), [len(requests) for requests in encoded]).tolist()
        return _Plan(
            size=len(asked),
            tasks=[item.task for item in items],
            owner=owner,
            cut={owner[at] for at, pair in enumerate(asked) if self._loses_its_beginning(*pair, limit)},
            scored=np.array(scored, np.int64),
            written=written,
            sample=_shortest([*pairs, *map(_ending, prompts)], limit),
            loglikelihood=self.answering.loglikelihoods(pairs, **common),
            generation=self.answering.generations(
                prompts,
                [asked[at][0].generation for at in written],
                self._encoder.tokenizer,
                right=[self._right_texts(items[owner[at]]) for at in written],
                **common,
            ),
            scorers=self._scorers(items, first),
        )

    def _right_texts(self, item: Item) -> RightTexts | None:
        return self.suite.task(item.task).scores.right_texts(item)

    def _loses_its_beginning(self, request: Request, tokens: Any, limit: int) -> bool:
        if request.continuation is None:
            return len(tokens) > limit - generation_settings(request.generation, self.tokenizer.eos_token)[0]
        return len(tokens[0]) + len(tokens[1]) > limit + 1  # the last token is not an input

    def _scorers(self, items: Sequence[Item], first: npt.NDArray[np.int64]) -> list[_Scorer]:
        """One entry per task: the places of its items, and the functions from answers to scores and to texts."""
        scorers: list[_Scorer] = []
        for task, where in positions_by_task(item.id for item in items).items():
            loaded, asked, starts = self.suite.task(task), [items[at] for at in where], first[where].tolist()
            scorers.append(
                (np.array(where), loaded.scorer(asked, starts), partial(loaded.answer_extractor, asked, starts))
            )
        return scorers

    def _encode(self, item: Item) -> tuple[tuple[Request, Any], ...]:
        if item.id not in self._encoded:
            requests = self.requests(item)
            self._encoded[item.id] = tuple((request, self._tokens(request)) for request in requests)
        return self._encoded[item.id]

    def _tokens(self, request: Request) -> Pair | tuple[int, ...]:
        if request.continuation is None:
            return self._encoder.prompt(request.context)
        return self._encoder.pair(request.context, request.continuation)


_Scorer = tuple[npt.NDArray[np.int64], Scorer, Callable[[], AnswerExtractor]]
"""Places of a task's items, the function to their scores, and one that makes their answer extractor."""


def _ending(prompt: tuple[int, ...]) -> Pair:
    """Return a prompt as a request for the log-likelihood of its last tokens."""
    at = max(1, len(prompt) - CHECKED_TOKENS)
    return prompt[:at], prompt[at:]


def _shortest(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Return the shortest requests that a model reads whole, each once."""
    fitting = {pair for pair in pairs if pair[1] and len(pair[0]) + len(pair[1]) <= limit}
    return sorted(fitting, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))[:CHECKED]


class _Plan:
    """Everything that is the same for all candidates asked the same items.

    Attributes
    ----------
    sample
        A few requests to check answers with.
    """

    def __init__(
        self,
        *,
        size: int,
        tasks: Sequence[str],
        owner: Sequence[int],
        cut: Collection[int],
        scored: npt.NDArray[np.int64],
        written: Sequence[int],
        sample: Sequence[Pair],
        loglikelihood: Loglikelihoods,
        generation: Generations,
        scorers: Sequence[_Scorer],
    ) -> None:
        self.sample = sample
        self._size, self._scored, self._written = size, scored, written
        self._tasks, self._owner, self._cut = tasks, owner, cut
        self._loglikelihood, self._generation, self._scorers = loglikelihood, generation, scorers

    def run(
        self, model: Any, tell: bool = False
    ) -> tuple[npt.NDArray[np.float32], float, tuple[str, ...], dict[str, dict[str, int]]]:
        """Return scores float32[I], seconds in the model, the items' answers if they are wanted, and their flaws."""
        loglikelihood = np.full(self._size + 1, -np.inf)
        greedy = np.zeros(self._size, np.bool_)
        texts: list[str | None] = [None] * self._size
        loglikelihood[self._scored], greedy[self._scored], seconds = self._loglikelihood.run(model)
        generated, more_seconds, truncated = self._generation.run(model, whole=tell)
        for at, text in zip(self._written, generated, strict=True):
            texts[at] = text
        answers = Answers(loglikelihood, greedy, texts)
        scores = np.zeros(sum(len(where) for where, *_ in self._scorers), np.float32)
        told = [""] * len(scores) if tell else []
        for where, scorer, answer_extractor in self._scorers:
            scores[where] = scorer(answers)
            if tell:
                for at, text in zip(where.tolist(), answer_extractor()(answers), strict=True):
                    told[at] = text
        unscored = np.flatnonzero(np.isnan(scores)).tolist()
        scores[unscored] = 0.0
        flaws = {
            "cut": self._counts(self._cut),
            "truncated": self._counts({self._owner[self._written[at]] for at in truncated}),
            "unscored": self._counts(unscored),
        }
        for task, count in flaws["unscored"].items():
            if count == self._tasks.count(task):
                raise TaskError(
                    f"task {task!r}: its metric gave no number for any of {count} items: choose a metric that is a "
                    "number for each item",
                    task=task,
                )
        return scores, seconds + more_seconds, tuple(told), {kind: counts for kind, counts in flaws.items() if counts}

    def _counts(self, places: Collection[int]) -> dict[str, int]:
        """Return how many of some items each task has."""
        return dict(Counter(self._tasks[at] for at in sorted(places)))
