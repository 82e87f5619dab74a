"""TSV-M against published values and its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestTsvM(MergeMethodSuite):
    method = "tsv_m"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], lambda_=0.8)
    others = coefficients(weight=1.0)
    tolerance = 1e-5


def test_published_values(merge: Merge, golden: dict[str, Any], near: Any) -> None:
    spectral = golden["spectral"]
    models = [torch.tensor(spectral[name], dtype=torch.float32) for name in ("A1", "A2")]
    near(merge("tsv_m", torch.zeros(4, 4), models), torch.tensor(spectral["tsv_m_rank2each"]))


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (2, 5)])
def test_equals_the_padded_reference(merge: Merge, tensors: Any, shape: tuple[int, int]) -> None:
    """As the authors write it: factors padded with zeros, the polar factor by an inverse square root."""
    base, *models = tensors(3, *shape)
    rank = min(shape) // 2
    lefts, rights, values = [], [], []
    for model in models:
        left, value, right = torch.linalg.svd((model - base).double(), full_matrices=False)
        lefts.append(left[:, :rank])
        rights.append(right[:rank])
        values.append(value[:rank])

    def orthogonalised(factor: Tensor) -> Tensor:
        gram_values, gram_vectors = torch.linalg.eigh(factor.T @ factor)
        return factor @ gram_vectors @ torch.diag(gram_values**-0.5) @ gram_vectors.T

    left, right = orthogonalised(torch.cat(lefts, 1)), orthogonalised(torch.cat(rights).T)
    scaled = torch.cat([0.4 * values[0], 0.9 * values[1]])
    expected = base.double() + left @ torch.diag(scaled) @ right.T
    found = merge("tsv_m", base, models, weight=[0.4, 0.9])
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_more_models_than_components(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(6, 3, 8)
    found = merge("tsv_m", base, models)
    assert bool(torch.isfinite(found).all())


def test_models_that_do_not_interfere_are_added(merge: Merge) -> None:
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 1], a[1, 0], b[2, 3], b[3, 2] = 1.0, 2.0, 3.0, 4.0
    torch.testing.assert_close(merge("tsv_m", torch.zeros(4, 4), [a, b]), a + b)
