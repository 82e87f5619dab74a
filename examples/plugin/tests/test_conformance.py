"""The plug-ins pass the suites that evomerge's own pass."""

import evomerge_example.agreement  # noqa: F401  (registers the method)
from evomerge_example.one_factor import OneFactorConfig
from evomerge_example.one_plus_one import OnePlusOneConfig

from evomerge.testing import MergeMethodSuite, SearchSpaceSuite, StrategySuite
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext

LAYOUT = ModelLayout(("embed",), (("self_attn.w", "mlp.w"),) * 3, "layers.{}.", ("norm",), None, "self_attn", "mlp")
MODELS = {"base": "/models/base", "one": "/models/one", "two": "/models/two"}


class TestAgreement(MergeMethodSuite):
    method = "agreement"
    parameters = {"weight": [0.5, 0.8, 0.3]}


class TestOneFactor(SearchSpaceSuite):
    def space(self):
        return OneFactorConfig().build(SpaceContext(MODELS, LAYOUT, {}))


class TestOnePlusOne(StrategySuite):
    config = OnePlusOneConfig()
