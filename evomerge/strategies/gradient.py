"""Gradient search of a loss with respect to the genes.

A merged weight is a differentiable function of most coefficients: of weights, lambda and t, with masks, densities and
choices held. So one forward and one backward pass of the merged model give the derivatives of a loss by all genes at
once (AdaMerging, Yang et al. 2024, arXiv 2310.02575, does so with the entropy of the outputs). Each step is asked fresh
items, and its genes move by Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) in the unit box:

    m ← β1 m + (1 − β1) g,   v ← β2 v + (1 − β2) g²,   z ← z − α (m / (1 − β1ᵗ)) / (√(v / (1 − β2ᵗ)) + ε).

The result is the mean of the later iterates (Polyak and Juditsky 1992): single iterates follow the last items.
A step is a candidate like any other: it counts for the budget, and it is recorded with its derivatives, so that replay
leads to the same genes. numpy in place of torch's Adam: strategies load no torch, and state must be replayable data.
`update: frank_wolfe` moves weights towards single models in place of Adam's steps (see `frank_wolfe`).

A failed step (a loss that is not finite, or no memory) halves the learning rate and begins again at the mean so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.frank_wolfe import FrankWolfe
from evomerge.strategies.generation import resolved_number
from evomerge.strategies.registry import StageStrategy, register_strategy
from evomerge.strategies.stage import Relay, Stage
from evomerge.strategies.step_loss import LossConfig
from evomerge.strategies.unit_box import UnitBox
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-12
MOST_FAILURES = 5
"""Failed steps in a row after which the gradient search ends."""
LEARNING_RATE = 0.02
STEPS_BEFORE = 40
"""Steps before another strategy, unless the file says otherwise; at most half the budget."""


def _loss_section(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


@register_strategy
class GradientConfig(StrategyConfig):
    """Steps along the derivatives of a loss, by Adam or towards single models; other genes stay at their start."""

    as_stage = False

    kind: Literal["gradient"] = "gradient"
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = "auto"
    """Number of steps. `auto`: the whole budget, also a raised one; with `then`, 40 or half the budget, whichever
    is less."""
    items: int = Field(default=25, ge=1, le=1_000_000)
    """Fresh search items per task and step."""
    update: Literal["adam", "frank_wolfe"] = "adam"
    """How steps follow the derivatives. adam: all genes. frank_wolfe: the weights of each part of the model, towards
    the one model that lowers the loss most (FW-Merging)."""
    learning_rate: float = Field(default=LEARNING_RATE, gt=0, le=1)
    """Adam's step size, as a fraction of each gene's range."""
    loss: Annotated[LossConfig, BeforeValidator(_loss_section)] = LossConfig()
    """What the steps minimise; a word alone sets `kind`."""
    averaged: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the steps, counted from the last, whose genes are averaged into the result."""
    then: StageStrategy | None = None
    """Strategy that searches around the result with the rest of the budget. By default there is none."""

    @model_validator(mode="after")
    def _starts_from_the_steps(self) -> Self:
        if self.then is not None and self.then.earlier_run is not None:
            raise ValueError("then.warm_start: this strategy starts from the result of the steps; leave it out")
        if self.update == "frank_wolfe" and self.learning_rate != LEARNING_RATE:
            raise ValueError("learning_rate is Adam's; the steps of frank_wolfe are 2 / (k + 2), so leave it out")
        return self

    @property
    def most_in_flight(self) -> int | None:
        """The limit of `then`; None: it has none."""
        return None if self.then is None else self.then.most_in_flight

    @property
    def keeps_archive(self) -> bool:
        """Whether `then` does."""
        return self.then is not None and self.then.keeps_archive

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check the settings of `then` against the tasks."""
        if self.then is not None:
            self.then.check_tasks(tasks)

    @property
    def items_per_step(self) -> int:
        """How many search items per task a step is asked."""
        return self.items

    @property
    def step_loss(self) -> LossConfig:
        """What steps are asked for."""
        return self.loss

    @property
    def gradient_steps(self) -> int | None:
        """How many steps it takes; None: as many as the budget allows. The settings must be resolved."""
        return None if self.then is None and self.steps == "auto" else resolved_number("steps", self.steps)

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `then` and the steps before it resolved for the budget.

        Without `then`, `auto` stays: the budget ends the search, and a resumed run may have a larger one.

        Raises
        ------
        ValueError
            If the steps leave nothing for `then`, or its settings or `update` do not suit the space.
        """
        if self.update == "frank_wolfe":
            FrankWolfe(space)  # refuses a space that it cannot search
        if self.then is None:
            return self
        steps = min(STEPS_BEFORE, evaluations // 2) if self.steps == "auto" else self.steps
        if not 1 <= steps < evaluations:
            raise ValueError(
                f"strategy.steps: {steps} of budget.evaluations {evaluations} leave too little for one stage; write "
                "fewer steps, or raise budget.evaluations"
            )
        then = self.then.resolved(space, noise=noise, evaluations=evaluations - steps)
        return self.model_copy(update={"steps": steps, "then": then})

    def build(self, space: SearchSpace, seed: int) -> Strategy:
        """Build the strategy; the settings must be resolved."""
        first = Gradient(space, seed, self)
        return first if self.then is None else GradientThen(space, seed, first, self.then)


class Adam:
    """The moments of Adam, and what they make of a gradient; genes without a derivative stay where they are.

    Parameters
    ----------
    genes
        G.
    rate
        Its first learning rate.
    """

    def __init__(self, genes: int, rate: float = LEARNING_RATE) -> None:
        self.rate = rate
        self._genes = genes
        self.restart()

    def restart(self) -> None:
        """Forget the moments."""
        self.time = 0
        self.mean: NDArray[np.float64] = np.zeros(self._genes)
        self.square: NDArray[np.float64] = np.zeros(self._genes)

    def moved(self, point: Genotype, slope: NDArray[np.float64], rate: float) -> Genotype:
        """Return the point after a step, in the unit box like `point`; `slope` are derivatives in it, float64[G]."""
        return np.clip(point - rate * self.step(slope), 0.0, 1.0)

    def step(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take a gradient and return the change that a learning rate multiplies, float64[G] both."""
        self.time += 1
        self.mean = BETA1 * self.mean + (1 - BETA1) * gradient
        self.square = BETA2 * self.square + (1 - BETA2) * gradient**2
        mean = self.mean / (1 - BETA1**self.time)
        change: NDArray[np.float64] = mean / (np.sqrt(self.square / (1 - BETA2**self.time)) + EPSILON)
        return change


class Gradient(Strategy):
    """Follows the derivatives that evaluations contain, one step at a time."""

    guess = "mean of the steps"

    def __init__(self, space: SearchSpace, seed: int, config: GradientConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = 1
        self._steps = config.gradient_steps
        self._box = UnitBox(space)
        self._moves = ~space.discrete
        self._failures = 0
        self._iterates: list[Genotype] = []
        self._point: Genotype = self._box.to_unit(space.start)
        zero = np.clip(np.zeros(space.dimension), space.low, space.high)
        self._towards = self._box.to_unit(space.start if config.loss.towards == "start" else zero)
        self._update: Adam | FrankWolfe = (
            Adam(space.dimension, config.learning_rate) if config.update == "adam" else FrankWolfe(space)
        )
        self._rate = self._update.rate

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or too many have failed in a row."""
        return (self._steps is not None and self._asked >= self._steps) or self._failures >= MOST_FAILURES

    def recommend(self) -> Genotype:
        """Return the mean of the later iterates; the start before the first step."""
        return self.space.settled(self._box.to_genes(self._average()))

    def _propose(self, n: int) -> list[Proposal]:
        if self._open or self.finished:
            return []
        parents = [self._asked - 1] if self._asked else []
        return [Proposal(self._box.to_genes(self._point), "gradient", self._asked, parents)]

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        gradient = np.array(evaluation.gradient)
        if evaluation.status == "failed" or not np.isfinite(gradient).all():
            self._failures += 1
            self._rate /= 2
            self._point = self._average()
            self._update.restart()
            return
        self._failures = 0
        slope = np.where(self._moves, gradient * self._box.width + self._penalty(), 0.0)
        self._point = self._update.moved(self._point, slope, self._rate)
        self._iterates.append(self._point.copy())

    def _penalty(self) -> NDArray[np.float64]:
        """Return the derivatives of the penalties l1 mean |z − a| + l2 mean (z − a)² in the unit box, float64[G]."""
        loss, count = self.config.loss, max(1, int(self._moves.sum()))
        distance = self._point - self._towards
        found: NDArray[np.float64] = (loss.l1 * np.sign(distance) + 2 * loss.l2 * distance) / count
        return found

    def _average(self) -> Genotype:
        if not self._iterates:
            return np.array(self._point)
        count = max(1, round(self.config.averaged * len(self._iterates)))
        average: Genotype = np.mean(np.array(self._iterates[-count:]), axis=0)
        return average


class GradientThen(Relay):
    """A gradient search, then another strategy that starts at its result."""

    def __init__(self, space: SearchSpace, seed: int, first: Gradient, then: StrategyConfig) -> None:
        super().__init__(space, seed)
        self._then = then
        self._start: Genotype | None = None  # the result of the gradient search, once it is over
        self._enter(Stage(first))

    @property
    def finished(self) -> bool:
        """Whether the second strategy is."""
        return self._start is not None and self._stage.strategy.finished

    def recommend(self) -> Genotype | None:
        """Return the current strategy's own best guess, else the result of the gradient search."""
        guess = self._stage.recommend()
        return self._start if guess is None else guess

    def _propose(self, n: int) -> list[Proposal]:
        if self._start is not None or not self._stage.strategy.finished:
            return self._stage.ask(n, self._asked)
        if self._open:
            return []
        start = self._stage.recommend()
        assert start is not None
        self._start = start
        offset = self._stage.last + 1
        self._enter(Stage(self._then.build(self.space.starting_at(start), int(self.rng.integers(2**31))), offset + 1))
        # Scored once, so that it can be chosen; not told to anybody.
        return [Proposal(start.copy(), "mean", offset, [self._asked - 1])]

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._stage.owns(candidate):
            self._stage.tell(candidate, evaluation)
