"""MAP: a quadratic surrogate per task, and the whole front of trade-offs from a few dozen evaluations.

Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation", arXiv 2406.07529.

1. *Design.* Points that fill the box, enough for the (K + 1)(K + 2)/2 coefficients of a quadratic form of K genes, are
   scored, after the space's own first candidates.
2. *Fit.* Each objective gets a surrogate (`evomerge.strategies.quadratic`), and so does the violation of constraints.
3. *Front.* NSGA-II, or NSGA-III as in the program (`search: nsga3`), searches the surrogates, which costs no evaluation
   (`evomerge.strategies.surrogate_front`).
4. *Check.* Members of the predicted front, as far as possible from what was scored and from one another, are scored
   for real. Then 2 to 4 are repeated with all results; points near the front that was seen count more in the fit.

The front of a search holds scored candidates only, never predictions.

*Nested*, for more genes than points can be had for: the genes are cut into blocks of at most `block`. One block after
the other is searched with all other genes at the space's start x0, and its point b with the best predicted weighted
sum is kept. Then the blocks are mixed: the next surrogate has one coordinate per block, the step s in [0, 1.5] from the
start to its point, x = x0 + sum_k s_k (b_k - x0), and so on until one block is left; its front is the result. Where
genes are weights of task vectors and the start is 0, a block's point is a merge of some models, and the next level
merges these merges, as in the paper's nested merging of pairs.

Deviations from the published program: it draws all points before one fit, without a round of checks. It fits with
`curve_fit` where one ridge regression is enough. Its front comes from NSGA-III, which differs little from NSGA-II, the
default here, with few objectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.files.messages import counted
from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Generation, resolved_number
from evomerge.strategies.initial_population import initial_population
from evomerge.strategies.nsga2 import by_crowding
from evomerge.strategies.nsga3 import ByReferencePoints
from evomerge.strategies.quadratic import coefficients_of, fitted
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.surrogate_front import Predict, mutated, predicted_front, spread_out
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.pareto import front
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Array = NDArray[np.float64]

MOST_GENES = 30
"""Genes of one surrogate: 496 coefficients."""
REACH = 1.5
"""How far nested coordinates go beyond a block's best point, the start being 0 and the point 1."""
NEAR = 0.3
"""Points that differ this much per coordinate from the front that was seen count 0.6 times as much in a fit."""
CAUTION = 1.0
"""Standard errors that are taken off a prediction, so that the front is not in unknown regions."""
LEAST_TRUST = 0.1
"""What the farthest points count."""


@register_strategy
class MapConfig(StrategyConfig):
    """A quadratic surrogate per objective (MAP): the whole front from few evaluations, for up to 30 real genes."""

    objectives = "several"
    warm_start_type = WarmStartPopulation
    as_stage = False

    kind: Literal["map"] = "map"
    points: Annotated[int, Field(ge=3, le=100_000)] | Literal["auto"] = "auto"
    """Candidates before the first fit, for each surrogate: at least (K + 1)(K + 2)/2 for K coordinates, which is what
    `auto` means."""
    spread: float = Field(default=0.8, gt=0, le=1)
    """Part of each gene's range, around the start, that the first fit's candidates are drawn from. A quadratic form
    describes a part of the box better than the whole box, where the corners are broken models."""
    batch: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto"
    """Members of the predicted front that are scored before the next fit. `auto`: a tenth of the budget after the
    first candidates, at least 4."""
    population: int = Field(default=100, ge=4, le=10_000)
    """Points of each generation on the surrogates; none of them costs an evaluation."""
    generations: int = Field(default=100, ge=1, le=10_000)
    """Generations on the surrogates, for each fit."""
    search: Literal["nsga2", "nsga3"] = "nsga2"
    """Algorithm that searches the surrogates. nsga3: the paper's, for four objectives or more."""
    nested: bool = False
    """Whether blocks of genes are searched one after the other and then mixed: for more genes than the budget has
    points for."""
    block: int = Field(default=4, ge=2, le=MOST_GENES)
    """Most coordinates of one surrogate where the search is nested."""
    evaluations: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = "auto"
    """Number of candidates by which the design, the batches and nested blocks are sized. `auto`: the search's
    budget."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with every `auto` replaced.

        Raises
        ------
        ValueError
            If a gene is not a real number, there are too many genes for one surrogate, or too few candidates.
        """
        planned = evaluations if self.evaluations == "auto" else self.evaluations
        self._check_genes(space)
        largest = min(space.dimension, self.block) if self.nested else space.dimension
        share = planned // _surrogates(space.dimension, self.block) if self.nested else planned
        points = self._checked_points(largest, share, planned)
        batch = max(4, (share - points) // 10) if self.batch == "auto" else self.batch
        return self.model_copy(update={"points": points, "batch": batch, "evaluations": planned})

    def _check_genes(self, space: SearchSpace) -> None:
        discrete = [gene.name for gene in space.genes if gene.discrete]
        if discrete:
            raise ValueError(
                f"strategy.kind map fits quadratic forms of real genes and {discrete[0]} is a choice or a whole number "
                f"({len(discrete)} of {space.dimension} genes are); fix it in space.fixed, or write kind: nsga2"
            )
        if space.dimension > MOST_GENES and not self.nested:
            raise ValueError(
                f"strategy.kind map fits up to {MOST_GENES} genes at once and the space has {space.dimension}; raise "
                "space.layers_per_group, or write strategy.nested: true"
            )

    def _checked_points(self, coordinates: int, share: int, planned: int) -> int:
        needed = coefficients_of(coordinates)
        points = needed if self.points == "auto" else self.points
        if points < needed:
            raise ValueError(
                f"strategy.points {points} are too few: a quadratic form of {coordinates} genes needs {needed}; write "
                f"{needed - points} more, or auto"
            )
        if share <= points:
            missing = (points + 1) * math.ceil(planned / max(share, 1)) - planned
            raise ValueError(
                f"strategy.kind map: {counted(points, 'point')} for a quadratic form of "
                f"{counted(coordinates, 'gene')}, and a check, are "
                f"more than budget.evaluations allows; raise it by {missing} or more, write fewer genes, or "
                "strategy.nested: true with a smaller strategy.block"
            )
        return points

    def build(self, space: SearchSpace, seed: int) -> Map:
        """Build the strategy; the settings must be resolved."""
        return Map(space, seed, self)


def _surrogates(genes: int, block: int) -> int:
    """Return how many surrogates a nested search of this many genes fits: those of all blocks of all levels."""
    blocks = math.ceil(genes / block)
    return 1 if blocks == 1 else blocks + _surrogates(blocks, block)


class Map(Strategy):
    """Synchronous: it learns from a generation when all its results are in."""

    guess = "surrogate's best"

    def __init__(self, space: SearchSpace, seed: int, config: MapConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("batch", config.batch)
        self._points = resolved_number("points", config.points)
        self._box = UnitBox(space)
        self._start = self._box.to_unit(space.start)
        self._generation = Generation.none()
        self._proposed: Array = np.zeros((0, 0))  # the generation's coordinates in the frame
        nested = config.nested and space.dimension > config.block
        self._largest = config.block if nested else space.dimension
        self._share = resolved_number("evaluations", config.evaluations)
        if nested:
            self._share //= _surrogates(space.dimension, config.block)
        self._waiting = gene_blocks(self._start, self._largest)
        self._steps: list[Array] = []  # of this level's finished blocks, from the start to their best points
        self._frame, self._seen = self._waiting.pop(0), Seen()
        self._best: Array | None = None  # in the unit box

    def recommend(self) -> Genotype | None:
        """Return the point with the best predicted weighted sum; None before the first fit."""
        return None if self._best is None else self._box.to_genes(self._best)

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            self._advance()
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._generation.put(candidate, evaluation):
            for point, result in zip(self._proposed, self._generation.evaluations, strict=True):
                self._seen.add(point, result)

    def _advance(self) -> None:
        """Make the next generation: a design, or members of the predicted front; first leave a finished block."""
        last = not self._waiting and not self._steps
        if not last and self._seen.count >= self._share:
            self._leave_block()
        wanted = self._design_size()
        missing = wanted - len(self._seen.points)
        if missing > 0:
            given = self._given() if self._asked == 0 else np.zeros((0, self._frame.coordinates))
            fill = filling(max(1, missing - len(given)), self._frame.coordinates, self.rng)
            self._proposed = np.vstack((given, self._frame.around(fill, self._start, self.config.spread)))
        else:
            self._proposed = self._front()
        genotypes = [self._box.to_genes(self._frame.outside(point)) for point in self._proposed]
        self._generation = Generation(self._generation.number + 1, self._asked, genotypes)

    def _design_size(self) -> int:
        """Return how many points come before the first fit; a block with fewer genes than others needs fewer."""
        coordinates = self._frame.coordinates
        return math.ceil(self._points * coefficients_of(coordinates) / coefficients_of(self._largest))

    def _given(self) -> Array:
        """Return the first candidates that are known without a search, as far as the first frame reaches them."""
        known = initial_population(self.space, self.config.warm_start, self._design_size())
        inside = [self._frame.inside(self._box.to_unit(point)) for point in known]
        points = [point for point in inside if point is not None]
        return np.array(points).reshape(len(points), self._frame.coordinates)

    def _front(self) -> Array:
        """Fit the surrogates; return members of their front to score, float64[B, K]."""
        predict, seen = self._seen.surrogates(), self._seen.front()
        size = self.config.population
        fill = filling(max(size - len(seen), 2), self._frame.coordinates, self.rng)
        first = np.vstack((seen, fill))[: max(size, 2)]
        survive = by_crowding if self.config.search == "nsga2" else ByReferencePoints()
        points, values, _ = predicted_front(predict, first, self.config.generations, survive, self.rng)
        self._best = self._frame.outside(points[int(np.argmax(values @ self._seen.shares))])
        chosen = points[spread_out(values, predict(seen)[0], self.population)]
        missing = self.population - len(chosen)  # a front of few points, as where the metrics agree
        return np.vstack((chosen, mutated(points[self.rng.integers(len(points), size=missing)], self.rng)))

    def _leave_block(self) -> None:
        """Keep the block's best point, and continue with the next block or the next level."""
        if self._seen.points:
            self._front()
        best = self._start if self._best is None else self._best
        self._steps.append(best - self._start)
        if not self._waiting:
            self._waiting, self._steps = step_blocks(self._start, self._steps, self._largest), []
        self._frame, self._seen, self._best = self._waiting.pop(0), Seen(), None


@dataclass(frozen=True, eq=False)
class Frame:
    """A box of coordinates in the unit box of genes: z = origin + sum_k s_k step_k with s in [0, 1]^K, clipped.

    Attributes
    ----------
    origin
        float64[G].
    steps
        float64[K, G].
    """

    origin: Array
    steps: Array

    @property
    def coordinates(self) -> int:
        """K."""
        return len(self.steps)

    def outside(self, point: Array) -> Array:
        """Return the point of the unit box, float64[G], for coordinates float64[K]."""
        return np.clip(self.origin + point @ self.steps, 0.0, 1.0)

    def around(self, points: Array, start: Array, spread: float) -> Array:
        """Return coordinates float64[N, K] drawn together to a part of their ranges that has the start in it."""
        centre = np.linalg.lstsq(self.steps.T, start - self.origin, rcond=None)[0]
        return np.asarray(np.clip(centre - spread / 2, 0.0, 1.0 - spread) + spread * points)

    def inside(self, unit: Array) -> Array | None:
        """Return the coordinates of a point of the unit box, float64[K]; None: it has none."""
        point = np.linalg.lstsq(self.steps.T, unit - self.origin, rcond=None)[0]
        reached = bool((point > -1e-9).all() and (point < 1 + 1e-9).all())
        return np.clip(point, 0.0, 1.0) if reached and np.allclose(self.outside(point), unit, atol=1e-9) else None


def gene_blocks(start: Array, size: int) -> list[Frame]:
    """Return frames of at most `size` genes each, over their whole ranges; all other genes are at the start."""
    frames: list[Frame] = []
    for genes in np.array_split(np.arange(len(start)), math.ceil(len(start) / size)):
        origin = start.copy()
        origin[genes] = 0.0
        frames.append(Frame(origin, np.eye(len(start))[genes]))
    return frames


def step_blocks(start: Array, steps: Sequence[Array], size: int) -> list[Frame]:
    """Return frames of at most `size` steps each, which begin at the start and reach `REACH` times as far."""
    return [Frame(start, REACH * part) for part in np.array_split(np.array(steps), math.ceil(len(steps) / size))]


def filling(count: int, coordinates: int, rng: np.random.Generator) -> Array:
    """Return points that fill the unit box, float64[N, K]: a Latin hypercube."""
    columns = [rng.permutation(count) for _ in range(coordinates)]
    return np.asarray((np.array(columns).T + rng.random((count, coordinates))) / count)


class Seen:
    """Results in one frame.

    Attributes
    ----------
    points
        Coordinates of the scored candidates, float64[K] each.
    count
        How many results there are, failed ones among them.
    """

    def __init__(self) -> None:
        self.points: list[Array] = []
        self.count = 0
        self._results: list[Evaluation] = []

    def add(self, point: Array, result: Evaluation) -> None:
        """Take a result."""
        self.count += 1
        if result.status != "failed" and np.isfinite(result.objectives).all():
            self.points.append(point)
            self._results.append(result)

    @property
    def shares(self) -> Array:
        """Weights of the objectives in the weighted sum, float64[M]."""
        result = self._results[0]
        return np.array(result.shares or [1.0 / len(result.objectives)] * len(result.objectives))

    def front(self) -> Array:
        """Return the coordinates of the candidates that no other one dominates, float64[N, K]."""
        values, missed = self._table()
        return np.array(self.points)[front(values, missed)]

    def surrogates(self) -> Predict:
        """Return the objectives and the violation of constraints as functions of coordinates float64[N, K]."""
        values, missed = self._table()
        errors = np.array([result.standard_errors for result in self._results])
        points = 2.0 * np.array(self.points) - 1.0
        trust = self._trust()
        fits = [fitted(points, values[:, m], errors[:, m], trust) for m in range(values.shape[1])]
        limit = fitted(points, missed, np.zeros(len(missed)), trust) if missed.any() else None

        def predict(at: Array) -> tuple[Array, Array]:
            there = 2.0 * at - 1.0
            violation = np.zeros(len(at)) if limit is None else np.maximum(limit.predicted(there), 0.0)
            return np.column_stack([fit.predicted(there, CAUTION) for fit in fits]), violation

        return predict

    def _table(self) -> tuple[Array, Array]:
        values = np.array([result.objectives for result in self._results])
        return values, np.array([result.violation for result in self._results])

    def _trust(self) -> Array:
        """Return how much each point counts in a fit, float64[N]: those near the front that was seen count more."""
        points, members = np.array(self.points), self.front()
        squares = [((points - member) ** 2).mean(axis=1) for member in members]
        return np.asarray(np.maximum(np.exp(-np.min(squares, axis=0) / (2 * NEAR**2)), LEAST_TRUST))
