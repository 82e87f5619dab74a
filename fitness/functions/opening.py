"""What scores models, whichever kind a search file names: a suite of items, and an evaluator for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from fitness.config import FitnessConfig
from fitness.functions.evaluator import FunctionEvaluator
from fitness.functions.loading import FitnessFunction, load_function
from fitness.functions.suite import FunctionSuite
from fitness.scoring.answering import Answering
from fitness.scoring.evaluator import Evaluator
from fitness.tasks.code import CodeCheck, allow

if TYPE_CHECKING:
    from fitness.tasks.suite import TaskSuite

Suite: TypeAlias = "TaskSuite | FunctionSuite"
AnyEvaluator: TypeAlias = Evaluator | FunctionEvaluator


def load_suite(
    config: FitnessConfig,
    seed: int,
    check: CodeCheck = allow,
    seen: frozenset[str] = frozenset(),
    function: FitnessFunction | None = None,
) -> Suite:
    """Load the tasks, or the function, and split the items.

    Parameters
    ----------
    config, seed, check, seen
        As for `TaskSuite.load`.
    function
        For kind python: the function that a program has given; None: the one that the file names.

    Raises
    ------
    TaskError
        If something cannot be found or used.
    """
    if config.kind == "python":
        return FunctionSuite(function or load_function(config, check), config, seed, seen)
    from fitness.tasks.suite import TaskSuite  # imports lm-eval

    return TaskSuite.load(config, seed, check, seen)


def evaluator_for(
    suite: Suite,
    tokenizer: Any,
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    device: str = "cpu",
    answering: Answering | None = None,
) -> AnyEvaluator:
    """Return the evaluator of a suite; parameters and errors as those of `Evaluator`."""
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "device": device}
    if isinstance(suite, FunctionSuite):
        return FunctionEvaluator(suite, tokenizer, **settings)
    return Evaluator(suite, tokenizer, **settings, answering=answering)
