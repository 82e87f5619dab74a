"""Genetic algorithm: generations of crossover and mutation, with elitism and tournaments; GENOME's swarm step.

A generation: children of the population are scored, and the next population is chosen from both, elites first and
the rest by tournament or roulette, each individual at most once.

`preset: genome` and `genome_plus` are the settings of GENOME and GENOME+, arXiv 2503.01155, as its scripts ship them:

- a child of two parents is their mean, weighted by fitness:  child = (f_1 a + f_2 b) / (f_1 + f_2);
- before each generation, *succession*: every individual moves towards its own best p, the best of all g and away from
  the worst w (a particle swarm, as in Model Swarms, arXiv 2410.11163),

      v <- (r0 phi0 v + r1 phi1 (p - x) + r2 phi2 (g - x) - r3 phi3 (w - x)) / C,   C = sum_k r_k phi_k,
      x <- x + lambda v,

  r ~ U(0, 1) anew for each individual and step, lambda shrinking with every step.

`preset: replace_worst` is the genetic algorithm that M2N2 (arXiv 2508.16204) is compared with: one child at a time of
parents drawn in proportion to fitness, which takes the place of the worst individual. It is M2N2 without competition
and attraction, and built as such.

Deviations from GENOME: its r are drawn once from the seed, so that they never change; here they are drawn anew. It
moves each gene with a probability and a standard deviation of its own; here mutation is the space's. Mutants'
parents are selected like others, and not every individual in turn.

GENOME's genes are real. Here some may be discrete (choices, switches, seeds of noise), and values are never averaged.
A child of two has each such gene from one parent, with the probability of that parent's share of the mean. In
succession the gene becomes that of p with the probability lambda r1 phi1 / C, that of g with lambda r2 phi2 / C (lambda
at most 1), and stays otherwise: on average the published step of a choice written as zeros and a one, without inertia
and flight, which lead to no other value. A mixture's noise is taken over as a whole, its seeds with their deviations.

GENOME+ lets its last population vote, answer by answer; here the result is one recipe, and `ensemble: 10` lets the ten
best candidates of the search vote beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Generation, Proposal
from evomerge.strategies.initial_population import founders_of, random_merge
from evomerge.strategies.m2n2 import M2n2, M2n2Config
from evomerge.strategies.selection import couple, quality, roulette, tournament
from evomerge.strategies.warm_start import Founders
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
        "succession": {},
    },
    "replace_worst": {"replace": "worst", "parents": "roulette", "mutation": 0.0, "crossover": 1.0},
}


class SuccessionConfig(BaseModel):
    """GENOME's swarm step; the factors are those of the published program."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: float = Field(default=0.5, gt=0)
    """Length of the first step, lambda."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """What the length is multiplied by after each step."""
    inertia: float = Field(default=0.2, ge=0)
    """Weight of the individual's velocity, phi0."""
    own_best: float = Field(default=0.2, ge=0)
    """Weight of the individual's own best point, phi1."""
    best: float = Field(default=0.2, gt=0)
    """Weight of the best point of all, phi2."""
    worst: float = Field(default=0.1, ge=0)
    """Weight of the worst point, which is fled from, phi3."""


class GeneticConfig(BaseModel):
    """A genetic algorithm with the space's own crossover and mutation; presets for published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["one"]] = "one"

    kind: Literal["genetic"] = "genetic"
    preset: Literal["genome", "genome_plus", "replace_worst"] | None = None
    """Published settings, for all that is not given here: GENOME, GENOME+ (with succession), or M2N2's baseline, in
    which a child replaces the worst."""
    population: int = Field(default=20, ge=2)
    """Individuals, at least 2."""
    offspring_rate: float = Field(default=1.0, gt=0)
    """Chances for a child in each generation, per individual."""
    crossover: float = Field(default=0.7, ge=0, le=1)
    """Probability that a child has two parents."""
    weighted: bool = False
    """Whether a child of two is their mean weighted by fitness; else the space crosses them."""
    mutation: float = Field(default=0.5, ge=0, le=1)
    """Probability that a child is mutated. A chance that brings neither crossover nor mutation brings no child."""
    parents: Selection = "tournament"
    """How parents are drawn: the best of a few drawn at random, or each in proportion to its fitness."""
    survivors: Selection = "tournament"
    """How the next population is drawn from individuals and children, after the elites."""
    tournament: int = Field(default=3, ge=1)
    """How many compete in a tournament."""
    elite: float = Field(default=0.1, ge=0, le=1)
    """Share of the population that the best are sure of, rounded up."""
    replace: Literal["generation", "worst"] = "generation"
    """`worst`: children come one at a time, and each replaces the worst individual; no worker ever waits."""
    succession: SuccessionConfig | None = None
    """A swarm step before each generation, which costs as many evaluations as there are individuals."""
    ensemble: int | None = Field(default=None, ge=2, le=100)
    """After the search, let so many of the best candidates vote on the held-out items, answer by answer: a further row
    of the final table, and no recipe. For tasks whose metric follows from one answer (accuracy, exact match)."""
    warm_start: Founders | None = None
    """Begin with the best candidates of a former search; none by default."""

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, values: Any) -> Any:
        """Let a preset give what is not given."""
        return {**PRESETS.get(values.get("preset") or "", {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _consistent(self) -> GeneticConfig:
        if self.replace == "worst" and (self.parents != "roulette" or self.weighted or self.succession):
            raise ValueError("replace: worst goes with parents: roulette, and without weighted and succession")
        if self.crossover == self.mutation == 0.0:
            raise ValueError("crossover and mutation are both 0, so there are no children; raise one of them")
        return self

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> GeneticConfig:
        """Return the settings as they are: nothing here is `auto`."""
        return self

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
    """A member of the population; its own best point and its velocity matter to succession only."""

    genotype: Genotype
    fitness: float
    best: Genotype
    best_fitness: float
    velocity: Genotype

    @classmethod
    def born(cls, genotype: Genotype, fitness: float) -> Individual:
        """Return one that has not moved yet."""
        return cls(genotype, fitness, genotype, fitness, np.zeros_like(genotype))


class Genetic(Strategy):
    """Generations; synchronous: a generation is learnt from when all its results are in.

    Attributes
    ----------
    individuals
        The population, float64[G] genotypes with their fitness.
    """

    def __init__(self, space: SearchSpace, seed: int, config: GeneticConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.individuals: list[Individual] = []
        self._generation = Generation.none()
        self._learn_from = self._found
        self._step = 0  # swarm steps taken

    def recommend(self) -> Genotype | None:
        """Return the best point that any individual has seen; None while there is none."""
        best = max(self.individuals, key=lambda individual: individual.best_fitness, default=None)
        return None if best is None else best.best.copy()

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            self._next_generation()
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._generation.put(candidate, evaluation):
            self._learn_from(self._generation)

    def _next_generation(self) -> None:
        if not self.individuals:
            genotypes, self._learn_from = self._founders(), self._found
        elif self.config.succession is not None and self._learn_from != self._move:
            genotypes, self._learn_from = self._moved(self.config.succession), self._move
        else:
            genotypes, self._learn_from = self._children(), self._select
        self._generation = Generation(self._generation.number + 1, self._asked, genotypes)

    # --- the first population ---

    def _founders(self) -> list[Genotype]:
        # Where there were founders already, they have failed: sample.
        founders = founders_of(self.space, self.config.warm_start, self.population) if self._asked == 0 else []
        merges = max(self.population - len(founders), 0)
        return [*founders, *(random_merge(self.space, founders, self.rng) for _ in range(merges))]

    def _found(self, generation: Generation) -> None:
        self.individuals = self._survivors(_born(generation))

    # --- children ---

    def _children(self) -> list[Genotype]:
        children: list[Genotype] = []
        chances = max(1, round(self.config.offspring_rate * self.population))
        while not children:
            children = [child for child in (self._child() for _ in range(chances)) if child is not None]
        return children

    def _child(self) -> Genotype | None:
        """Return a child, or nothing where there is neither crossover nor mutation."""
        crossed = len(self.individuals) > 1 and self.rng.random() < self.config.crossover
        mutated = self.rng.random() < self.config.mutation or len(self.individuals) == 1
        if not (crossed or mutated):
            return None
        fitness = self._fitness()
        if crossed:
            child = self._crossed(*self._couple(fitness))
        else:
            child = self.individuals[self._drawn(self.config.parents, fitness)].genotype.copy()
        return self.space.mutate(child, self.rng) if mutated else child

    def _crossed(self, first: int, second: int) -> Genotype:
        a, b = self.individuals[first], self.individuals[second]
        if not self.config.weighted:
            return self.space.crossover(a.genotype, b.genotype, self.rng)
        # Of the whole population: of two alone, the worse one of negative fitness would always weigh nothing.
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
        self.individuals = self._survivors([*self.individuals, *_born(generation)])

    def _survivors(self, pool: list[Individual]) -> list[Individual]:
        """Choose the next population: the elites, then the others by tournament or roulette, each at most once."""
        pool = sorted(pool, key=lambda individual: -individual.fitness)  # stable: the older one wins a tie
        count = math.ceil(self.config.elite * self.population)
        chosen, rest = pool[:count], pool[count:]
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

    def _moved(self, swarm: SuccessionConfig) -> list[Genotype]:
        fitness = self._fitness()
        best = max(self.individuals, key=lambda individual: individual.best_fitness).best
        worst = self.individuals[int(np.argmin(fitness))].genotype
        length = swarm.step * swarm.decay**self._step
        self._step += 1
        phi = np.array([swarm.inertia, swarm.own_best, swarm.best, swarm.worst])
        points: list[Genotype] = []
        for individual in self.individuals:
            x = individual.genotype
            weights = phi * self.rng.random(4)  # r_k phi_k
            pulls = np.array([individual.velocity, individual.best - x, best - x, x - worst])
            individual.velocity = weights @ pulls / weights.sum()
            taken = min(length, 1.0) * weights[1:3] / weights.sum()  # of p and of g
            shares = (max(0.0, 1.0 - taken.sum()), *taken)
            point = x + length * individual.velocity
            points.append(self.space.recombine(point, (x, individual.best, best), shares, self.rng))
        return points

    def _move(self, generation: Generation) -> None:
        moves = zip(self.individuals, generation.samples, generation.fitness.tolist(), strict=True)
        for individual, genotype, fitness in moves:
            if not math.isfinite(fitness):  # it stays where it is, and stands still
                individual.velocity = np.zeros_like(genotype)
                continue
            individual.genotype, individual.fitness = genotype, fitness
            if fitness > individual.best_fitness:
                individual.best, individual.best_fitness = genotype, fitness


def _born(generation: Generation) -> list[Individual]:
    pairs = zip(generation.samples, generation.fitness.tolist(), strict=True)
    return [Individual.born(genotype, fitness) for genotype, fitness in pairs if math.isfinite(fitness)]
