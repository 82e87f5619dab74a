"""Bayesian optimisation by Optuna's samplers, by their names: `kind: optuna:TPE`, `optuna:GP`.

A study in memory holds the trials; a gene is a parameter of its own kind: a float, a whole number or a category. The
sampler has a seed of its own, drawn from the strategy's generator, so the same asks and tells give the same trials:
that is how a run is resumed. `evomerge export RUN --optuna FILE` writes the study.

`TPE` models good and other candidates by kernel densities (Bergstra et al. 2011), over all genes at once; `GP` is a
Gaussian process with the expected improvement of noisy results. Both are for up to some twenty genes and a few hundred
candidates: the time of a proposal grows with the candidates so far, of `GP` with their cube.

A failed candidate is a failed trial, which samplers leave out. One that violates a constraint is told as worse than
the worst that violates none, by its violation.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.extras import require
from evomerge.files.messages import nearest, reason
from evomerge.strategies.base import Candidate, Evaluated, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.initial_population import initial_population
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import INFEASIBLE, Evaluation
from search_spaces.spaces.genes import Choice, Gene, Integer
from search_spaces.spaces.space import SearchSpace

PREFIX = "optuna:"
SAMPLERS = ("TPE", "GP", "CmaEs", "QMC", "NSGAII", "Random")
"""Those that search any space for one objective; the others need a grid, or all values of it."""
GP_GENES = 64
"""Genes above which a proposal of the Gaussian process takes longer than a model."""
STARTUP = {"TPE", "GP"}
"""Samplers that begin with random trials."""


@register_strategy
class OptunaConfig(StrategyConfig):
    """Bayesian optimisation by a sampler of Optuna, written `kind: optuna:NAME` (needs the extra `optuna`)."""

    warm_start_type = WarmStartPopulation
    as_stage = False
    kind_argument = "sampler"

    kind: Literal["optuna"] = "optuna"
    sampler: str = "TPE"
    """`TPE`, `GP`, `CmaEs`, `QMC`, `NSGAII` or `Random`; `kind: optuna:GP` is short for `sampler: GP`."""
    startup: int = Field(default=10, ge=1, le=100_000)
    """Random candidates before the first model, of `TPE` and `GP`; the first candidates of the space count."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked and how many candidates a warm start may load."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings, after a trial of the sampler on the space.

        Raises
        ------
        ValueError
            If Optuna is not installed or has no such sampler, the sampler raises an error with the installed packages,
            or it is the Gaussian process and there are too many genes.
        """
        if self.sampler not in SAMPLERS:
            hint = nearest(self.sampler, SAMPLERS) or "TPE"
            raise ValueError(
                f"strategy.kind: {PREFIX}{self.sampler} is none of {', '.join(SAMPLERS)}; write {PREFIX}{hint}"
            )
        if self.sampler == "GP" and space.dimension > GP_GENES:
            raise ValueError(
                f"strategy.kind: {PREFIX}GP is for up to {GP_GENES} genes and the space has {space.dimension}; write "
                f"fewer, or {PREFIX}TPE or cma_es"
            )
        require("optuna", "optuna", f"strategy.kind: {PREFIX}{self.sampler}")
        try:
            trial = Optuna(space, 0, self.model_copy(update={"startup": 1, "warm_start": None}))
            for number in range(4):
                (candidate,) = trial.ask(1)
                trial.tell([Evaluated(candidate.id, Evaluation("ok", (float(number),), (0.0,)))])
        except Exception as error:  # anything that a package of the sampler raises
            raise ValueError(
                f"strategy.kind: {PREFIX}{self.sampler} fails with the installed packages ({reason(error)}); write "
                f"{PREFIX}TPE or cma_es"
            ) from error
        return self

    def build(self, space: SearchSpace, seed: int) -> Optuna:
        """Build the strategy."""
        return Optuna(space, seed, self)


class Optuna(Strategy):
    """Steady state: it learns from results one by one; trials that still run count as they do in Optuna."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: OptunaConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self._trials: dict[int, Any] = {}  # of the candidates that have not been told
        self._worst = math.inf  # score of those that violate no constraint
        optuna = require("optuna", "optuna", f"strategy.kind: {PREFIX}{config.sampler}")
        self._states = optuna.trial.TrialState
        with _quiet(optuna):
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler(optuna))
            self._parameters = {f"{at}": _distribution(optuna, gene) for at, gene in enumerate(space.genes)}
            for point in initial_population(space, config.warm_start, config.population):
                self._study.enqueue_trial(self._values(point))
        self._optuna = optuna

    def _sampler(self, optuna: Any) -> Any:
        settings: dict[str, Any] = {"seed": int(self.rng.integers(2**31))}
        if self.config.sampler in STARTUP:
            settings["n_startup_trials"] = self.config.startup
        if self.config.sampler == "TPE":
            settings |= {"multivariate": True, "constant_liar": True}
        if self.config.sampler == "QMC":
            settings |= {"scramble": True}
        if self.config.sampler in ("GP", "CmaEs"):
            settings["warn_independent_sampling"] = False
        return getattr(optuna.samplers, f"{self.config.sampler}Sampler")(**settings)

    def _values(self, point: Genotype) -> dict[str, float | int | str]:
        """Return a point as the values of Optuna's parameters."""
        pairs = zip(self.space.genes, point.tolist(), strict=True)
        return {f"{at}": gene.value(x) for at, (gene, x) in enumerate(pairs)}

    def _propose(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        with _quiet(self._optuna):
            for identity in range(self._asked, self._asked + n):
                trial = self._study.ask(self._parameters)
                self._trials[identity] = trial
                proposals.append(Proposal(self._point(trial.params), "sample", identity // self.population))
        return proposals

    def _point(self, values: dict[str, Any]) -> Genotype:
        coordinates = [_coordinate(gene, values[f"{at}"]) for at, gene in enumerate(self.space.genes)]
        return self.space.settled(np.array(coordinates, dtype=np.float64))

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        trial = self._trials.pop(candidate.id)
        with _quiet(self._optuna):
            if not math.isfinite(evaluation.fitness):
                self._study.tell(trial, state=self._states.FAIL)
                return
            score = evaluation.fitness
            if evaluation.violation > 0:
                score = (self._worst if math.isfinite(self._worst) else 0.0) + (evaluation.fitness - INFEASIBLE)
            else:
                self._worst = min(self._worst, score)
            self._study.tell(trial, score)


def _coordinate(gene: Gene, value: Any) -> float:
    return float(gene.coordinate(value)) if isinstance(gene, Choice | Integer) else float(value)


def _distribution(optuna: Any, gene: Gene) -> Any:
    kinds = optuna.distributions
    if isinstance(gene, Choice):
        return kinds.CategoricalDistribution(gene.options)
    if isinstance(gene, Integer):
        return kinds.IntDistribution(gene.smallest, gene.largest)
    return kinds.FloatDistribution(gene.low, gene.high)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Leave out Optuna's own lines and warnings about settings that may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
