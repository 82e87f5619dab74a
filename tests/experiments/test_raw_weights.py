"""The conformance suite on points that are weights themselves."""

from typing import ClassVar

import numpy as np

from evomerge.testing.search_spaces import SearchSpaceSuite
from experiments.digits_niches.raw import RawWeights


class TestRawWeights(SearchSpaceSuite):
    has_recipes: ClassVar = False
    config: ClassVar = {}

    def raw(self, length):
        rng = np.random.default_rng(0)
        return RawWeights(length, founders=rng.normal(0.0, 0.1, (3, length)), **self.config)

    def space(self):
        return self.raw(12)

    def one_gene(self):
        return self.raw(1)

    def many_genes(self):
        return self.raw(1000)


class TestRawWeightsByParts(TestRawWeights):
    config: ClassVar = {"angle": "part"}
