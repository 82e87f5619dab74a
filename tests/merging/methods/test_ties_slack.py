"""TIES with slack against a plain reference and TIES itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestTiesSlack(MergeMethodSuite):
    method = "ties_slack"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], density=[0.5, 0.8, 0.3], slack=[0.2, 0.9, 0.5], important=0.4)
    others = coefficients(weight=1.0, slack=0.0)
    one_model = coefficients(weight=1.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_golden(merge: Merge, tensors: Any, near_golden: Any, normalize: bool) -> None:
    base, *models = tensors(4, 40)
    weight, slack, size = [0.4, 0.9, 0.7], [1.0, 0.0, 0.5], 40
    deltas = [model.double() - base.double() for model in models]
    places = [delta.abs().argsort(descending=True).argsort() for delta in deltas]
    trimmed = [w * delta * (place < 20) for w, delta, place in zip(weight, deltas, places, strict=True)]
    expected = base.double()
    for entry in range(size):
        own = [float(delta[entry]) for delta in trimmed]
        sign = 1 if sum(own) >= 0 else -1
        won = [t for t in range(3) if own[t] * sign > 0]
        lost = [t for t in range(3) if own[t] * sign < 0 and places[t][entry] < 8]
        divisor = sum(weight[t] for t in won) if normalize and won else 1.0
        part = sum(own[t] for t in won) + sum(slack[t] * own[t] for t in lost)
        expected[entry] += 0.8 * part / divisor
    found = merge(
        "ties_slack",
        base,
        models,
        weight=weight,
        density=0.5,
        slack=slack,
        important=0.2,
        normalize=normalize,
        lambda_=0.8,
    )
    near_golden(found, expected)


def test_without_slack_is_ties(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(4)
    how = {"weight": [0.4, 0.9, 0.7], "density": [0.5, 0.8, 0.3]}
    torch.testing.assert_close(merge("ties_slack", base, models, slack=0.0, **how), merge("ties", base, models, **how))
