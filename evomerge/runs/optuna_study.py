"""A run as a study of Optuna, for optuna-dashboard and Optuna's own plots.

One trial per candidate, with the same number. Its values are the objectives, all maximised, under their tasks' names.
A candidate that violates a minimum score is an infeasible trial: the violation is its constraint. A candidate that was
stopped early, and a step of a gradient search, which has a loss on another scale, is a pruned trial: Optuna
compares only complete ones. What Optuna has no word for is in the user attributes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.extras import require
from evomerge.runs.environment import GeneRecord
from evomerge.runs.event_rows import Asked, Event, Told
from evomerge.runs.frames import objective_names, task_scores
from evomerge.runs.log_file import RunError
from search_spaces.spaces.genes import Choice, Gene, Integer

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

Kind = Literal["sqlite", "journal"]
STATES = {"ok": "COMPLETE", "stopped": "PRUNED", "step": "PRUNED", "failed": "FAIL"}
"""State of a trial by the status of its candidate; one without a status is running."""

CONSTRAINTS = "constraints"
"""Where Optuna's own samplers leave a trial's constraints, for Optuna and its dashboard: above 0 is infeasible."""


def write(
    file: Path,
    kind: Kind,
    name: str,
    events: Iterable[tuple[float, Event]],
    genes: Sequence[GeneRecord],
    tasks: Sequence[str] = (),
) -> int:
    """Write a study to a new file, and return how many trials it has.

    Parameters
    ----------
    file
        Where to write; an empty file or none.
    kind
        A database, or Optuna's journal.
    name
        Of the study.
    events
        Of the run, with their times.
    genes
        Of its space.
    tasks
        Of the search, in the order of the objectives.

    Raises
    ------
    RunError
        If the run does not know its genes.
    MissingExtraError
        If Optuna is not installed.
    """
    require("optuna", "optuna", "--optuna")
    if not genes:
        raise RunError(
            "--optuna: the run does not name its genes, because there are too many or because an older evomerge began "
            "it; write --table, which has their numbers"
        )
    asked: dict[int, tuple[float, Asked]] = {}
    told: dict[int, tuple[float, Told]] = {}
    for at, event in events:
        if isinstance(event, Asked):
            asked[event.candidate.id] = at, event
        elif isinstance(event, Told):
            told[event.candidate] = at, event
    scored = [one.evaluation for _, one in told.values() if one.evaluation.status == "ok"]
    objectives = max((len(evaluation.objectives) for evaluation in scored), default=1)
    with _storage(file, kind) as storage:
        import optuna

        study = optuna.create_study(storage=storage, study_name=name, directions=["maximize"] * objectives)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objective_names(tasks, objectives)))
        space = {record.name: record.gene() for record in genes}
        distributions = {name: _distribution(gene) for name, gene in space.items()}
        study.add_trials(
            _trial(number, one, told.get(identity), space, distributions, objectives)
            for number, (identity, one) in enumerate(asked.items())
        )
    return len(asked)


@contextmanager
def _storage(file: Path, kind: Kind) -> Iterator[BaseStorage]:
    """Open a storage, and close its file; Optuna's own lines about it are left out."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        if kind == "journal":
            from optuna.storages.journal import JournalFileBackend

            yield optuna.storages.JournalStorage(JournalFileBackend(str(file)))
            return
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        try:
            yield storage
        finally:
            storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(gene: Gene) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(gene, Choice):
        return CategoricalDistribution(gene.options)
    if isinstance(gene, Integer):
        return IntDistribution(gene.smallest, gene.largest)
    return FloatDistribution(gene.low, gene.high)


def _trial(
    number: int,
    proposed: tuple[float, Asked],
    scored: tuple[float, Told] | None,
    space: Mapping[str, Gene],
    distributions: Mapping[str, BaseDistribution],
    objectives: int,
) -> FrozenTrial:
    """Return a candidate as a trial; one whose objectives are not numbers has failed, as Optuna sees it."""
    from optuna.trial import FrozenTrial, TrialState

    at, asked = proposed
    candidate = asked.candidate
    state = TrialState.RUNNING
    values: list[float] | None = None
    violation = 0.0
    if scored is not None:
        evaluation = scored[1].evaluation
        state = TrialState[STATES[evaluation.status]]
        violation = evaluation.violation
        if state == TrialState.COMPLETE:
            values = list(evaluation.objectives)
            if len(values) != objectives or not all(map(math.isfinite, values)):
                state, values = TrialState.FAIL, None
    params = {
        name: gene.value(min(max(x, gene.low), gene.high))
        for (name, gene), x in zip(space.items(), candidate.genotype.tolist(), strict=True)
    }
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=values,
        datetime_start=datetime.fromtimestamp(at),
        datetime_complete=None if scored is None else datetime.fromtimestamp(scored[0]),
        params=params,
        distributions=dict(distributions),
        user_attrs=_attributes(asked, None if scored is None else scored[1]),
        system_attrs={CONSTRAINTS: [violation]} if violation else {},
        intermediate_values={},
    )


def _attributes(asked: Asked, told: Told | None) -> dict[str, Any]:
    """Return what else is known of a candidate, as JSON can hold it."""
    one = asked.candidate
    found: dict[str, Any] = {
        "candidate": one.id,
        "generation": one.generation,
        "kind": one.kind,
        "parents": list(one.parents),
        "recipe": asked.recipe,
    }
    if told is None:
        return found
    evaluation = told.evaluation
    found |= {"status": evaluation.status, "items": len(evaluation.items), "repeated": told.cached}
    found |= {f"seconds.{stage}": seconds for stage, seconds in evaluation.seconds.items()}
    found |= {f"task.{task}": score for task, score in task_scores(evaluation).items()}
    if evaluation.reason:
        found["error"] = evaluation.reason
    if evaluation.violation:
        found["violation"] = evaluation.violation
    if evaluation.status == "step" and evaluation.objectives:
        found["loss"] = -evaluation.value
    if evaluation.has_scores and evaluation.objectives:
        found |= {"fitness": evaluation.fitness, "standard_error": evaluation.standard_error}
    return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}
