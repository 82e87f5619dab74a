"""Problems with a known best point, over any genes, for testing strategies without a model.

A planted space has genes and no models. Its recipes are sums of task vectors of models that need not exist, one per
gene, weighted by the gene's coordinate; so two genotypes give the same recipe only if they are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitness.results import Evaluation
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from search_spaces.spaces.genes import Choice, Gene, Integer, Real
from search_spaces.spaces.space import Genotype, SearchSpace

ITEMS = tuple(f"planted/test/{index}" for index in range(12))


class PlantedSpace(SearchSpace):
    """Any genes; a gene may depend on a switch.

    Parameters
    ----------
    genes
        One or more.
    switches
        Position of a conditional gene to the position of the choice that it depends on. The gene is active unless the
        choice is its first option.
    """

    def __init__(self, genes: Sequence[Gene], switches: Mapping[int, int] | None = None) -> None:
        self.genes = tuple(genes)
        self._switches = dict(switches or {})

    def active(self, genotype: Genotype) -> NDArray[np.bool_]:
        """Return which genes count, bool[G]."""
        active = np.ones(self.dimension, dtype=np.bool_)
        for gene, switch in self._switches.items():
            active[gene] = genotype[switch] >= 1.0
        return active

    def decode(self, genotype: Genotype) -> Recipe:
        """Return base + Σ coordinate · model, one model per gene."""
        point = self.settled(self._checked(genotype))
        models = [Source(f"/models/{index}", None, (("weight", constant(x)),)) for index, x in enumerate(point)]
        return Recipe("task_arithmetic", (Slice((*models, Source("/models/base", None))),), "/models/base")

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the coordinates that `decode` has written down."""
        sources = recipe.slices[0].sources[:-1]
        weights: list[Any] = [dict(source.parameters)["weight"][0].value for source in sources]
        return np.array(weights, dtype=np.float64)


def reals(count: int) -> PlantedSpace:
    """Return a space of real genes from -0.5 to 1.5, starting at 0.3."""
    return PlantedSpace([Real(f"x{index}", -0.5, 1.5, 0.3) for index in range(count)])


def mixed(count: int) -> PlantedSpace:
    """Return a space of reals, choices and whole numbers in turn; its start is not the optimum."""
    kinds = (
        lambda index: Real(f"x{index}", -0.5, 1.5, 0.3),
        lambda index: Choice(f"method{index}", ("linear", "ties", "slerp"), "linear"),
        lambda index: Integer(f"rank{index}", 0, 6, 1),
    )
    return PlantedSpace([kinds[index % 3](index) for index in range(count)])


def switched(slots: int) -> PlantedSpace:
    """Return a space with a switch per slot, every second one on at the start, and a scale that counts if it is on."""
    bits = [Choice(f"slot{index}", ("off", "on"), "on" if index % 2 else "off") for index in range(slots)]
    scales = [Real(f"scale{index}", 0.0, 2.0, 1.0) for index in range(slots)]
    return PlantedSpace([*bits, *scales], {slots + index: index for index in range(slots)})


def distances(space: SearchSpace, genotype: Genotype) -> NDArray[np.float64]:
    """Return each gene's distance from the planted optimum, float64[G], as a share of its range; 0 if it is inactive.

    The optimum is at 0.65 of a real or whole range, and the last option of a choice.
    """
    point = space.settled(genotype)
    wanted = space.settled(space.low + 0.65 * (space.high - space.low))
    last = np.array([isinstance(gene, Choice) for gene in space.genes])
    wanted = np.where(last, space.high - 0.5, wanted)
    off = np.abs(point - wanted) / (space.high - space.low)
    return np.where(last, (off > 0) * 0.3, off) * space.active(genotype)


def evaluate(space: SearchSpace, genotype: Genotype, objectives: int = 1) -> Evaluation:
    """Score a genotype: each objective is 1 minus the squared distance over its own share of the genes.

    Items have scores 0 or 1: an item is right if its gene is near enough to the optimum.
    """
    off = distances(space, genotype)
    values = tuple(1.0 - float((off[part::objectives] ** 2).sum()) for part in range(objectives))
    needed = np.linspace(0.05, 0.4, len(ITEMS))
    right = np.array([off[item % len(off)] <= radius for item, radius in enumerate(needed)])
    return Evaluation("ok", values, (0.01,) * objectives, ITEMS, right.astype(np.float32))
