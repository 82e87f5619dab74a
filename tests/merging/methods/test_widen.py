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
