"""What the spectral methods share: the mean of task vectors where a tensor is not a linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Merge = Callable[..., Tensor]


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "drm", "wudi"])
@pytest.mark.parametrize(("shape", "by_token"), [((17,), False), ((6, 5), True)], ids=["norm", "embedding"])
def test_other_tensors_take_the_weighted_mean_of_the_task_vectors(
    merge: Merge, tensors: Any, method: str, shape: tuple[int, ...], by_token: bool
) -> None:
    base, *models = tensors(4, *shape)
    weight = [0.5, 1.0, 0.25]
    moved = [w * (model - base) for w, model in zip(weight, models, strict=True)]
    found = merge(method, base, models, weight=weight, lambda_=0.8, by_token=by_token)
    torch.testing.assert_close(found, base + 0.8 * torch.stack(moved).mean(0))
