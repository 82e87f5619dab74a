"""A kind of workers: one in this process, which gives way to other programs."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.workers.base import WorkerSettings
from evomerge.workers.registry import register_workers


@register_workers
class PoliteConfig(BaseModel):
    """One worker with a lower priority."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    kind: Literal["polite"] = "polite"
    niceness: int = Field(default=10, ge=0, le=19)
    """Niceness of this process, from 0 (as usual) to 19 (the lowest priority)."""

    def settings(self):
        return WorkerSettings(device="cpu", threads=1)

    def start(self, factory):
        from evomerge.merging.engine.placement import Share
        from evomerge.workers.inline import InlinePool

        os.nice(max(0, self.niceness - os.nice(0)))
        return InlinePool(factory.here(self.settings(), Share()))
