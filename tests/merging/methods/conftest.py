"""Run one merge method on bare tensors; published values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import merge_tensors

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "operators.json").read_text())


@pytest.fixture
def merge() -> Callable[..., Tensor]:
    """``merge("ties", base, [x, y], weight=[1, 1], density=.5)``: a list is a value per model."""
    return merge_tensors


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """All published values."""
    return GOLDEN


@pytest.fixture(scope="session")
def published() -> Callable[[str], Tensor]:
    """The published result called `name`."""
    return lambda name: torch.tensor(GOLDEN["cases"][name], dtype=torch.float32)


@pytest.fixture
def tau() -> list[Tensor]:
    """The three task vectors that most published values are for; the base is zero."""
    return [torch.tensor(values, dtype=torch.float32) for values in GOLDEN["tau"]]


@pytest.fixture
def stable_tau(tau: list[Tensor]) -> list[Tensor]:
    """The same without an entry whose sum is zero but for rounding."""
    tau[2][2] = 0.25
    return tau


@pytest.fixture
def near() -> Callable[[Tensor, Tensor], None]:
    """Compare with published values, which have six decimals."""
    return lambda found, expected: torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.fixture
def near_golden() -> Callable[[Tensor, Tensor], None]:
    """Compare with a formula in float64: to 1e-6 of its largest entry."""

    def compare(found: Tensor, expected: Tensor) -> None:
        assert expected.dtype == torch.float64
        error = float((found.double() - expected).abs().max() / expected.abs().max())
        assert error <= 1e-6, f"off by {error:.1e} of the largest entry"

    return compare


@pytest.fixture
def tensors() -> Callable[..., list[Tensor]]:
    """Random tensors: ``tensors(count, *shape)``."""

    def make(count: int, *shape: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(count)
        return [torch.randn(shape or (211,), generator=generator) for _ in range(count)]

    return make
