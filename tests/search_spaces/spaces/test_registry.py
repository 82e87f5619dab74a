"""The kinds of spaces: a new one is one file."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from search_spaces.registry import registering
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.mixture import MixtureConfig
from search_spaces.spaces.registry import SPACES, SpaceConfig, build_space, register_space
from search_spaces.spaces.space import SearchSpace

READ = TypeAdapter(SpaceConfig)


class _Undone(Exception):
    pass


def test_our_spaces_are_registered_by_importing_the_room():
    assert {"layer_coefficients", "mixture", "data_flow", "two_stage"} <= set(SPACES)
    assert {SPACES.origin(kind) for kind in ("mixture", "data_flow")} == {"evomerge"}


@pytest.mark.parametrize("kind", sorted(SPACES))
def test_a_kind_alone_is_its_defaults(kind, context):
    config = READ.validate_python(kind)
    assert (config.kind, type(config)) == (kind, SPACES[kind])
    assert READ.validate_python(READ.dump_python(config, mode="json")) == config
    assert isinstance(build_space(config, context), SearchSpace)


def test_a_section_without_a_kind_has_coefficients():
    assert READ.validate_python({"layers_per_group": 2}) == CoefficientConfig(layers_per_group=2)


def test_errors_stay_at_their_keys():
    with pytest.raises(ValidationError) as caught:
        READ.validate_python({"kind": "mixture", "noise": {"sigma": -1}, "chunk": 3})
    assert [error["loc"] for error in caught.value.errors()] == [("noise", "sigma"), ("chunk",)]
    with pytest.raises(ValidationError, match=r"there is no search space 'mixtures'; did you mean 'mixture'\?"):
        READ.validate_python("mixtures")


def test_another_package_adds_a_space_in_one_place(layout, context):
    with pytest.raises(_Undone), registering("evomerge-extras"):

        @register_space
        class OneFactor(BaseModel):
            model_config = ConfigDict(frozen=True, extra="forbid")

            kind: Literal["one_factor"] = "one_factor"
            high: float = 1.0

            def build(self, context: SpaceContext) -> SearchSpace:
                config = CoefficientConfig(layers_per_group=100, weight={"low": 0, "high": self.high})
                return CoefficientSpace(config, context.models, context.layout)

        config = READ.validate_python({"kind": "one_factor", "high": 2})
        assert build_space(config, context).high.max() == 2
        assert SPACES.origin("one_factor") == "evomerge-extras"
        raise _Undone
    assert "one_factor" not in SPACES


def test_a_taken_kind_is_refused():
    with pytest.raises(ValueError, match="search space 'mixture' is taken, evomerge registers it"):
        register_space(MixtureConfig)


@pytest.mark.parametrize("kind", ["data_flow", "two_stage"])
def test_the_first_of_two_spaces_keeps_layers_in_place(kind):
    with pytest.raises(ValidationError, match=f"kind {kind} changes the order of layers, which is what `flow` is for"):
        READ.validate_python({"kind": "two_stage", "parameters": kind})
