"""The kinds of spaces that a search file can name, and from its `space` section to the space."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from search_spaces.spaces.building import coefficient_space
from search_spaces.spaces.coefficients import CoefficientConfig
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow_config import DataFlowConfig
from search_spaces.spaces.mixture_config import MixtureConfig
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.two_stage import StackedSpace
from search_spaces.spaces.two_stage_config import StackedConfig

SpaceConfig: TypeAlias = Annotated[
    CoefficientConfig | MixtureConfig | DataFlowConfig | StackedConfig, Field(discriminator="kind")
]
"""Any space, told apart by `kind`."""


def build_space(config: SpaceConfig, context: SpaceContext) -> SearchSpace:
    """Return the space that `config` describes over the models of `context`.

    Raises
    ------
    RecipeError
        If the models do not fit the space.
    """
    if isinstance(config, CoefficientConfig):
        return coefficient_space(config, context)
    if isinstance(config, StackedConfig):
        return StackedSpace(build_space(config.parameters, context), config.flow, context)
    return config.build(context)
