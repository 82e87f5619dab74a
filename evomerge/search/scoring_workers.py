"""The workers of a search: from its checked inputs to a pool that scores.

`start_pool` makes the pool that the search file names, `local_worker` one worker in this process. `open_worker` makes a
worker in another process, which opens the models and tasks again and compares them with the driver's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from evomerge.config.search_file import SearchConfig
from evomerge.merging.engine.placement import Share
from evomerge.runs.environment import Environment
from evomerge.runs.run import RunError
from evomerge.search.problem import Problem
from evomerge.search.resuming import check_compute_dtype, other_file
from evomerge.workers.base import Pool, WorkerError, WorkerFactory, WorkerSettings
from evomerge.workers.config import InlineConfig
from evomerge.workers.inline import MergeWorker
from evomerge.workers.start import LocalWorker, Preparation, WorkerInputs
from fitness.functions.loading import FitnessFunction
from fitness.tasks.identity import difference


def start_pool(problem: Problem) -> Pool:
    """Return the workers that the search file names, ready to score: what does not depend on a candidate is done.

    Raises
    ------
    WorkerError
        If they cannot be started.
    DeviceError, PlacementError
        If a device cannot be used, or is too small for the placement that the search file wants.
    """
    workers = problem.config.workers
    values = problem.resolved().model_dump(mode="json")
    factory = WorkerFactory(
        here=lambda settings, share: local_worker(problem, settings, share).ready(),
        elsewhere=partial(open_worker, values, problem.environment(), function=problem.given_function),
        items=len(problem.subset),
    )
    return workers.start(factory)


def local_worker(problem: Problem, settings: WorkerSettings | None = None, share: Share | None = None) -> LocalWorker:
    """Return a worker in this process.

    Parameters
    ----------
    problem
        What it merges and asks.
    settings
        How it computes; None: as the search file's workers do.
    share
        Its share of the memory of its device and of the machine; None: all.
    """
    config = problem.config
    inputs = WorkerInputs(
        {checkpoint.reference: checkpoint for checkpoint in problem.checkpoints.values()},
        config.models[config.base],
        problem.suite,
        config.fitness.batch_size,
        config.fitness.max_length,
        problem.steps.inputs,
        config.fitness.engine,
    )
    space = problem.space
    preparation = Preparation(tuple(space.structures()), space.decode(space.start), _asked_first(problem))
    return LocalWorker(inputs, preparation, settings or config.workers.settings(), share)


def open_worker(
    values: Mapping[str, Any],
    expected: Environment,
    settings: WorkerSettings,
    share: Share,
    *,
    function: FitnessFunction | None = None,
) -> MergeWorker:
    """Return a worker in this process for a search whose driver lives in another one.

    Parameters
    ----------
    values
        The contents of the driver's search file, every `auto` resolved.
    expected
        The driver's `Problem.environment()`: the same sources and items must be found here.
    settings, share
        As for `local_worker`.
    function
        The function that the driver's program has given in place of tasks; None: the search file's.

    Raises
    ------
    WorkerError
        If the models, the tasks or evomerge itself differ from the driver's.
    """
    inline = {key: value for key, value in asdict(settings).items() if key in InlineConfig.model_fields}
    config = SearchConfig.model_validate({**values, "workers": inline})
    problem = Problem(config, scan=False, recorded=expected, function=function)
    _check_same(problem.environment(frozenset(_asked_first(problem))), expected)
    return local_worker(problem, settings, share).ready()


def _asked_first(problem: Problem) -> tuple[str, ...]:
    """Return the items whose prompts a worker builds before the first candidate."""
    return tuple(problem.search_items if problem.needs_sources else problem.subset)


def _check_same(found: Environment, expected: Environment) -> None:
    for name, files in expected.sources.items():
        for there, here in ((found.sources, files), (found.tokenizers, expected.tokenizers[name])):
            file = other_file(here, there.get(name, {}))
            if file is not None:
                raise WorkerError(f"models.{name}: {file} differs from the driver's; put the same files there")
    said = difference(expected.items, found.items)
    if said is not None:
        raise WorkerError(f"fitness.tasks: {said}, compared with the driver; put the same task files there")
    if found.evomerge != expected.evomerge:
        raise WorkerError(f"evomerge is {found.evomerge} there and {expected.evomerge} at the driver")
    for package, version in expected.packages.items():
        if package.startswith("vllm") and found.packages.get(package) != version:
            raise WorkerError(f"{package} is {found.packages.get(package)} there and {version} at the driver")
    try:
        check_compute_dtype(expected, found)
    except RunError as error:
        raise WorkerError(str(error)) from None
