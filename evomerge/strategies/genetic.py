"""Genetic algorithm: generations of crossover and mutation, with elitism and tournaments; GENOME's swarm step.

In a generation, children of the population are scored, and the next population is chosen from parents and children:
the elites first, the rest by tournament or roulette, each individual at most once. Elites are asked the items of each
generation that keeps them, so that a lucky score does not stay for ever.

`preset: genome` and `genome_plus` are the settings of GENOME and GENOME+, arXiv 2503.01155, as in its scripts:

- a child of two parents is their mean, weighted by fitness:  child = (f_1 a + f_2 b) / (f_1 + f_2);
- before each generation, *succession*: every individual x moves towards its own best point p and the best point of all
  g, and away from the worst individual w (a particle swarm, as in Model Swarms, arXiv 2410.11163),

      v <- (r0 phi0 v + r1 phi1 (p - x) + r2 phi2 (g - x) - r3 phi3 (w - x)) / C,   C = sum_k r_k phi_k,
      x <- x + lambda v,

  with r ~ U(0, 1) drawn for each individual and step; lambda decreases with every step.

`preset: model_swarms` is the swarm alone, with the middle of the settings that Model Swarms tries: no crossover, no
mutation, a step that never falls below 0.1, and individuals that return to their best point after five steps without a
better one. There the first population is filled with mixtures and extrapolations of pairs; here with the space's random
merges.

`preset: replace_worst` is the genetic algorithm that M2N2 (arXiv 2508.16204) is compared with: one child at a time,
from parents drawn in proportion to fitness, replaces the worst individual. It is M2N2 without competition and
attraction, and is implemented as such.

The preset `genome_plus` has what the published program does beyond the paper's formulas: an individual's first velocity
is the difference to a random member of the population; lambda shrinks with every individual that is moved, not with
every step; w is the worst point that was ever seen; a generation for which no child is drawn has none.

Deviations from GENOME: there r is drawn once from the seed and never changes; here it is drawn for each step. A first
velocity is drawn when an individual moves first, there when it is made. There each gene mutates with a probability and
a standard deviation of its own; here mutation is the space's operator. The parents of mutants are selected like other
parents; GENOME takes every individual in turn. It stops early and this does not.

GENOME's genes are real. Here some may be discrete (choices, switches, seeds of noise), and discrete values are never
averaged. A child of two parents takes each discrete gene from one parent, with a probability equal to that parent's
share of the mean. In succession a discrete gene takes the value of p with probability lambda r1 phi1 / C, that of g
with lambda r2 phi2 / C (lambda at most 1), and keeps its own otherwise. For a one-hot encoded choice this equals the
published step on average, without inertia and repulsion, which lead to no other value. A mixture's noise is copied as
a whole, the seeds with their deviations.

GENOME+ lets its last population vote, answer by answer. Here the result is one recipe; `table: {ensemble: 10, voters:
last_population}` in a search file, of any strategy, additionally reports that vote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Answered, Generation
from evomerge.strategies.initial_population import Child, initial_population, random_merge
from evomerge.strategies.m2n2 import M2n2, M2n2Config
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.selection import couple, quality, roulette, tournament
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Selection = Literal["tournament", "roulette"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "genome": {"population": 10, "crossover": 0.0, "mutation": 0.1, "parents": "roulette"},
    "genome_plus": {
        "population": 10,
        "offspring_rate": 0.5,
        "crossover": 0.3,
        "weighted": True,
        "mutation": 0.0,
        "parents": "roulette",
        "survivors": "roulette",
        "succession": {"first_velocity": "difference", "decay_per": "individual", "worst_of": "ever"},
    },
    "model_swarms": {
        "population": 20,
        "crossover": 0.0,
        "mutation": 0.0,
        "succession": {
            "step": 0.7,
            "least_step": 0.1,
            "own_best": 0.3,
            "best": 0.4,
            "worst": 0.05,
            "first_velocity": "difference",
            "worst_of": "ever",
            "patience": 5,
        },
    },
    "replace_worst": {"replace": "worst", "parents": "roulette", "mutation": 0.0, "crossover": 1.0},
}


class SuccessionConfig(BaseModel):
    """GENOME's swarm step; the defaults are those of the published program."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: float = Field(default=0.5, gt=0, le=1000)
    """Length of the first step (lambda)."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """Factor on the length after each step."""
    least_step: float | None = Field(default=None, ge=0, le=1000)
    """The length never falls below this. None: it may fall to 0."""
    inertia: float = Field(default=0.2, ge=0, le=1000)
    """Weight of the individual's velocity (phi0)."""
    own_best: float = Field(default=0.2, ge=0, le=1000)
    """Attraction to the individual's own best point (phi1)."""
    best: float = Field(default=0.2, gt=0, le=1000)
    """Attraction to the best point of all individuals (phi2)."""
    worst: float = Field(default=0.1, ge=0, le=1000)
    """Repulsion from the worst individual (phi3)."""
    first_velocity: Literal["zero", "difference"] = "zero"
    """Velocity before the first move: none, or the difference to a random member of the population."""
    decay_per: Literal["step", "individual"] = "step"
    """Whether the length decays with each step of the population, or with each individual that is moved."""
    worst_of: Literal["population", "ever"] = "population"
    """Whether the worst individual is that of the population, or the worst point that was ever seen."""
    patience: int | None = Field(default=None, ge=1, le=100_000)
    """An individual that has not improved on its own best point for so many steps returns to it and rests. None: it
    never does."""


@register_strategy
class GeneticConfig(StrategyConfig):
    """A genetic algorithm with the space's own crossover and mutation, and presets for published ones."""

    warm_start_type = WarmStartPopulation
    archive_compares = M2n2Config.archive_compares

    kind: Literal["genetic"] = "genetic"
    preset: Literal["genome", "genome_plus", "model_swarms", "replace_worst"] | None = None
    """Published settings for all keys that are not given: GENOME, GENOME+ (with succession), Model Swarms (succession
    alone), or M2N2's baseline, in which each child replaces the worst individual."""
    population: int = Field(default=20, ge=2, le=10_000)
    """Individuals, at least 2."""
    offspring_rate: float = Field(default=1.0, gt=0, le=1000)
    """Expected offspring per individual and generation, before the draws of `crossover` and `mutation`."""
    crossover: float = Field(default=0.7, ge=0, le=1)
    """Probability that a child has two parents."""
    weighted: bool = False
    """Whether a child of two parents is their fitness-weighted mean. Otherwise the space's crossover is used."""
    mutation: float = Field(default=0.5, ge=0, le=1)
    """Probability that a child is mutated. If neither crossover nor mutation is drawn, there is no child."""
    parents: Selection = "tournament"
    """How parents are selected. `tournament`: the best of a few drawn at random. `roulette`: in proportion to
    fitness."""
    survivors: Selection = "tournament"
    """How the rest of the next population is selected from parents and children, after the elites."""
    tournament: int = Field(default=3, ge=1, le=10_000)
    """Individuals per tournament."""
    elite: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the population kept unchanged as elites, rounded up."""
    replace: Literal["generation", "worst"] = "generation"
    """What children replace. `worst`: one child at a time replaces the worst individual, and no worker is ever idle."""
    succession: SuccessionConfig | None = None
    """A swarm step before each generation; it costs one evaluation per individual."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, values: Any) -> Any:
        """Take from the preset what is not given."""
        preset = values.get("preset") if isinstance(values, dict) else None
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values

    @model_validator(mode="after")
    def _consistent(self) -> GeneticConfig:
        if self.replace == "worst" and (self.parents != "roulette" or self.weighted or self.succession):
            raise ValueError("replace: worst needs parents: roulette and neither weighted nor succession; change those")
        if self.crossover == self.mutation == 0.0 and self.succession is None:
            raise ValueError(
                "crossover and mutation are both 0, so there are no children; raise one of them, or set succession"
            )
        return self

    @property
    def keeps_archive(self) -> bool:
        """Whether children replace the worst individual, as in M2N2's archive."""
        return self.replace == "worst"

    def build(self, space: SearchSpace, seed: int) -> Genetic | M2n2:
        """Build the strategy."""
        if self.replace == "generation":
            return Genetic(space, seed, self)
        without_niches = M2n2Config(
            archive=self.population,
            alpha=0.0,
            attraction=False,
            crossover=self.crossover,
            mutation=self.mutation,
            warm_up=0,
            warm_start=self.warm_start,
        )
        return M2n2(space, seed, without_niches)


@dataclass(eq=False)
class Individual:
    """A member of the population; its best point and its velocity are used by succession only."""

    genotype: Genotype
    fitness: float
    best: Genotype
    best_fitness: float
    velocity: Genotype | None
    stale: int = 0  # steps since the best point

    @classmethod
    def at_rest(cls, genotype: Genotype, fitness: float) -> Individual:
        """Return an individual that has not moved yet."""
        return cls(genotype, fitness, genotype, fitness, None)

    def rescore(self, fitness: float) -> None:
        """Take the fitness that follows from more answers."""
        if np.array_equal(self.best, self.genotype):
            self.best_fitness = fitness
        self.fitness = fitness


class Genetic(Strategy):
    """Generations. Synchronous: it learns from a generation when all its results are in.

    Attributes
    ----------
    individuals
        The population, float64[G] genotypes with their fitness.
    """

    guess = "population's best"

    def __init__(self, space: SearchSpace, seed: int, config: GeneticConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.individuals: list[Individual] = []
        self._generation = Generation.none()
        self._learn_from = self._first_population
        self._decays = 0  # how often the length of swarm steps has decayed
        self._worst: tuple[float, Genotype] | None = None  # the worst point that was ever seen
        self._elites: list[Individual] = []  # asked again in this generation
        self._answered = Answered()

    def recommend(self) -> Genotype | None:
        """Return the best point of any individual so far; None while there is none."""
        best = max(self.individuals, key=lambda individual: individual.best_fitness, default=None)
        return None if best is None else best.best.copy()

    def members(self) -> list[Genotype]:
        """Return the population, best first."""
        return [one.genotype.copy() for one in sorted(self.individuals, key=lambda one: -one.fitness)]

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            self._next_generation()
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._answered.add(self._first_id(candidate), evaluation)
        if not self._generation.put(candidate, evaluation):
            return
        for individual in _scored(self._generation):
            if self._worst is None or individual.fitness < self._worst[0]:
                self._worst = individual.fitness, individual.genotype
        self._learn_from(self._generation)

    def _next_generation(self) -> None:
        if not self.individuals:
            children, self._learn_from = self._first_proposals(), self._first_population
        elif self.config.succession is not None and self._learn_from != self._move:
            children, self._learn_from = self._moved(self.config.succession), self._move
        else:
            children, self._learn_from = self._children(), self._select
            if not children and self.config.succession is not None:
                children, self._learn_from = self._moved(self.config.succession), self._move
        keep = self._learn_from == self._select
        elites = self.individuals[: self._elite_count] if keep else []  # sorted: the first are the best
        self._elites = [elite for elite in elites if self._answered.misses_some(self._id_of(elite.genotype))]
        again = [individual.genotype for individual in self._elites]
        genotypes, parents = [child.genotype for child in children], [child.parents for child in children]
        self._generation = Generation(self._generation.number + 1, self._asked, genotypes, again=again, parents=parents)

    @property
    def _elite_count(self) -> int:
        return math.ceil(self.config.elite * self.population)

    # --- the first population ---

    def _first_proposals(self) -> list[Child]:
        # If initial candidates were proposed before, all of them have failed: sample.
        initial = initial_population(self.space, self.config.warm_start, self.population) if self._asked == 0 else []
        merges = max(self.population - len(initial), 0)
        return [*map(Child, initial), *(random_merge(self.space, initial, self.rng) for _ in range(merges))]

    def _first_population(self, generation: Generation) -> None:
        self.individuals = self._survivors(_scored(generation))

    # --- children ---

    def _children(self) -> list[Child]:
        children: list[Child] = []
        attempts = max(1, round(self.config.offspring_rate * self.population))
        while not children:
            children = [child for child in (self._child() for _ in range(attempts)) if child is not None]
            if self.config.succession is not None:
                break  # the next swarm step follows
        return children

    def _child(self) -> Child | None:
        """Return a child; None if neither crossover nor mutation is drawn."""
        crossed = len(self.individuals) > 1 and self.rng.random() < self.config.crossover
        mutated = self.rng.random() < self.config.mutation or len(self.individuals) == 1
        if not (crossed or mutated):
            return None
        fitness = self._fitness()
        if crossed:
            first, second = self._couple(fitness)
            child = self._crossed(first, second)
            parents = [self.individuals[at].genotype for at in (first, second)]
        else:
            parents = [self.individuals[self._drawn(self.config.parents, fitness)].genotype]
            child = parents[0].copy()
        return Child(self.space.mutate(child, self.rng) if mutated else child, parents)

    def _crossed(self, first: int, second: int) -> Genotype:
        a, b = self.individuals[first], self.individuals[second]
        if not self.config.weighted:
            return self.space.crossover(a.genotype, b.genotype, self.rng)
        # Weights within the whole population: of two alone, the worse one with negative fitness would get weight 0.
        weights = quality(self._fitness())[[first, second]]
        total = weights.sum()
        share = weights[0] / total if total > 0.0 else 0.5
        mean = share * a.genotype + (1.0 - share) * b.genotype
        return self.space.recombine(mean, (a.genotype, b.genotype), (share, 1.0 - share), self.rng)

    def _couple(self, fitness: NDArray[np.float64]) -> tuple[int, int]:
        if self.config.parents == "roulette":
            return couple(quality(fitness), self.rng)
        first = self._drawn("tournament", fitness)
        second = self._drawn("tournament", np.delete(fitness, first))
        return first, second + (second >= first)

    def _select(self, generation: Generation) -> None:
        for position, elite in enumerate(self._elites):
            fitness = generation.evaluation_again(position).fitness
            if math.isfinite(fitness):
                elite.rescore(fitness)
        self.individuals = self._survivors([*self.individuals, *_scored(generation)])

    def _survivors(self, pool: list[Individual]) -> list[Individual]:
        """Select the next population: the elites, then the rest by tournament or roulette, each individual once."""
        pool = sorted(pool, key=lambda individual: -individual.fitness)  # stable: the older individual wins a tie
        chosen, rest = pool[: self._elite_count], pool[self._elite_count :]
        while rest and len(chosen) < self.population:
            fitness = np.array([individual.fitness for individual in rest])
            chosen.append(rest.pop(self._drawn(self.config.survivors, fitness)))
        return chosen

    def _drawn(self, how: Selection, fitness: NDArray[np.float64]) -> int:
        if how == "roulette":
            return roulette(quality(fitness), self.rng)
        return tournament(fitness, self.config.tournament, self.rng)

    def _fitness(self) -> NDArray[np.float64]:
        return np.array([individual.fitness for individual in self.individuals])

    # --- succession ---

    def _moved(self, swarm: SuccessionConfig) -> list[Child]:
        fitness = self._fitness()
        best = max(self.individuals, key=lambda individual: individual.best_fitness).best
        worst = self.individuals[int(np.argmin(fitness))].genotype
        if swarm.worst_of == "ever" and self._worst is not None:
            worst = self._worst[1]
        phi = np.array([swarm.inertia, swarm.own_best, swarm.best, swarm.worst])
        moved: list[Child] = []
        for individual in self.individuals:
            x = individual.genotype
            if swarm.decay_per == "individual":
                self._decays += 1
            length = max(swarm.least_step or 0.0, swarm.step * swarm.decay**self._decays)
            weights = phi * self.rng.random(4)  # r_k phi_k
            pulls = np.array([self._velocity(individual, swarm), individual.best - x, best - x, x - worst])
            individual.velocity = velocity = weights @ pulls / weights.sum()
            taken = min(length, 1.0) * weights[1:3] / weights.sum()  # of p and of g
            shares = (max(0.0, 1.0 - taken.sum()), *taken)
            point = x + length * velocity
            parents = (x, individual.best, best)
            moved.append(Child(self.space.recombine(point, parents, shares, self.rng), parents))
        if swarm.decay_per == "step":
            self._decays += 1
        return moved

    def _velocity(self, individual: Individual, swarm: SuccessionConfig) -> Genotype:
        if individual.velocity is not None:
            return individual.velocity
        if swarm.first_velocity == "zero":
            return np.zeros_like(individual.genotype)
        other = self.individuals[int(self.rng.integers(len(self.individuals)))]
        return other.genotype - individual.genotype

    def _move(self, generation: Generation) -> None:
        swarm = self.config.succession
        assert swarm is not None
        moves = zip(self.individuals, generation.samples, generation.fitness.tolist(), strict=True)
        for individual, genotype, fitness in moves:
            if not math.isfinite(fitness):  # a failed move: keep the position, stop the motion
                individual.velocity = np.zeros_like(genotype)
                continue
            individual.genotype, individual.fitness = genotype, fitness
            individual.stale += 1
            if fitness > individual.best_fitness:
                individual.best, individual.best_fitness, individual.stale = genotype, fitness, 0
            elif swarm.patience is not None and individual.stale >= swarm.patience:
                individual.genotype, individual.fitness = individual.best, individual.best_fitness
                individual.velocity, individual.stale = np.zeros_like(genotype), 0


def _scored(generation: Generation) -> list[Individual]:
    pairs = zip(generation.samples, generation.fitness.tolist(), strict=True)
    return [Individual.at_rest(genotype, fitness) for genotype, fitness in pairs if math.isfinite(fitness)]
