"""Run one merge method on bare tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.blocks import Scratch
from evomerge.merging.jobs import Job
from evomerge.merging.methods import implementation
from evomerge.merging.methods.registry import SourceTensor
from search_spaces.resolve import Contribution, TensorPlan


@pytest.fixture
def merge() -> Callable[..., Tensor]:
    """``merge("ties", base, [x, y], weight=[1, 1], density=.5)``: a list is a value per model."""

    def run(
        name: str,
        base: Tensor | None,
        models: Sequence[Tensor],
        *,
        seed: int = 0,
        block: int = 1 << 15,
        out_dtype: torch.dtype = torch.float32,
        **parameters: Any,
    ) -> Tensor:
        method = implementation(name)
        values: dict[str, Any] = {p.name: p.default for p in method.spec.parameters if p.default is not None}
        values |= {key.rstrip("_"): value for key, value in parameters.items()}
        contributions = tuple(
            Contribution(
                f"model{index}",
                "tensor",
                {
                    p.name: values[p.name][index] if isinstance(values[p.name], list) else values[p.name]
                    for p in method.spec.per_model
                    if p.name in values
                },
            )
            for index in range(len(models))
        )
        shared = {p.name: values[p.name] for p in method.spec.shared if p.name in values}
        plan = TensorPlan("tensor", name, contributions, None, shared)
        out = torch.full(models[0].shape, float("nan"), dtype=out_dtype)
        prepared = []
        if method.prepare is not None:
            prepared = [method.prepare(SourceTensor("tensor", model, base, seed)) for model in models]
        job = Job(
            method,
            out,
            base=base,
            models=models,
            prepared=prepared,
            scratch=Scratch(torch.device("cpu"), block),
        )
        with torch.inference_mode():
            job.run(plan, out_dtype)
        return out

    return run
