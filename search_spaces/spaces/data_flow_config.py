"""The `space` part of a search's config for layer orderings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.space import SearchSpace


class ScaleRange(BaseModel):
    """The interval of the factors of the residual stream; a search begins at 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    low: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Smallest factor, above 0 and at most 1."""
    high: float = Field(default=1.5, allow_inf_nan=False)
    """Largest factor, at least 1."""

    @model_validator(mode="after")
    def _around_one(self) -> ScaleRange:
        if not (self.low <= 1 <= self.high and self.low < self.high):
            raise ValueError(f"scale: [{self.low}, {self.high}] does not hold 1; write low: 0.5, high: 1.5 or the like")
        return self


class DataFlowConfig(BaseModel):
    """The `space` part of a search's config, for ``kind: data_flow``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["data_flow"] = "data_flow"
    """Which space this is."""
    models: tuple[str, ...] = ()
    """Names of the models whose layers are used, beside the base's; all when empty."""
    repeats: int = Field(default=2, ge=1)
    """How often all layers of all models are laid in a row: a layer can be used that often."""
    order: Literal["slots", "free"] = "slots"
    """`slots`: layers are used in the order in which they are laid out (Sakana's). `free`: in any order, by a random
    key for each."""
    scales: Literal["none", "slot", "transition"] = "slot"
    """Factors of the residual stream on its way into a layer: none, one for each slot, or one for each pair of layers
    (Sakana's matrix W)."""
    scale: ScaleRange = ScaleRange()
    """Range of these factors."""
    max_layers: int | None = Field(default=None, ge=2)
    """Largest depth of a model: what would come later is left out before the last layer. None: twice the base's."""

    def build(self, context: SpaceContext) -> SearchSpace:
        """Return the space over these models."""
        from search_spaces.spaces.data_flow import DataFlowSpace

        return DataFlowSpace(self, context)
