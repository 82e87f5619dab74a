"""Initial distributions over the values of discrete genes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.spaces.genes import Choice, Gene
from search_spaces.spaces.space import SearchSpace

MANY_VALUES = 1000


def countable(space: SearchSpace) -> NDArray[np.bool_]:
    """Return which genes have few enough values for a distribution over them, bool[G].

    Other integer genes, such as the seeds of noise terms, are searched as real numbers and rounded.
    """
    return space.discrete & (space.high - space.low <= MANY_VALUES)


def first_probabilities(gene: Gene, start_probability: float) -> NDArray[np.float64]:
    """Return the first distribution over a discrete gene's values, float64[n].

    Parameters
    ----------
    gene
        The discrete gene, of n values.
    start_probability
        In [0, 1): probability that the gene's start gets beyond its share of the rest. The rest is shared among all
        values: evenly, or in proportion to the gene's prior. A prior that the search file gives replaces all of this.
    """
    cells = round(gene.high - gene.low)
    probabilities = np.full(cells, (1 - start_probability) / cells)
    if isinstance(gene, Choice) and gene.prior is not None:
        if gene.believed:
            return gene.probabilities
        probabilities = (1 - start_probability) * gene.probabilities
    probabilities[min(int(gene.start - gene.low), cells - 1)] += start_probability
    return probabilities


def seen_probabilities(gene: Gene, values: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how often each value occurs among an earlier search's best candidates, float64[n], summing to 1.

    Parameters
    ----------
    gene
        The discrete gene, of n values.
    values
        The gene's coordinate in each of N candidates, float64[N].
    first
        The distribution without them, float64[n]. It is counted as one more candidate, so that every value keeps a
        positive probability.
    """
    cells = np.minimum((values - gene.low).astype(int), len(first) - 1)
    return (np.bincount(cells, minlength=len(first)) + first) / (len(values) + 1)
