"""Greedy merging: soups, and pairs of the best merges with exploration by kinship.

`merge: soup` is the greedy soup (Wortsman et al. 2022, arXiv 2203.05482) and the selective merge of Model-GLUE
(arXiv 2410.05357): the sources, best first, join the mean one after the other, each if the score does not fall.

`merge: pairs` is top-k greedy merging with model kinship (Hu et al., arXiv 2410.12613). In each round all pairs of the
best `top` merges that have not been merged yet are merged half and half. With `explore`, the best one is also merged
with the merge of the least kinship to it. The search ends when the best are so alike, by `stop`, that merging them
changes little, or when no pair is left.

Kinship is the similarity of two merges' task vectors (`SearchSpace.similarity`): their cosine, which a mixture computes
from the models' weights; in other spaces that of the coefficients. With `mergeable`, sources are first put into
clusters, in which each is at least this similar to another one; only the cluster of the best source is merged.

A merge of merges is the mean of their genotypes. Sources are the first candidates that a search knows: its founders and
those of the space.

Deviations: pairs are means of coefficients and not spherical. The paper's algorithm says "highest" where its text and
its figures have the merge of the lowest kinship; so has this one. Model-GLUE continues with a mixture of experts from
the clusters, which is not a merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Generation
from evomerge.strategies.initial_population import Child, initial_population
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class GreedyConfig(StrategyConfig):
    """Greedy merging of the sources: a soup, or pairs of the best with exploration by kinship. It ends by itself."""

    warm_start_type = WarmStartPopulation
    as_stage = False

    kind: Literal["greedy"] = "greedy"
    merge: Literal["soup", "pairs"] = "pairs"
    """`soup`: sources join the mean, best first, each if the score does not fall. `pairs`: the best merges are merged
    in pairs, round by round."""
    top: int = Field(default=3, ge=2, le=1000)
    """Merges of which all pairs are merged in a round."""
    explore: Literal["kinship", "random", "none"] = "kinship"
    """What the best merge is also merged with in each round. `kinship`: the one of the least kinship to it. `random`: a
    random one, to compare with."""
    stop: float = Field(default=0.9, ge=-1, le=1)
    """Kinship of the best merges above which the search ends."""
    mergeable: float | None = Field(default=None, ge=-1, le=1)
    """Least similarity of a source to another one in its cluster; only the best source's cluster is merged. By default
    all sources are one cluster."""
    samples: int = Field(default=0, ge=0, le=10_000)
    """Random points of the space that count as further sources."""
    population: int = Field(default=16, ge=1, le=10_000)
    """How many candidates a warm start may load."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates count as further sources. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings.

        Raises
        ------
        ValueError
            If no gene is a real number.
        """
        if space.discrete.all():
            raise ValueError(
                "strategy.kind greedy takes means of coefficients and all genes of this space are choices or whole "
                "numbers; write space.kind: mixture, or strategy.kind: eda"
            )
        return self

    def build(self, space: SearchSpace, seed: int) -> Greedy:
        """Build the strategy.

        Raises
        ------
        ValueError
            If there are fewer than two sources.
        """
        return Greedy(space, seed, self)


class Greedy(Strategy):
    """Synchronous: it learns from a round when all its results are in.

    Attributes
    ----------
    ranked
        The sources of the best source's cluster and the merges so far, best first.
    """

    guess = "greedy merge"

    def __init__(self, space: SearchSpace, seed: int, config: GreedyConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        known = initial_population(space, config.warm_start, config.population)
        sources = [*known, *(space.sample(self.rng) for _ in range(config.samples))]
        self._sources = list({space.settled(point).tobytes(): point for point in sources}.values())
        if len(self._sources) < 2:
            raise ValueError(
                "strategy.kind greedy merges sources and this space has one; write strategy.samples: 8 for random "
                "ones, space.kind: mixture for those of the models, or another strategy"
            )
        self.population = config.population
        self.ranked: list[Member] = []
        self._generation = Generation.none()
        self._made: set[frozenset[bytes]] = set()
        self._soup: list[Member] = []
        self._soup_fitness = -math.inf
        self._left: list[Member] = []  # sources that have not been tried for the soup
        self._next: list[Child] = [Child(point) for point in self._sources]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to merge."""
        return self._generation.complete and not self._next

    def recommend(self) -> Genotype | None:
        """Return the soup, or the best merge; None before the first result."""
        if self._soup:
            return self._mean(self._soup)
        return self.ranked[0].genotype.copy() if self.ranked else None

    def members(self) -> list[Genotype]:
        """Return the sources and merges, best first."""
        return [one.genotype.copy() for one in self.ranked]

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete and self._next:
            genotypes, parents = [one.genotype for one in self._next], [one.parents for one in self._next]
            number = self._generation.number + 1
            self._generation, self._next = Generation(number, self._asked, genotypes, parents=parents), []
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if not self._generation.put(candidate, evaluation):
            return
        first = self._generation.number == 0
        scored = zip(self._generation.samples, self._generation.fitness.tolist(), strict=True)
        told = [Member(genotype, fitness) for genotype, fitness in scored if math.isfinite(fitness)]
        if first:
            self.ranked = self._cluster(sorted(told, key=lambda one: -one.fitness))
        if self.config.merge == "soup":
            self._next = self._start_soup() if first else self._stir(told)
        else:
            if not first:
                self.ranked = sorted([*self.ranked, *told], key=lambda one: -one.fitness)
            self._next = self._pairs()

    # --- clusters ---

    def _cluster(self, sources: list[Member]) -> list[Member]:
        """Return the sources of the first one's cluster, in their order: single linkage."""
        if self.config.mergeable is None or not sources:
            return sources
        inside, outside = [sources[0]], list(sources[1:])
        near = inside
        while near:
            near = [one for one in outside if max(self._kinship(one, other) for other in near) >= self.config.mergeable]
            outside = [one for one in outside if one not in near]
            inside += near
        return sorted(inside, key=lambda one: -one.fitness)

    def _kinship(self, one: Member, other: Member) -> float:
        return self.space.similarity(one.genotype, other.genotype)

    # --- the soup ---

    def _start_soup(self) -> list[Child]:
        self._soup, self._left = self.ranked[:1], self.ranked[1:]
        self._soup_fitness = self._soup[0].fitness if self._soup else -math.inf
        return self._try_next()

    def _stir(self, told: Sequence[Member]) -> list[Child]:
        """Keep the ingredient that was tried if the score did not fall; try the next one."""
        tried = self._left.pop(0)
        if told and told[0].fitness >= self._soup_fitness:
            self._soup, self._soup_fitness = [*self._soup, tried], told[0].fitness
        return self._try_next()

    def _try_next(self) -> list[Child]:
        if not self._left:
            return []
        ingredients = [*self._soup, self._left[0]]
        return [Child(self._mean(ingredients), [one.genotype for one in ingredients])]

    # --- pairs ---

    def _pairs(self) -> list[Child]:
        """Return the merges of the next round; none if the best are alike."""
        best = self.ranked[: self.config.top]
        pairs = list(combinations(best, 2))
        if self._asked > len(self._sources) and pairs:
            kinships = [self._kinship(*pair) for pair in pairs]
            if min(kinships) > self.config.stop:
                return []
        if self.config.explore != "none" and len(self.ranked) > 1:
            pairs.append((best[0], self._explored(best[0])))
        return [Child(self._mean(pair), [one.genotype for one in pair]) for pair in pairs if self._is_new(pair)]

    def _explored(self, best: Member) -> Member:
        others = self.ranked[1:]
        if self.config.explore == "random":
            return others[int(self.rng.integers(len(others)))]
        return min(others, key=lambda other: self._kinship(best, other))

    def _is_new(self, pair: Sequence[Member]) -> bool:
        key = frozenset(one.genotype.tobytes() for one in pair)
        new = key not in self._made and len(key) == 2
        self._made.add(key)
        return new

    def _mean(self, members: Sequence[Member]) -> Genotype:
        donors = [one.genotype for one in members]
        # A choice has no mean: that of the best member is taken.
        shares = [1.0, *[0.0] * (len(donors) - 1)]
        return self.space.recombine(np.mean(donors, axis=0), donors, shares, np.random.default_rng(0))


@dataclass(frozen=True, eq=False)
class Member:
    """A source or a merge with its score."""

    genotype: Genotype
    fitness: float
