"""Two networks that know five digits each (`experiments.digits_niches`), merged block by block.

A gene is the weight of one half in one block: the 256 hidden units are eight blocks of 32, and each block has a weight
for what comes in and one for what goes out; the output's bias is a block of its own. The merged network is the sum
of the halves times their weights, and a weight of 0.5 everywhere is their mean. The loss of an image is the
cross-entropy of its digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.digits_niches.network import DIGITS, HIDDEN, PIXELS, TRAINED, digits, trained_halves
from experiments.search_efficiency.numeric import NumericWorker, WeightsSpace
from experiments.search_efficiency.problems import LONG, Problem, expert_genotypes
from search_spaces.spaces.space import Genotype

Array = NDArray[np.float64]

BLOCKS = 8
START = 0.5


class Halves:
    """Merged networks on images.

    Parameters
    ----------
    pair
        Seed of the halves' first weights.
    """

    def __init__(self, pair: int) -> None:
        self._halves = torch.tensor(np.array(trained_halves(pair)), dtype=torch.float32)
        images, labels = digits()
        self._images = torch.hstack([torch.from_numpy(images), torch.ones(len(images), 1)])
        self._labels = torch.from_numpy(labels)
        incoming = torch.arange(HIDDEN).repeat(PIXELS + 1) * BLOCKS // HIDDEN
        outgoing = BLOCKS + torch.arange(HIDDEN).repeat_interleave(DIGITS) * BLOCKS // HIDDEN
        bias = torch.full((DIGITS,), 2 * BLOCKS)
        self._group = torch.cat([incoming, outgoing, bias])
        """Group of each weight of a network."""

    @property
    def groups(self) -> int:
        """How many groups of weights there are."""
        return 2 * BLOCKS + 1

    def _answers(self, genes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return logits, float32[..., I, 10], of the networks of genotypes float32[..., G]."""
        weights = genes.unflatten(-1, (self.groups, 2))[..., self._group, :]
        merged = (weights * self._halves.T).sum(-1)
        first, second, bias = merged.split([(PIXELS + 1) * HIDDEN, HIDDEN * DIGITS, DIGITS], dim=-1)
        hidden = torch.relu(images @ first.unflatten(-1, (PIXELS + 1, HIDDEN)))
        return hidden @ second.unflatten(-1, (HIDDEN, DIGITS)) + bias.unsqueeze(-2)

    def _right(self, genotype: Genotype, chosen: slice | list[int]) -> Array:
        with torch.inference_mode():
            answers = self._answers(torch.tensor(genotype, dtype=torch.float32), self._images[chosen])
            right: Array = (answers.argmax(-1) == self._labels[chosen]).double().numpy()
        return right

    def scores(self, genotype: Genotype, items: Sequence[int]) -> Array:
        """Return 1 for images that are recognised and 0 for others, float64[I]."""
        return self._right(genotype, list(items))

    def losses(self, genotype: Genotype, items: Sequence[int]) -> tuple[Array, Array]:
        """Return the cross-entropies, float64[I], and their derivatives by the genes, float64[I, G]."""
        chosen = list(items)

        def loss(genes: torch.Tensor) -> torch.Tensor:
            answers = self._answers(genes, self._images[chosen])
            return torch.nn.functional.cross_entropy(answers, self._labels[chosen], reduction="none")

        genes = torch.tensor(genotype, dtype=torch.float32)
        by_gene = torch.func.jacfwd(loss)(genes)
        return loss(genes).double().numpy(), by_gene.double().numpy()

    def held_out(self, genotype: Genotype) -> float:
        """Return the share of the test images that are recognised."""
        return float(self._right(genotype, slice(TRAINED, None)).mean())


def halves(pair: int = 0) -> Problem:
    """Return the problem of one pair of halves: 34 genes."""
    items = Halves(pair)
    space = WeightsSpace(items.groups, 2, START)
    ids = tuple(f"digits/validation/{number}" for number in range(TRAINED))
    weights = {"digits": 1.0}
    return Problem(
        "digits' halves",
        space,
        weights,
        ids,
        NumericWorker(space, weights, ids, items),
        items.held_out,
        expert_genotypes(space, np.arange(space.dimension) % 2),
        checkpoints=LONG,
    )
