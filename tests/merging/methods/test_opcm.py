"""OPCM against full decompositions in float64, step by step as in the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestOpcm(MergeMethodSuite):
    method = "opcm"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], alpha=0.3, lambda_=0.8)
    others = coefficients(weight=1.0, alpha=0.7, merged=3)
    ordered = True
    tolerance = 2e-5

    def test_order_of_models(self, info: Any) -> None:
        """Only linear maps depend on it."""
        if info.is_matrix:
            super().test_order_of_models(info)
        else:
            base, models = self.sources(info)
            found = self.run(base, models[::-1], info, weight=self.parameters["weight"][::-1])
            self.close(found, self.run(base, models, info))


def reference(base: Tensor, models: list[Tensor], weight: list[float], alpha: float, merged: int = 1) -> Tensor:
    """The paper's recursion: the merge Δ and its λ, with full U and V."""
    taus = [w * (model.double() - base.double()) for w, model in zip(weight, models, strict=True)]
    merge, scale = taus[0], merged**0.5
    norms = [float(taus[0].norm())] * merged
    for tau in taus[1:]:
        left, values, right = torch.linalg.svd(merge, full_matrices=True)
        split = int((values.cumsum(0) / values.sum() > alpha).int().argmax())
        inside = left.T @ tau @ right.T
        inside.diagonal().zero_()
        inside[:split, :split] = 0
        total = scale * merge + left @ inside @ right
        norms.append(float(tau.norm()))
        scale = float(total.norm()) / (sum(norms) / len(norms))
        merge = total / scale
    return base.double() + merge


@pytest.mark.parametrize(("shape", "alpha"), [((6, 11), 0.5), ((11, 6), 0.2), ((6, 11), 0.9)])
def test_golden(merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int], alpha: float) -> None:
    base, *models = tensors(4, *shape)
    weight = [1.0, 0.7, 1.3]
    near_golden(merge("opcm", base, models, weight=weight, alpha=alpha), reference(base, models, weight, alpha))


def test_golden_after_an_earlier_merge(merge: Merge, tensors: Any, near_golden: Any) -> None:
    base, *models = tensors(3, 6, 11)
    found = merge("opcm", base, models, alpha=0.5, merged=4)
    near_golden(found, reference(base, models, [1.0, 1.0], 0.5, merged=4))


def test_norm_stays_the_mean(merge: Merge, tensors: Any) -> None:
    for shape in ((6, 11), (17,)):
        base, *models = tensors(4, *shape)
        expected = sum((model - base).norm() for model in models) / 3
        torch.testing.assert_close((merge("opcm", base, models) - base).norm(), expected, rtol=1e-5, atol=0)


def test_continued_merge_of_orthogonal_models_equals_the_merge_of_all(merge: Merge) -> None:
    """Where λ_t = √t is exact, nothing is lost by keeping only the merge of the first two."""
    base = torch.zeros(6, 6)
    models = [torch.zeros(6, 6) for _ in range(3)]
    for index, model in enumerate(models):
        model[2 * index, 2 * index + 1] = model[2 * index + 1, 2 * index] = 1.0
    first = merge("opcm", base, models[:2])
    torch.testing.assert_close(merge("opcm", base, [first, models[2]], merged=2), merge("opcm", base, models))


def test_all_weights_of_two_models_share_a_decomposition(tensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.merging.methods import opcm
    from evomerge.testing.merge_methods import Merge as PreparedMerge

    base, *models = tensors(3, 6, 11)
    prepared = PreparedMerge("opcm", base, models)
    prepared.run(weight=[1.0, 1.0])
    expected = reference(base, models, [0.3, 0.8], 0.5)
    monkeypatch.setattr(opcm, "singular", None)  # any further call fails
    torch.testing.assert_close(prepared.run(weight=[0.3, 0.8]).double(), expected, rtol=1e-5, atol=1e-5)
