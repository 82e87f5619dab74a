"""The `space` part of a search's config for one space after another."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from search_spaces.spaces.coefficients import CoefficientConfig
from search_spaces.spaces.data_flow_config import DataFlowConfig
from search_spaces.spaces.mixture_config import MixtureConfig


def _default_kind(value: Any) -> Any:
    return {"kind": "layer_coefficients"} | value if isinstance(value, dict) else value


ParameterConfig = Annotated[
    Annotated[CoefficientConfig | MixtureConfig, Field(discriminator="kind")], BeforeValidator(_default_kind)
]


class StackedConfig(BaseModel):
    """The `space` part of a search's config, for ``kind: stacked``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["stacked"] = "stacked"
    """Which space this is."""
    parameters: ParameterConfig = CoefficientConfig()
    """What is merged first: a space of its own, layer_coefficients or mixture."""
    flow: DataFlowConfig = DataFlowConfig()
    """How its layers and those of other models are ordered: a data_flow space, in which the merge takes the base's
    place; `models` names the others, the base among them if it is named."""
