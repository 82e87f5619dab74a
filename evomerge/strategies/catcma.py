"""CatCMA with margin: one joint Gaussian over real and whole numbers, and a categorical distribution per choice.

R. Hamano et al., "CatCMA: Stochastic Optimization for Mixed-Category Problems", arXiv 2405.09962, and "CatCMA with
Margin", arXiv 2504.07884. Implementation: `CatCMAwM` of the package `cmaes`. The search runs in the unit box. A choice
starts at its prior, or with half of the probability on the space's start and the other half shared among all options.
"""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.extras import require
from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.discrete import countable, first_probabilities, seen_probabilities
from evomerge.strategies.generation import Sampling, default_population, resolved_number
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartPopulation, normal_around
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.space import SearchSpace

MIN_GENERATIONS = 12
START_PROBABILITY = 0.5


@register_strategy
class CatCmaConfig(StrategyConfig):
    """For mixed spaces: real numbers, integers and choices that depend on each other (needs the extra `strategies`)."""

    warm_start_type = WarmStartPopulation

    kind: Literal["catcma"] = "catcma"
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Candidates per generation, at least 4. `auto`: from the number of genes, the noise and the budget."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial step size, as a fraction of each gene's range."""
    score_mean_every: int = Field(default=5, ge=1, le=10_000)
    """Score the distribution's mode as a candidate every this many generations."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates give the initial distribution. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced.

        Raises
        ------
        MissingExtraError
            If cmaes is not installed.
        """
        _cmaes()
        if self.population != "auto":
            return self
        default = default_population(space.dimension)
        population = max(default, min(2 * default, evaluations // MIN_GENERATIONS))
        return self.model_copy(update={"population": population})

    def build(self, space: SearchSpace, seed: int) -> CatCma:
        """Build the strategy; the settings must be resolved."""
        return CatCma(space, seed, self)


def _cmaes() -> ModuleType:
    return require("cmaes", "strategies", "strategy.kind: catcma")


class CatCma(Strategy):
    """Synchronous: it learns from a generation when all its results are in."""

    guess = "distribution mode"

    def __init__(self, space: SearchSpace, seed: int, config: CatCmaConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._box = UnitBox(space)
        choices = np.array([isinstance(gene, Choice) for gene in space.genes])
        self._choices = np.flatnonzero(choices)
        integers = countable(space) & ~choices
        self._reals = np.flatnonzero(~integers & ~choices)
        self._integers = np.flatnonzero(integers)
        self._solutions: list[Any] = []
        self._sampling = Sampling(self._samples, self.recommend, config.score_mean_every, self._update)
        self._es = self._start()

    def recommend(self) -> Genotype:
        """Return the mode: the means of real numbers and integers, the most probable options of choices."""
        point = self.space.start.copy()
        if len(self._reals) + len(self._integers):
            numbers = np.concatenate((self._reals, self._integers))
            unit = self._box.to_unit(point)
            unit[numbers] = self._mean
            point = self._box.to_genes(unit)
        if len(self._choices):
            point[self._choices] = np.argmax(self._probabilities, axis=1) + 0.5
        return self.space.settled(point)

    # cmaes makes neither public; pyproject.toml limits its version for that, and the tests would notice a change.
    @property
    def _mean(self) -> NDArray[np.float64]:
        """Mean of the real numbers, then of the integers, in the unit box, float64[N]."""
        return np.asarray(self._es._mean, dtype=np.float64)

    @property
    def _probabilities(self) -> NDArray[np.float64]:
        """Probability of each choice's options, float64[C, most options]; 0 beyond a choice's own options."""
        return np.asarray(self._es._q, dtype=np.float64)

    def _propose(self, n: int) -> list[Proposal]:
        return self._sampling.take(n, self._asked)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._sampling.put(candidate, evaluation)

    def _samples(self) -> list[Genotype]:
        self._solutions = [self._es.ask() for _ in range(self.population)]
        return [self._genotype(solution) for solution in self._solutions]

    def _update(self, samples: NDArray[np.float64], fitness: NDArray[np.float64]) -> None:
        """Learn from the solutions behind the samples; cmaes minimises."""
        self._es.tell(list(zip(self._solutions, (-fitness).tolist(), strict=True)))

    def _genotype(self, solution: Any) -> Genotype:
        unit = np.zeros(self.space.dimension)
        if len(self._reals):
            unit[self._reals] = solution.x
        if len(self._integers):
            unit[self._integers] = solution.z
        point = self._box.to_genes(unit)
        if len(self._choices):
            point[self._choices] = np.argmax(solution.c, axis=1) + 0.5
        return self.space.settled(point)

    def _start(self) -> Any:
        """Return cmaes' optimiser at its start."""
        cmaes = _cmaes()
        warm = self.config.warm_start
        earlier = None if warm is None else np.array(warm.points(self.space))  # float64[N, G]
        options: dict[str, Any] = {}
        if len(self._reals) + len(self._integers):
            options |= self._normal(earlier)
        if len(self._choices):
            options |= self._categorical(earlier)
        seed = int(self.rng.integers(2**32))
        return cmaes.CatCMAwM(population_size=self.population, seed=seed, **options)

    def _normal(self, earlier: NDArray[np.float64] | None) -> dict[str, Any]:
        """Return the options for real numbers and integers; `earlier` are an earlier run's points, float64[N, G]."""
        numbers = np.concatenate((self._reals, self._integers))
        mean, sigma = self._box.to_unit(self.space.start)[numbers], self.config.sigma
        covariance = np.eye(len(numbers))
        if earlier is not None:
            mean, deviations = normal_around(self._box.to_unit(earlier)[:, numbers])
            sigma = float(np.sqrt(np.mean(deviations**2)))
            covariance = np.diag((deviations / sigma) ** 2)
        options: dict[str, Any] = {"mean": mean, "sigma": sigma, "cov": covariance}
        if len(self._reals):
            options["x_space"] = [[0.0, 1.0]] * len(self._reals)
        if len(self._integers):
            options["z_space"] = [self._cells(int(gene)) for gene in self._integers]
        return options

    def _categorical(self, earlier: NDArray[np.float64] | None) -> dict[str, Any]:
        """Return the options for choices; `earlier` are an earlier run's points, float64[N, G]."""
        genes = self.space.genes
        first = [first_probabilities(genes[gene], START_PROBABILITY) for gene in self._choices]
        if earlier is not None:
            first = [
                seen_probabilities(genes[gene], earlier[:, gene], probabilities)
                for gene, probabilities in zip(self._choices, first, strict=True)
            ]
        sizes = [len(probabilities) for probabilities in first]
        padded = [np.pad(probabilities, (0, max(sizes) - len(probabilities))) for probabilities in first]
        return {"c_space": sizes, "cat_param": np.array(padded)}

    def _cells(self, gene: int) -> list[float]:
        """Return the midpoints of an integer gene's cells, in the unit box."""
        count = round(self._box.width[gene])
        midpoints: list[float] = ((np.arange(count) + 0.5) / count).tolist()
        return midpoints
