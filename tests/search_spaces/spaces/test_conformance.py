"""The conformance suite on every space of the house."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from evomerge.testing.search_spaces import SearchSpaceSuite
from experiments.digits_niches.raw import RawWeights
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.coefficients import CoefficientConfig, CoefficientSpace
from search_spaces.spaces.data_flow_config import DataFlowConfig
from search_spaces.spaces.mixture_config import MixtureConfig
from search_spaces.spaces.registry import build_space
from search_spaces.spaces.stamped import StampedSpace
from search_spaces.spaces.two_stage_config import StackedConfig


class Spaces(SearchSpaceSuite):
    @pytest.fixture(autouse=True)
    def _models(self, layout, models, context):
        self.layout, self.models, self.context = layout, models, context

    def coefficients(self, **config):
        return CoefficientSpace(CoefficientConfig(**config), self.models, self.layout, seed=5)


class TestTaskArithmetic(Spaces):
    def space(self):
        return self.coefficients(modules=["attention", "other"])

    def many_genes(self):
        deep = ModelLayout(
            ("embed",), (("self_attn.w", "mlp.w"),) * 83, "layers.{}.", ("norm",), None, "self_attn", "mlp"
        )
        return CoefficientSpace(CoefficientConfig(modules=["attention", "other"]), self.models, deep)


class TestLinear(Spaces):
    def space(self):
        return self.coefficients(method="linear", layers_per_group=2)

    def test_children_of_one_parent_are_that_parent(self, subject):
        pytest.skip("weights are divided by their sum: tested with those of other methods")


class TestDareTies(Spaces):
    def space(self):
        return self.coefficients(method="dare_ties", layers_per_group=4)


class TestMethods(Spaces):
    def built(self, **config):
        methods = ("task_arithmetic", "dare_ties", "slerp")
        return build_space(CoefficientConfig(method=methods, layers_per_group=2, **config), self.context)

    def space(self):
        return self.built(modules=["attention", "other"])

    def one_gene(self):
        """Only the method: all coefficients are held."""
        return self.built(fixed={f"*.{parameter}[*": 0.5 for parameter in ("weight", "density", "t")})


class TestHeld(Spaces):
    def space(self):
        """The final norm and the head are held, and one model's embeddings."""
        fixed = {"ops.weight[embeddings]": 0.0, "*[final]": 0.25, "lambda": 0.5}
        return build_space(CoefficientConfig(fixed=fixed), self.context)

    def one_gene(self):
        fixed = {"ops.*": 0.5, "x.*": 0.5, "y.*[layers*": 0.5, "y.*[embeddings]": 0.5}
        return build_space(CoefficientConfig(layers_per_group=4, fixed=fixed), self.context)


class TestHeldMethods(Spaces):
    config: ClassVar = {"method_for": "merge"}

    def space(self):
        fixed = {"ops.weight[embeddings]": 0.0, "slerp.t[final]": 0.25, "*.density[*": 1.0}
        methods = ("task_arithmetic", "dare_ties", "slerp")
        config = CoefficientConfig(method=methods, layers_per_group=2, fixed=fixed, **self.config)
        return build_space(config, self.context)


class TestHeldMethodsOfGroups(TestHeldMethods):
    config: ClassVar = {"method_for": "layers"}

    def test_mergekit_gets_it_or_a_reason(self, subject):
        pytest.skip("methods of layers are in no mergekit recipe: tested in test_method_groups")


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


class Mixtures(Spaces):
    config: ClassVar = {}

    def mixture(self, **config):
        return MixtureConfig(kind="mixture", **self.config, **config).build(self.context)

    def space(self):
        return self.mixture(chunks=13)

    def many_genes(self):
        return self.mixture(chunks=170)


class TestMixture(Mixtures):
    pass


class TestMixtureWithNoiseAndChromosomes(Mixtures):
    config: ClassVar = {"chromosomes": ("attention", "mlp"), "noise": {"terms": 3, "sigma": 0.1}}


class TestMixturePerSegment(Mixtures):
    config: ClassVar = {"crossover": "slerp_per_segment", "split": True}


class TestMixtureByTensor(Spaces):
    def space(self):
        return MixtureConfig(kind="mixture", chunks="tensors", split=False).build(self.context)


class TestMixtureByLayer(Spaces):
    def space(self):
        return MixtureConfig(kind="mixture", chunks="layers", chromosomes=("attention",)).build(self.context)


class TestSimplex(Mixtures):
    config: ClassVar = {"weights": "simplex"}


class TestSoftmax(Mixtures):
    config: ClassVar = {"weights": "softmax"}


class TestSigned(Mixtures):
    config: ClassVar = {"weights": "signed"}

    def one_gene(self):
        two = dict(list(self.models.items())[:2])
        context = type(self.context)(two, self.layout, self.context.sizes)
        return MixtureConfig(kind="mixture", weights="signed", chunks=1).build(context)


class DataFlow(Spaces):
    config: ClassVar = {}

    def data_flow(self, **config):
        return DataFlowConfig(**self.config, **config).build(self.context)

    def space(self):
        return self.data_flow()


class TestDataFlow(DataFlow):
    def many_genes(self):
        return self.data_flow(repeats=20)


class TestDataFlowWithoutScales(DataFlow):
    config: ClassVar = {"scales": "none", "max_layers": 6}

    def one_gene(self):
        layout = replace(self.layout, layers=self.layout.layers[:3])
        models = dict(list(self.models.items())[:1])
        return DataFlowConfig(scales="none", repeats=1).build(replace(self.context, layout=layout, models=models))


class TestDataFlowWithTransitions(DataFlow):
    config: ClassVar = {"scales": "transition", "models": ("ops",), "max_layers": 30}


class TestOrder(DataFlow):
    config: ClassVar = {"order": "free"}


class Stacked(Spaces):
    parameters: ClassVar = {"kind": "layer_coefficients", "layers_per_group": 2}
    flow: ClassVar = {}

    def space(self):
        config = StackedConfig(parameters=self.parameters, flow=self.flow)
        return build_space(config, self.context)


class TestStacked(Stacked):
    def many_genes(self):
        config = StackedConfig(parameters={"kind": "mixture", "chunks": 100}, flow={"repeats": 8})
        return build_space(config, self.context)


class TestStackedMixture(Stacked):
    parameters: ClassVar = {"kind": "mixture", "chunks": 5}
    flow: ClassVar = {"order": "free", "models": ("base", "x"), "scales": "none"}


class TestStackedSlerp(Stacked):
    parameters: ClassVar = {"kind": "layer_coefficients", "method": ["ties", "slerp"]}
    flow: ClassVar = {"scales": "transition"}


class TestStampedMixture(TestMixtureWithNoiseAndChromosomes):
    def space(self):
        return StampedSpace(super().space(), adapters="core")


class TestStampedStacked(TestStackedSlerp):
    def space(self):
        return StampedSpace(super().space(), tokenizer_source="union")


@pytest.mark.parametrize(
    "config",
    [
        CoefficientConfig(method=["ties", "slerp"]),
        MixtureConfig(chunks=5, noise={"terms": 2, "sigma": 0.1}),
        StackedConfig(parameters={"kind": "mixture", "chunks": 5}),
    ],
    ids=lambda config: config.kind,
)
def test_a_stamp_changes_recipes_and_nothing_else(config, context):
    inner = build_space(config, context)
    moved = np.where(inner.discrete, inner.start, (inner.start + inner.high) / 2)
    stamped = StampedSpace(inner, tokenizer_source="union")
    assert np.array_equal(stamped.start, inner.start)
    stamped, inner = stamped.starting_at(moved), inner.starting_at(moved)
    assert np.array_equal(stamped.start, moved)
    assert np.array_equal(stamped.founders(), inner.founders())
    assert stamped.decode(moved) == replace(inner.decode(moved), tokenizer_source="union").canonical()
    assert len(stamped.structures()) == len(inner.structures())
    assert {recipe.tokenizer_source for recipe in stamped.structures()} == {"union"}
    rng = np.random.default_rng(0)
    points = rng.uniform(inner.low, inner.high, (8, inner.dimension))
    assert np.array_equal(stamped.settled(points), inner.settled(points))
    assert all(np.array_equal(stamped.active(point), inner.active(point)) for point in points)


def test_the_suite_finds_a_space_that_is_wrong(layout, models):
    class Shifted(CoefficientSpace):
        def encode(self, recipe):
            return np.clip(super().encode(recipe) + 0.1, self.low, self.high)

    class Wrong(SearchSpaceSuite):
        pass

    space = Shifted(CoefficientConfig(), models, layout)
    with pytest.raises(AssertionError):
        Wrong().test_encode_inverts_decode(space)
