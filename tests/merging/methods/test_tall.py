"""Consensus merging against published values and a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.tall import matters
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestConsensus(MergeMethodSuite):
    method = "consensus"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], mask_threshold=0.3, lambda_=0.8)
    others = coefficients(weight=1.0, min_tasks=1.0)


def test_published_masks(tau: list[Tensor], published: Any) -> None:
    total = torch.stack(tau).sum(0)
    masks = [matters(values.clone(), total, 0.4, scratch=torch.empty(8)) for values in tau]
    assert torch.equal(torch.stack(masks), published("tall_masks_lambda0.4"))


def test_published_consensus(merge: Merge, tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("consensus", torch.zeros(8), tau, mask_threshold=0.4), published("consensus_k2_lambda0.4"))


@pytest.mark.parametrize("least", [1, 2, 3])
def test_formula(merge: Merge, tensors: Any, least: int) -> None:
    base, *models = tensors(4)
    deltas = torch.stack([model - base for model in models])
    total = deltas.sum(0)
    count = (deltas.abs() > 1.5 * (total - deltas).abs()).sum(0)
    found = merge("consensus", base, models, mask_threshold=1.5, min_tasks=float(least))
    torch.testing.assert_close(found, base + total * (count >= least))
    assert len(count.unique()) == 3


def test_one_model_needs_no_company(merge: Merge, tensors: Any) -> None:
    base, model = tensors(2)
    torch.testing.assert_close(merge("consensus", base, [model], min_tasks=5.0), model)
