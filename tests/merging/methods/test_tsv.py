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
    parameters = coefficients(weight=[0.4, 0.9, 1.2], rank=[1.0, 0.5, 0.75], lambda_=0.8)
    others = coefficients(weight=1.0)
    tolerance = 1e-5


class TestRTsvM(MergeMethodSuite):
    method = "r_tsv_m"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], lambda_=0.8)
    others = coefficients(weight=1.0)
    one_model = None  # a model keeps as many components as it is dense
    tolerance = 1e-5


def test_published_values(merge: Merge, golden: dict[str, Any], near: Any) -> None:
    spectral = golden["spectral"]
    models = [torch.tensor(spectral[name], dtype=torch.float32) for name in ("A1", "A2")]
    near(merge("tsv_m", torch.zeros(4, 4), models), torch.tensor(spectral["tsv_m_rank2each"]))


def reference(base: Tensor, models: list[Tensor], weight: list[float], counts: list[int]) -> Tensor:
    """As the authors write it: the polar factor by an inverse square root."""
    lefts, rights, values = [], [], []
    for model, w, count in zip(models, weight, counts, strict=True):
        left, value, right = torch.linalg.svd(model.double() - base.double(), full_matrices=False)
        lefts.append(left[:, :count])
        rights.append(right[:count])
        values.append(w * value[:count])

    def orthogonalised(factor: Tensor) -> Tensor:
        gram_values, gram_vectors = torch.linalg.eigh(factor.T @ factor)
        return factor @ gram_vectors @ torch.diag(gram_values**-0.5) @ gram_vectors.T

    left, right = orthogonalised(torch.cat(lefts, 1)), orthogonalised(torch.cat(rights).T)
    return base.double() + left @ torch.diag(torch.cat(values)) @ right.T


@pytest.mark.parametrize(
    ("shape", "rank", "counts"),
    [((9, 14), [1.0, 1.0], [4, 4]), ((14, 9), [0.5, 1.0], [2, 4]), ((2, 5), [1.0, 0.1], [1, 1])],
)
def test_golden(
    merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int], rank: list[float], counts: list[int]
) -> None:
    base, *models = tensors(3, *shape)
    expected = reference(base, models, [0.4, 0.9], counts)
    near_golden(merge("tsv_m", base, models, weight=[0.4, 0.9], rank=rank), expected)


def test_golden_of_weights_by_outliers_and_ranks_by_sparsity(merge: Merge, tensors: Any, near_golden: Any) -> None:
    base, *models = tensors(3, 12, 20)
    models[0][3, 4], models[0][5, 6], models[1][0, 0] = 9.0, -8.0, 7.0
    outliers, counts = [], []
    for model in models:
        size = (model.double() - base.double()).abs().flatten()
        deviation = (size - size.mean()).square().mean().sqrt()
        outliers.append(float(size[size > size.mean() + 3 * deviation].sum()))
        hoyer = (240**0.5 - size.sum() / size.square().sum().sqrt()) / (240**0.5 - 1)
        counts.append(round(6 * float(1 - hoyer)))
    assert min(outliers) > 0
    assert counts != [6, 6]
    weight = [w * 2 * part / sum(outliers) for w, part in zip([0.4, 0.9], outliers, strict=True)]
    near_golden(merge("r_tsv_m", base, models, weight=[0.4, 0.9]), reference(base, models, weight, counts))


def test_other_weights_need_no_decomposition(tensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.merging.methods import tsv
    from evomerge.testing.merge_methods import Merge as PreparedMerge

    base, *models = tensors(3, 9, 14)
    merge = PreparedMerge("tsv_m", base, models)
    merge.run(weight=1.0, rank=0.5)
    monkeypatch.setattr(tsv, "polar", None)  # any further call fails
    expected = reference(base, models, [0.4, 0.9], [2, 2])
    torch.testing.assert_close(merge.run(weight=[0.4, 0.9], rank=0.5).double(), expected, rtol=1e-5, atol=1e-5)


def test_more_models_than_components(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(6, 3, 8)
    found = merge("tsv_m", base, models)
    assert bool(torch.isfinite(found).all())


def test_models_that_do_not_interfere_are_added(merge: Merge) -> None:
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 1], a[1, 0], b[2, 3], b[3, 2] = 1.0, 2.0, 3.0, 4.0
    torch.testing.assert_close(merge("tsv_m", torch.zeros(4, 4), [a, b]), a + b)
