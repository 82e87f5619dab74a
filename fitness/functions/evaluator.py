"""Scoring models with a function of a user's own: it is called, and what it returns is checked."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fitness.functions.suite import FunctionSuite
from fitness.items import positions_by_task
from fitness.results import ItemScores
from fitness.scoring.shortage import no_memory
from fitness.tasks.code import same_folder
from fitness.tasks.messages import one_line

REHEARSED = 2
"""Items that the function is asked before the search begins, so that its mistakes show then."""


class FunctionError(ValueError):
    """An own function that raised, or did not return a score; one line that names it."""


class FunctionEvaluator:
    """Scores models on the items of a function; what a worker uses of an `Evaluator`.

    Parameters
    ----------
    suite
        The function, its scores and its items.
    tokenizer
        Passed to the function.
    batch_size
        Passed to the function if it has a parameter of this name; halved where memory runs out.
    max_length
        Without effect.
    device
        Torch device of the models.
    """

    def __init__(
        self,
        suite: FunctionSuite,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        max_length: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.use_batch_size(batch_size)
        self.suite = suite
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = device

    def use_batch_size(self, batch_size: int) -> None:
        """Pass another batch size from here on."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        self.batch_size = batch_size

    def prepare(self, items: Sequence[str], model: Any = None) -> None:
        """Check the items; with a model also what the function returns for it, on a few of them.

        Raises
        ------
        TaskError
            An item is unknown.
        FunctionError
            See `score`.
        """
        for item in items:
            self.suite.item(item)
        if model is not None and items:
            self.score(model, items[:REHEARSED])

    def close(self) -> None:
        """Nothing was started."""

    def requests(self, item: object) -> tuple[()]:
        """Return no requests: what the function asks is not known."""
        return ()

    def score(self, model: Any, items: Sequence[str], *, want_answers: bool = False) -> ItemScores:
        """Score a model; there are never answers, whether they are wanted or not.

        Parameters
        ----------
        model
            A transformers causal language model on this evaluator's device; the function gets it in evaluation mode,
            without gradients.
        items
            Item ids. The function is called once, with every item that one of them stands for.

        Raises
        ------
        TaskError
            An item is unknown.
        FunctionError
            The function raised, or its scores are not finite numbers, one per item, for each of the tasks.
        ValueError
            No items are asked.
        """
        asked = [self.suite.item(item) for item in items]
        if not asked:
            raise ValueError("no items to score: give at least one item id")
        places = list(dict.fromkeys((item.split, item.index) for item in asked))
        position = {place: at for at, place in enumerate(places)}
        of_place = {(item.split, item.index): item for item in asked}
        payloads = None
        if not self.suite.scores_whole_models:
            payloads = copy.deepcopy([self.suite.payload(of_place[place]) for place in places])  # it may change them
        model.eval()
        before, started = _state(model), time.perf_counter()
        returned = self._call(model, payloads)
        seconds = time.perf_counter() - started
        if _state(model) != before:
            raise FunctionError(
                f"{self.suite.function.name} changed the model (its weights, their data type, device or layers), "
                "which may change later scores; work on a copy (copy.deepcopy)"
            )
        scores = np.empty(len(asked), np.float32)
        for task, where in positions_by_task(items).items():
            values = self._values(returned, task, None if payloads is None else len(places))
            chosen = [position[asked[at].split, asked[at].index] for at in where] if payloads is not None else [0]
            scores[where] = self.suite.signs[task] * values[chosen]
        return ItemScores(tuple(items), scores, seconds)

    def _call(self, model: Any, payloads: list[Any] | None) -> Any:
        function = self.suite.function
        settings = {"batch_size": self.batch_size} if function.takes_batch_size else {}
        arguments = (model, self.tokenizer) if payloads is None else (model, self.tokenizer, payloads)
        try:
            with torch.no_grad(), same_folder():
                return function.call(*arguments, **settings)
        except (Exception, SystemExit) as error:  # the user's code can raise anything, and may be a script's
            if isinstance(error, Exception) and no_memory(error):
                raise  # the worker tries a smaller batch
            raise FunctionError(f"{function.name} raised {one_line(error)}") from error

    def _values(self, returned: Any, task: str, count: int | None) -> npt.NDArray[np.float64]:
        """Return a task's scores, float64[count], or one for the whole model."""
        name = self.suite.function.name
        value = self._of_task(returned, task)
        try:
            if value is None or isinstance(value, str | bytes):  # numpy takes them for NaN and for numbers
                raise TypeError
            values = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, np.float64)
        except (TypeError, ValueError, OverflowError):
            kind = type(value).__name__
            wanted = "a number" if count is None else "a list of numbers"
            raise FunctionError(f"{name} returned {kind} for {task}; return {wanted}") from None
        if count is None and values.ndim:
            raise FunctionError(
                f"{name} returned {values.size} numbers for {task} and has no items; return one number, or name items "
                "in fitness.function_items"
            )
        if count is not None and values.shape != (count,):
            raise FunctionError(
                f"{name} returned {values.size} scores for {task}, of {count} items; return one per item, in order"
            )
        values = np.atleast_1d(values)
        with np.errstate(over="ignore"):
            wrong = np.flatnonzero(~np.isfinite(values.astype(np.float32)))  # as they are kept
        if wrong.size:
            bad = "NaN" if np.isnan(values[wrong[0]]) else "infinity"
            where = "" if count is None else f" at position {wrong[0]} of its items"
            raise FunctionError(f"{name} returned {bad} for {task}{where}; return finite numbers")
        return values

    def _of_task(self, returned: Any, task: str) -> Any:
        name, tasks = self.suite.function.name, list(self.suite.weights)
        if not isinstance(returned, Mapping):
            if len(tasks) > 1:
                kind = type(returned).__name__
                raise FunctionError(f"{name} returned {kind}; return a mapping with {', '.join(tasks)}")
            return returned
        if set(returned) != set(tasks):
            odd = ", ".join(sorted(map(str, set(returned) ^ set(tasks))))
            raise FunctionError(
                f"{name} returned a mapping that differs from fitness.tasks in {odd}; name the same in both"
            )
        return returned[task]


def _state(model: torch.nn.Module) -> list[tuple[object, ...]]:
    """Return the name, place and type of each parameter, and how often each one and each buffer was written to."""
    parameters: list[tuple[object, ...]] = [
        (name, values.data_ptr(), values.dtype, values.device, _version(values))
        for name, values in model.named_parameters()
    ]
    return [*parameters, *((_version(values),) for values in model.buffers())]


def _version(values: torch.Tensor) -> int:
    """Return how often torch has counted a write; inference tensors are not counted."""
    return 0 if values.is_inference() else values._version
