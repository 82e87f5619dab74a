"""Any optimiser from nevergrad, by its name: `kind: nevergrad:TwoPointsDE`.

The optimiser sees the unit box as one bounded array; discrete genes are cells of it. nevergrad minimises, so it is told
the negative fitness; a failed candidate gets a loss greater than the largest one so far.

Some optimisers draw from Python's and numpy's global generators. Every call therefore runs with global states that
belong to the strategy and are seeded by its generator. So a search can be replayed, and the caller's global generators
do not change.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.extras import require
from evomerge.files.messages import nearest
from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import resolved_number
from evomerge.strategies.penalty import Penalty
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Array = NDArray[np.float64]

PREFIX = "nevergrad:"
TRIAL_EVALUATIONS = 60
"""Evaluations of a quadratic function on which an optimiser is tried before a search starts."""


class OptimizerError(ValueError):
    """An optimiser from nevergrad raised an error; the message says which to use instead."""


@register_strategy
class NevergradConfig(StrategyConfig):
    """Any optimiser from nevergrad, written `kind: nevergrad:NAME` (needs the extra `strategies`)."""

    warm_start_type = WarmStartPopulation
    as_stage = False
    kind_argument = "optimizer"

    kind: Literal["nevergrad"] = "nevergrad"
    optimizer: str = "NGOpt"
    """Name in nevergrad's registry; `kind: nevergrad:TBPSA` is short for `optimizer: TBPSA`."""
    budget: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = "auto"
    """Evaluations that the optimiser plans for. `auto`: the search's budget."""
    parallel: int = Field(default=1, ge=1, le=10_000)
    """Candidates proposed before a result is needed; set it to the number of workers."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial step size, as a fraction of each gene's range."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked and how many candidates a warm start may load."""
    l1: float | None = Field(default=None, ge=0, le=1000)
    """Penalty: this factor times the mean absolute value of the weight genes is subtracted from the score for
    learning. LoRAHub has 0.05. None: by nothing."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidate is the optimiser's start, and whose best candidates are proposed first. By
    default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `budget: auto` replaced, after a trial of the optimiser on a quadratic function.

        Raises
        ------
        ValueError
            If nevergrad is not installed or has no such optimiser, or if the optimiser raises an error with the
            installed packages, as NGOpt does with numpy 2.4 in few dimensions.
        """
        Penalty(space, self.l1 or 0.0)
        budget = evaluations if self.budget == "auto" else self.budget
        settled = self.model_copy(update={"budget": budget})
        start = np.full(space.dimension, 0.5)
        trial = _Optimizer(settled, start, 0, [] if self.warm_start is None else [start, 0.9 * start])
        for _ in range(min(TRIAL_EVALUATIONS, budget)):
            parameter = trial.ask()
            trial.tell(parameter, float(np.sum((parameter.value - 0.6) ** 2)))
        return settled

    @property
    def most_in_flight(self) -> int:
        """The setting `parallel`."""
        return self.parallel

    def build(self, space: SearchSpace, seed: int) -> Nevergrad:
        """Build the strategy; the settings must be resolved."""
        return Nevergrad(space, seed, self)


class Nevergrad(Strategy):
    """Steady state: it learns from results one by one, with up to `parallel` candidates in flight."""

    guess = "optimiser's guess"

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: NevergradConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self._box, self._penalty = UnitBox(space), Penalty(space, config.l1 or 0.0)
        self._worst = -math.inf  # largest loss so far
        self._parameters: dict[int, Any] = {}  # nevergrad's own objects; `tell` needs the same ones
        warm = config.warm_start
        first = [] if warm is None else [self._box.to_unit(point) for point in warm.points(space)]
        start = first[0] if first else self._box.to_unit(space.start)
        self._optimizer = _Optimizer(config, start, int(self.rng.integers(2**32)), first)

    def recommend(self) -> Genotype | None:
        """Return the optimiser's recommendation; None before the first result."""
        return self._box.to_genes(self._optimizer.recommend()) if math.isfinite(self._worst) else None

    def _propose(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        for identity in range(self._asked, self._asked + min(n, self.config.parallel - len(self._open))):
            parameter = self._optimizer.ask()
            self._parameters[identity] = parameter
            proposals.append(Proposal(self._box.to_genes(parameter.value), "sample", identity // self.population))
        return proposals

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        loss = -self._penalty(candidate.genotype, evaluation).fitness
        if math.isfinite(loss):
            self._worst = max(self._worst, loss)
        else:
            loss = self._worst + 1.0 if math.isfinite(self._worst) else 1.0
        self._optimizer.tell(self._parameters.pop(candidate.id), loss)


class _Optimizer:
    """One of nevergrad's optimisers in the unit box, with its own global random states.

    Parameters
    ----------
    config
        Resolved settings.
    start
        float64[G], in the unit box.
    seed
        Seed of all random numbers.
    first
        Points to propose first, best first, float64[G] each.
    """

    def __init__(self, config: NevergradConfig, start: Array, seed: int, first: Sequence[Array]) -> None:
        self._name = config.optimizer
        budget = resolved_number("budget", config.budget)
        self._python = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed).get_state()
        ng = require("nevergrad", "strategies", f"strategy.kind: {PREFIX}{self._name}")
        self._not_asked = ng.errors.TellNotAskedNotSupportedError
        if self._name not in ng.optimizers.registry:
            hint = nearest(self._name, ng.optimizers.registry) or "NGOpt"
            raise ValueError(f"strategy.kind: nevergrad has no optimiser {self._name!r}; write {PREFIX}{hint}")
        with self._own_state():
            array = ng.p.Array(init=start).set_bounds(0.0, 1.0).set_mutation(sigma=config.sigma)
            array.random_state = np.random.RandomState(seed)
            optimizer = ng.optimizers.registry[self._name]
            self._optimizer = optimizer(array, budget=budget, num_workers=config.parallel)
            for point in reversed(first):  # the last suggested is the first asked
                self._optimizer.suggest(point)

    def ask(self) -> Any:
        """Return nevergrad's parameter; its `value` is a point float64[G] of the unit box."""
        with self._own_state():
            return self._optimizer.ask()

    def tell(self, parameter: Any, loss: float) -> None:
        """Take a result; an optimiser that refuses results of suggested points does not get them."""
        with self._own_state(), suppress(self._not_asked):
            self._optimizer.tell(parameter, loss)

    def recommend(self) -> Array:
        """Return the optimiser's recommendation in the unit box, float64[G]."""
        with self._own_state():
            return np.asarray(self._optimizer.provide_recommendation().value)

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Use the strategy's global random states inside the block, hide warnings, and translate errors."""
        python, numpy = random.getstate(), np.random.get_state()
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:  # anything that the optimiser, or a package it uses, raises
            raise OptimizerError(
                f"strategy.kind: {PREFIX}{self._name} fails with the installed packages "
                f"({type(error).__name__}: {error}); write {PREFIX}TwoPointsDE, {PREFIX}TBPSA or cma_es"
            ) from error
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            random.setstate(python)
            np.random.set_state(numpy)
