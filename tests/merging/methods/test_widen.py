"""WIDEN against a plain reference and its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestWiden(MergeMethodSuite):
    method = "widen"
    parameters = coefficients(ratio=1.2, factor=0.8)
    others = coefficients()


def ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    return [order.index(i) / len(values) for i in range(len(values))]


def scores(changes: list[list[float]], ratio: float, factor: float) -> Tensor:
    """One kind of change, [models][columns]."""
    ranked = torch.tensor([ranks(change) for change in changes])
    score = torch.softmax(ranked, 0)
    for row, rank in zip(score, ranked, strict=True):
        row[rank > ratio * rank.mean()] = factor
    return score


@pytest.mark.parametrize(("ratio", "factor"), [(1.0, 1.0), (0.5, 0.7), (1.8, 1.0)])
def test_matrix_equals_the_reference(merge: Merge, tensors: Any, ratio: float, factor: float) -> None:
    base, *models = tensors(4, 6, 11)
    norms, directions = [], []
    for model in models:
        norms.append([float((model[:, j].norm() - base[:, j].norm()).abs()) for j in range(11)])
        directions.append([1 - float(torch.cosine_similarity(model[:, j], base[:, j], dim=0)) for j in range(11)])
    weight = (scores(norms, ratio, factor) + scores(directions, ratio, factor)) / 2
    expected = base + sum(w[None] * (model - base) for w, model in zip(weight, models, strict=True))
    found = merge("widen", base, models, ratio=ratio, factor=factor)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_vector_equals_the_reference(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 13)
    weight = scores([(model - base).abs().tolist() for model in models], 1.2, 0.9)
    expected = base + sum(w * (model - base) for w, model in zip(weight, models, strict=True))
    torch.testing.assert_close(merge("widen", base, models, ratio=1.2, factor=0.9), expected)


def test_embeddings_are_taken_by_token(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 9, 4)
    found = merge("widen", base, models, by_token=True)
    transposed = merge("widen", base.T.contiguous(), [model.T.contiguous() for model in models])
    torch.testing.assert_close(found, transposed.T, rtol=1e-5, atol=1e-5)


def test_columns_that_changed_equally_share_their_rank(merge: Merge, tensors: Any) -> None:
    """The order of columns does not matter, also where a model left most of them alone."""
    base, a, b = tensors(3, 6, 11)
    a[:, 2:] = base[:, 2:]
    b[:, :3] = base[:, :3]
    order = torch.tensor([5, 0, 9, 2, 7, 10, 1, 4, 8, 3, 6])
    found = merge("widen", base, [a, b], ratio=1.2)
    permuted = merge("widen", base[:, order], [a[:, order], b[:, order]], ratio=1.2)
    torch.testing.assert_close(permuted, found[:, order], rtol=1e-6, atol=1e-6)


def test_unchanged_columns_have_rank_0_whatever_their_rounding(merge: Merge, tensors: Any) -> None:
    """Cosines of equal columns are 1 up to rounding: only changed columns may be ranked by them."""
    base, a, b = tensors(3, 40, 60)
    a[:, 7:] = base[:, 7:]
    expected = [merge("widen", scale * base, [scale * a, scale * b]) / scale for scale in (1.0, 3.0)]
    torch.testing.assert_close(*expected, rtol=1e-4, atol=1e-4)
