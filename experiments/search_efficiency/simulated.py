"""A landscape whose best point is known: items that are answered right or wrong by a logistic response.

Item i is answered right at genotype x if its ability exceeds its difficulty:

    z_i(x) = a - q(x) + g_i . (x - x*) - b_i > 0,    q(x) = (x - x*)' R' D R (x - x*),

with difficulties b_i from the logistic distribution, so that without the second term the share of right answers is
sigmoid(a - q(x)). D is diagonal with eigenvalues spread evenly in their logarithm over two decades, R a random
rotation: genes depend on each other, and some matter a hundred times more than others. g_i is an item's own taste,
drawn with mean zero: a search that asks few fixed items follows them away from x*, which is the best point of the
whole population of items. The loss of an item is log(1 + exp(-z_i)), whose derivatives are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from experiments.search_efficiency.numeric import HIGH, LOW, NumericWorker, WeightsSpace
from experiments.search_efficiency.problems import CHECKPOINTS, LONG, Problem, expert_genotypes
from search_spaces.spaces.space import Genotype

Array = NDArray[np.float64]

EXPERTS = 4
START = 0.7
SEARCH_ITEMS, HELD_OUT_ITEMS = 600, 4000
BEST, AT_START = 0.85, 0.40
"""Share of right answers at the best point and at the start, without the items' own tastes."""
CONDITION = 100.0
MANY = 100
"""Genes above which a strategy's own arithmetic takes longer than a model would."""
TASTE = 1.0
"""Standard deviation of an item's own taste at the start, in the unit of z."""


class Landscape:
    """Responses of items to genotypes.

    Parameters
    ----------
    genes
        G.
    seed
        Decides the best point, the rotation and the items.
    """

    def __init__(self, genes: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, genes])
        width = HIGH - LOW
        self.best = np.clip(START + rng.normal(0.0, 0.2 * width, genes), LOW + 0.1 * width, HIGH - 0.1 * width)
        rotation = np.linalg.qr(rng.normal(size=(genes, genes)))[0]
        eigenvalues = np.logspace(0.0, -np.log10(CONDITION), genes)
        shape = (rotation.T * eigenvalues) @ rotation
        self.level = float(np.log(BEST / (1 - BEST)))
        away = np.full(genes, START) - self.best
        wanted = self.level - np.log(AT_START / (1 - AT_START))
        self.shape = shape * wanted / (away @ shape @ away)
        self.tastes, self.difficulty = self._items(SEARCH_ITEMS, away, rng)
        self._held_out = self._items(HELD_OUT_ITEMS, away, rng)

    def _items(self, count: int, away: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw items: tastes float64[I, G] with the landscape's own shape, and difficulties float64[I]."""
        root = np.linalg.cholesky(self.shape)
        scale = TASTE / np.sqrt(away @ self.shape @ away)
        return scale * rng.normal(size=(count, away.size)) @ root.T, rng.logistic(size=count)

    def margins(self, genotype: Genotype, tastes: Array, difficulty: Array) -> Array:
        """Return z of items, float64[I]."""
        away = genotype - self.best
        return self.level - away @ self.shape @ away + tastes @ away - difficulty

    def scores(self, genotype: Genotype, items: Sequence[int]) -> Array:
        """Return 1 for right answers and 0 for wrong ones, float64[I]."""
        chosen = list(items)
        return (self.margins(genotype, self.tastes[chosen], self.difficulty[chosen]) > 0).astype(np.float64)

    def losses(self, genotype: Genotype, items: Sequence[int]) -> tuple[Array, Array]:
        """Return log(1 + exp(-z)), float64[I], and its derivatives by the genes, float64[I, G]."""
        chosen = list(items)
        z = self.margins(genotype, self.tastes[chosen], self.difficulty[chosen])
        by_gene = self.tastes[chosen] - 2 * self.shape @ (genotype - self.best)
        return np.logaddexp(0.0, -z), -expit(-z)[:, None] * by_gene

    def held_out(self, genotype: Genotype) -> float:
        """Return the share of held-out items that are answered right."""
        return float((self.margins(genotype, *self._held_out) > 0).mean())


def landscape(genes: int, seed: int = 0) -> Problem:
    """Return the problem with this many genes: a weight for each of four experts in each group."""
    members = np.arange(genes) % EXPERTS
    space = WeightsSpace(genes // EXPERTS, EXPERTS, START)
    items = Landscape(genes, seed)
    ids = tuple(f"simulated/validation/{number}" for number in range(SEARCH_ITEMS))
    weights = {"simulated": 1.0}
    return Problem(
        f"simulated, {genes} genes",
        space,
        weights,
        ids,
        NumericWorker(space, weights, ids, items),
        items.held_out,
        expert_genotypes(space, members),
        items.held_out(items.best),
        LONG if genes <= MANY else CHECKPOINTS,
    )
