"""MagMax and EMR's unified vector against published values and plain references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestMagmax(MergeMethodSuite):
    method = "magmax"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], lambda_=0.8)
    others = coefficients(weight=1.0)


class TestEmr(TestMagmax):
    method = "emr"


def test_published_magmax(merge: Merge, tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("magmax", torch.zeros(8), tau), published("magmax"))


def test_published_emr(merge: Merge, stable_tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("emr", torch.zeros(8), stable_tau), published("emr_unified_stable"))


def test_published_rescalers_follow_from_the_unified_vector(
    merge: Merge, stable_tau: list[Tensor], published: Any, near: Any
) -> None:
    unified = merge("emr", torch.zeros(8), stable_tau)
    masked = [unified * (values * unified > 0) for values in stable_tau]
    pairs = zip(stable_tau, masked, strict=True)
    near(
        torch.stack([values.abs().mean() / kept.abs().mean() for values, kept in pairs]),
        published("emr_rescalers_stable"),
    )


def test_magmax_takes_one_of_the_entries(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(4)
    weight = [0.4, 0.9, 1.2]
    deltas = torch.stack([w * (model - base) for w, model in zip(weight, models, strict=True)])
    expected = deltas.gather(0, deltas.abs().argmax(0, keepdim=True))[0]
    assert torch.equal(merge("magmax", base, models, weight=weight), expected + base)


def test_opposite_entries_of_one_size(merge: Merge) -> None:
    a = torch.tensor([1.0, -1.0])
    assert merge("magmax", torch.zeros(2), [a, -a]).tolist() == [1.0, 1.0]
    assert merge("emr", torch.zeros(2), [a, -a]).tolist() == [1.0, 1.0]


def test_emr_is_the_largest_that_agrees(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(4)
    deltas = torch.stack([model - base for model in models])
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    expected = (deltas * sign).clamp(min=0).max(0).values * sign
    torch.testing.assert_close(merge("emr", base, models), base + expected)
