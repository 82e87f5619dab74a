"""Differentiable losses against the log-likelihoods of scoring, and their derivatives against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fitness.results import TaskError
from fitness.scoring.loglikelihood import LoglikelihoodPlan, Pair
from fitness.scoring.losses import LossError, LossItem, LossPlan

CHOICES: tuple[Pair, ...] = (((5, 6, 7, 8), (9,)), ((5, 6, 7, 8), (10, 11)), ((5, 6, 7, 8), (12, 13, 14)))
ANSWER: tuple[Pair, ...] = (((15, 16, 17), (18, 19, 2)),)


def loglikelihoods(model: Any, pairs: tuple[Pair, ...], max_length: int = 64) -> np.ndarray:
    return LoglikelihoodPlan(pairs, max_length=max_length, batch_size=4, device="cpu").run(model)[0]


def total(model: Any, items: list[LossItem], **settings: Any) -> float:
    plan = LossPlan(items, **{"max_length": 64, "batch_size": 8} | settings)
    return sum(float(batch.total.detach()) for batch in plan.losses(model))


def test_choices_give_the_cross_entropy_of_the_right_one(llama: Any) -> None:
    own = loglikelihoods(llama, CHOICES)
    expected = -0.5 * (own[1] - np.log(np.exp(own).sum()))
    assert total(llama, [LossItem(CHOICES, 1, 0.5)]) == pytest.approx(expected, abs=1e-4)


def test_an_answer_gives_its_loss_per_token(llama: Any) -> None:
    assert total(llama, [LossItem(ANSWER, 0, 1.0)]) == pytest.approx(-loglikelihoods(llama, ANSWER)[0] / 3, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_do_not_matter(llama: Any, batch_size: int) -> None:
    items = [LossItem(CHOICES, 0, 0.2), LossItem(ANSWER, 0, 0.3), LossItem(CHOICES[:2], 1, 0.5)]
    apart = sum(total(llama, [item]) for item in items)
    assert total(llama, items, batch_size=batch_size) == pytest.approx(apart, abs=1e-4)


def test_each_item_has_its_loss(llama: Any) -> None:
    items = [LossItem(ANSWER, 0, 0.5), LossItem(CHOICES, 1, 0.25)]
    found = {
        at: loss
        for batch in LossPlan(items, max_length=64, batch_size=3).losses(llama)
        for at, loss in zip(batch.places, batch.losses, strict=True)
    }
    assert found == pytest.approx({0: total(llama, items[:1]) / 0.5, 1: total(llama, items[1:]) / 0.25}, abs=1e-4)


def test_entropies_need_no_right_answer(llama: Any) -> None:
    choices = torch.log_softmax(torch.from_numpy(loglikelihoods(llama, CHOICES)).double(), 0)
    expected = float(-(choices.exp() * choices).sum())
    assert total(llama, [LossItem(CHOICES, 0, 1.0)], entropy=True) == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        logp = torch.log_softmax(llama(torch.tensor([[*ANSWER[0][0], *ANSWER[0][1]]])).logits[0, 2:5].double(), -1)
    expected = float(-(logp.exp() * logp).sum(-1).mean())
    assert total(llama, [LossItem(ANSWER, 0, 1.0)], entropy=True) == pytest.approx(expected, abs=1e-4)
    both = total(llama, [LossItem(CHOICES, 0, 0.5), LossItem(ANSWER, 0, 0.5)], entropy=True)
    apart = [total(llama, [LossItem(pairs, 0, 0.5)], entropy=True) for pairs in (CHOICES, ANSWER)]
    assert both == pytest.approx(sum(apart), abs=1e-4)


def test_long_contexts_lose_their_beginning(llama: Any) -> None:
    long: tuple[Pair, ...] = ((tuple(range(4, 20)), (20, 21)),)
    expected = -loglikelihoods(llama, long, max_length=10)[0] / 2
    assert total(llama, [LossItem(long, 0, 1.0)], max_length=10) == pytest.approx(expected, abs=1e-4)


def test_an_answer_that_the_model_cannot_read_is_refused(llama: Any) -> None:
    answer = LossItem((((1, 2), (5, 6, 7, 8, 9)),), 0, 1.0)
    with pytest.raises(TaskError, match="a choice or answer has 5 tokens and the model reads 4"):
        total(llama, [answer], max_length=4)
    assert np.isfinite(total(llama, [answer], max_length=5))


def test_the_gradient_is_that_of_finite_differences(llama: Any) -> None:
    items = [LossItem(CHOICES, 2, 0.5), LossItem(ANSWER, 0, 0.5)]
    parameter = llama.model.layers[0].mlp.up_proj.weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    parameter.requires_grad_(True)
    try:
        for batch in LossPlan(items, max_length=64, batch_size=2).losses(llama):
            batch.total.backward()
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter.add_(direction, alpha=2e-3)
            above = total(llama, items)
            parameter.add_(direction, alpha=-4e-3)
            below = total(llama, items)
            parameter.add_(direction, alpha=2e-3)
    finally:
        for each in llama.parameters():
            each.requires_grad_(False)
            each.grad = None
    assert slope == pytest.approx((above - below) / 4e-3, rel=1e-2)


def test_weights_without_a_finite_loss_are_refused(llama: Any) -> None:
    weight = llama.model.norm.weight
    kept = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(LossError, match="the loss of item t/test/3 is nan: the merged weights are not usable"):
            total(llama, [LossItem(ANSWER, 0, 1.0, "t/test/3")])
    finally:
        weight.data.copy_(kept)
