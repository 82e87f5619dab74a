"""Metrics that run programs of a model, with the programs in the sandbox: `code_eval`, and functions of task files.

lm-eval's HumanEval and MBPP load `code_eval` of the `evaluate` library, which downloads a script that runs programs in
the driver's own user account. `CodeEval` takes its place: the same arguments, results and time of a program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from math import prod
from pathlib import Path
from typing import Any

import evaluate

from fitness.results import TaskError
from fitness.sandbox.bubblewrap import PROCESSOR_SECONDS, run_program

PROGRAMS_AT_ONCE = 4
"""As many as `code_eval` runs; each takes a core."""

_evaluate_load = evaluate.load


class CodeEval:
    """The metric `code_eval`: how many programs pass their tests."""

    def compute(
        self,
        *,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = PROGRAMS_AT_ONCE,
        timeout: float = PROCESSOR_SECONDS,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run each program with its test.

        Parameters
        ----------
        predictions
            For each of N problems the programs to try.
        references
            N tests.
        k
            Of pass@k; values above the least number of programs are left out.
        num_workers, timeout
            Programs at once, and the seconds of processor time of each.

        Returns
        -------
        rates
            `pass@k`: the chance that one of k programs passes, by the unbiased estimator of Chen et al. 2021,
            "Evaluating Large Language Models Trained on Code", equation 1.
        outcomes
            For each problem its programs, by number: `task_id`, `passed`, `result` and `completion_id`.
        """
        asked = [
            (task, number, f"{program}\n{test}")
            for task, (programs, test) in enumerate(zip(predictions, references, strict=True))
            for number, program in enumerate(programs)
        ]
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            ended = list(pool.map(lambda one: run_program(one[2], seconds=timeout), asked))
        outcomes: dict[int, list[tuple[int, dict[str, Any]]]] = {task: [] for task in range(len(references))}
        for (task, number, _), outcome in zip(asked, ended, strict=True):
            passed = outcome.error is None
            result = "passed" if passed else f"failed: {outcome.error}"
            told = {"task_id": task, "passed": passed, "result": result, "completion_id": number}
            outcomes[task].append((number, told))
        counts = [(len(of), sum(told["passed"] for _, told in of)) for of in outcomes.values()]
        least = min((total for total, _ in counts), default=0)
        rates = {f"pass@{n}": sum(_pass_rate(*count, n) for count in counts) / len(counts) for n in k if n <= least}
        return rates, outcomes


def _pass_rate(total: int, right: int, k: int) -> float:
    """Return the chance that k of `total` programs, drawn without replacement, hold one of the `right` ones."""
    if total - right < k:
        return 1.0
    return 1.0 - prod(1.0 - k / n for n in range(total - right + 1, total + 1))


def _load(path: str, *arguments: Any, **settings: Any) -> Any:
    """`evaluate.load`, except that `code_eval` is the one above."""
    name = str(path).removesuffix(".py").rpartition("/")[2]
    return CodeEval() if name == "code_eval" else _evaluate_load(path, *arguments, **settings)


def use_sandboxed_code_eval() -> None:
    """Make `evaluate.load("code_eval")` return the metric above, in this process, from here on."""
    evaluate.load = _load


def loads_code_eval(function: Callable[..., Any]) -> bool:
    """Whether the file of a function has loaded `code_eval`, at its top."""
    return any(isinstance(value, CodeEval) for value in getattr(function, "__globals__", {}).values())


def sandboxed(functions: Mapping[str, Callable[..., Any]], failed: Callable[[str], Any]) -> dict[str, Any]:
    """Return functions of task files that run programs by means of their own, so that they run in the sandbox.

    A function's file, which may use Python's standard library only, goes in with the arguments as JSON, and the result
    comes out as JSON. What goes wrong inside, limits included, is the program's fault.

    Parameters
    ----------
    functions
        By name.
    failed
        What a call gives that does not return, from the function's name.

    Raises
    ------
    TaskError
        A function's file cannot be run in the sandbox.
    """
    return {name: _in_sandbox(function, failed(name)) for name, function in functions.items()}


def _in_sandbox(function: Callable[..., Any], failed: Any) -> Callable[..., Any]:
    source = _source_of(function)
    tried = run_program(source)
    if tried.error is not None:
        raise TaskError(
            f"the file of its function {function.__name__} runs programs of the model, and cannot run in the sandbox "
            f"({tried.error}): use Python's standard library only, or the metric code_eval"
        )

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        outcome = run_program(source, call=function.__name__, arguments=(arguments, named))
        return failed if outcome.error is not None else outcome.value

    return run


def _source_of(function: Callable[..., Any]) -> str:
    try:
        file = inspect.getsourcefile(function)
        return Path(str(file)).read_text(encoding="utf-8")
    except (OSError, TypeError, UnicodeDecodeError):
        name = getattr(function, "__name__", "?")
        raise TaskError(
            f"its function {name} runs programs of the model and has no file to put into the sandbox: write it in a "
            "Python file beside the task's YAML"
        ) from None
