"""The conformance suite on every kind of space; the variants of one kind are tested beside it."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from evomerge.testing.search_spaces import SearchSpaceSuite
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import task_arithmetic_recipe
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.depth.layer_actions import LayerActionsConfig
from search_spaces.spaces.depth.tailoring import TailoringConfig
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.mixture import MixtureConfig
from search_spaces.spaces.registry import build_space
from search_spaces.spaces.two_stage import TwoStageConfig


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


class TestMethods(Spaces):
    def built(self, **config):
        methods = ("task_arithmetic", "dare_ties", "slerp")
        return build_space(CoefficientConfig(method=methods, layers_per_group=2, **config), self.context)

    def space(self):
        return self.built(modules=["attention", "other"])

    def one_gene(self):
        """Only the method: all coefficients have fixed values."""
        return self.built(fixed={f"*.{parameter}[*": 0.5 for parameter in ("weight", "density", "t")})


class TestFixedGenes(Spaces):
    def space(self):
        """Fixed are the final norm and the head, and one model's embeddings."""
        fixed = {"ops.weight[embeddings]": 0.0, "*[final]": 0.25, "lambda": 0.5}
        return build_space(CoefficientConfig(fixed=fixed), self.context)

    def one_gene(self):
        fixed = {"ops.*": 0.5, "x.*": 0.5, "y.*[layers*": 0.5, "y.*[embeddings]": 0.5}
        return build_space(CoefficientConfig(layers_per_group=4, fixed=fixed), self.context)


class TestFixedGenesOfMethods(Spaces):
    config: ClassVar = {"method_scope": "merge"}

    def space(self):
        fixed = {"ops.weight[embeddings]": 0.0, "slerp.t[final]": 0.25, "*.density[*": 1.0}
        methods = ("task_arithmetic", "dare_ties", "slerp")
        config = CoefficientConfig(method=methods, layers_per_group=2, fixed=fixed, **self.config)
        return build_space(config, self.context)


class TestFixedGenesOfGroups(TestFixedGenesOfMethods):
    config: ClassVar = {"method_scope": "layers"}

    def test_mergekit_gets_it_or_a_reason(self, subject):
        pytest.skip("methods of layers are in no mergekit recipe: tested in test_method_groups")


class Built(Spaces):
    """A space as the search file's section describes it."""

    config: ClassVar = {}

    def space(self):
        return build_space(CoefficientConfig(**self.config), self.context)


class TestWholeModel(Built):
    config: ClassVar = {"groups": "model", "method": "dare_ties"}

    def one_gene(self):
        """The scale of a sum of task vectors, as a sweep over it needs."""
        config = {"groups": "model", "ranges": {"lambda": [0.0, 1.5]}, "fixed": {"weight": 1.0}}
        return build_space(CoefficientConfig(**config), self.context)


class TestGroups(Built):
    config: ClassVar = {
        "groups": {"early": ["embeddings", 0, "2"], "late": ["1", "3-3", "final"]},
        "modules": ["q_proj", "norm", "other"],
    }


class TestSmooth(Built):
    config: ClassVar = {
        "groups": [["embeddings", 0], ["1-2"], [3, "final"]],
        "smooth": True,
        "modules": ["mlp", "other"],
    }


class TestSmoothAverages(Built):
    config: ClassVar = {"method": "linear", "layers_per_group": 2, "smooth": True}

    def test_children_of_one_parent_are_that_parent(self, subject):
        pytest.skip("weights are divided by their sum: tested with those of other methods")


class TestTies(Built):
    config: ClassVar = {
        "layers_per_group": 2,
        "method": ["task_arithmetic", "ties", "slerp"],
        "fixed": {"*.weight[final]": 0.5},
        "tie": {"edges": ["ops.weight[embeddings]", "x.weight[embeddings]"], "inner density": "*.density[*"},
    }

    def one_gene(self):
        return build_space(CoefficientConfig(tie=["*.weight[*]"]), self.context)


class TestMasks(Built):
    config: ClassVar = {"masks": "on_off", "layers_per_group": 2, "modules": ["attention", "other"]}


class TestSignedMasksOfGroups(Built):
    config: ClassVar = {"masks": "signed", "mask_scope": "layers", "layers_per_group": 2, "method": ["ties", "linear"]}

    def test_children_of_one_parent_are_that_parent(self, subject):
        pytest.skip("weights are divided by their sum: tested with those of other methods")


class Mixtures(Spaces):
    config: ClassVar = {}

    def mixture(self, **config):
        return MixtureConfig(kind="mixture", **self.config, **config).build(self.context)

    def space(self):
        return self.mixture(chunks=13)

    def many_genes(self):
        return self.mixture(chunks=170)


class TestMixtureWithNoiseAndChromosomes(Mixtures):
    config: ClassVar = {"chromosomes": ("attention", "mlp"), "noise": {"terms": 3, "sigma": 0.1}}


class TestMixturePerSegment(Mixtures):
    config: ClassVar = {"crossover": "slerp_per_segment", "split": True}


class TestMixtureByLayer(Spaces):
    def space(self):
        return MixtureConfig(kind="mixture", chunks="layers", chromosomes=("attention",)).build(self.context)


class TestSimplex(Mixtures):
    config: ClassVar = {"weights": "simplex"}


class TestSigned(Mixtures):
    config: ClassVar = {"weights": "signed"}

    def one_gene(self):
        two = dict(list(self.models.items())[:2])
        context = type(self.context)(two, self.layout, self.context.sizes)
        return MixtureConfig(kind="mixture", weights="signed", chunks=1).build(context)


class TestTaskVectors(Mixtures):
    config: ClassVar = {"relative_to": "base"}


class TestTaskVectorsWithNoise(Mixtures):
    config: ClassVar = {"relative_to": "base", "crossover": "slerp_per_segment", "noise": {"terms": 2, "sigma": 0.1}}


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


class TestDataFlowWithANetwork(DataFlow):
    config: ClassVar = {"scales": "network", "hidden": 5, "order": "free", "scale": [0.25, 1.1]}


class TestDataFlowInAnExpert(DataFlow):
    config: ClassVar = {"anchor": "x", "models": ("base", "ops")}


class TestDataFlowInAMerge(Spaces):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path, _models):
        self.file = tmp_path / "merge.yaml"
        recipe = task_arithmetic_recipe(self.models, self.layout, 0.7)
        self.file.write_text(mergekit_yaml.dump(recipe))

    def space(self):
        return DataFlowConfig(anchor=str(self.file), models=("ops",), repeats=1).build(self.context)


class TestOrder(DataFlow):
    config: ClassVar = {"order": "free"}


class TwoStages(Spaces):
    parameters: ClassVar = {"kind": "layer_coefficients", "layers_per_group": 2}
    flow: ClassVar = {}

    def space(self):
        config = TwoStageConfig(parameters=self.parameters, flow=self.flow)
        return build_space(config, self.context)


class TestTwoStages(TwoStages):
    def many_genes(self):
        config = TwoStageConfig(parameters={"kind": "mixture", "chunks": 100}, flow={"repeats": 8})
        return build_space(config, self.context)


class TestTwoStagesOfMixtures(TwoStages):
    parameters: ClassVar = {"kind": "mixture", "chunks": 5}
    flow: ClassVar = {"order": "free", "models": ("base", "x"), "scales": "none"}


class TestTwoStagesOfSlerp(TwoStages):
    parameters: ClassVar = {"kind": "layer_coefficients", "method": ["ties", "slerp"]}
    flow: ClassVar = {"scales": "transition"}


class Tailored(Spaces):
    config: ClassVar = {}

    def space(self):
        return TailoringConfig(**self.config).build(self.context)


class TestTailoring(Tailored):
    config: ClassVar = {"remove": (1, 3), "scale": (-0.5, 1.5)}


class TestTailoringFromAnExpert(Tailored):
    config: ClassVar = {"anchor": "x", "models": ("base", "ops"), "max_parameters": 0.6}


class TestRemovingLayers(Tailored):
    config: ClassVar = {"models": ("base",), "remove": 2}


class Actions(Spaces):
    config: ClassVar = {}

    def space(self):
        return LayerActionsConfig(**self.config).build(self.context)


class TestLayerActions(Actions):
    config: ClassVar = {"merges": ("task_arithmetic",), "anchor": "ops", "min_layers": 2, "max_layers": 6}


class TestLayerActionsOfOneMethod(Actions):
    """Those that mergekit reads, since every layer is merged by task arithmetic or copied."""

    config: ClassVar = {
        "models": ("x", "ops"),
        "merges": ("task_arithmetic",),
        "anchor": "task_arithmetic",
        "back": False,
    }


class TestLayerActionsWithoutSkip(Actions):
    config: ClassVar = {"skip": False, "max_layers": 5, "steps": 11}

    def one_gene(self):
        layout = replace(self.layout, layers=self.layout.layers[:1])
        return LayerActionsConfig(skip=False, back=False).build(replace(self.context, layout=layout))


def test_the_suite_finds_a_space_that_is_wrong(layout, models):
    class Shifted(CoefficientSpace):
        def encode(self, recipe):
            return np.clip(super().encode(recipe) + 0.1, self.low, self.high)

    class Wrong(SearchSpaceSuite):
        pass

    space = Shifted(CoefficientConfig(), models, layout)
    with pytest.raises(AssertionError):
        Wrong().test_encode_inverts_decode(space)
