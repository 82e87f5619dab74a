"""Planned log-likelihoods against one plain forward pass per request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.loglikelihood import LoglikelihoodPlan, Pair, _owners

tokens = st.lists(st.integers(4, 8), min_size=1, max_size=5).map(tuple)  # few tokens: many shared beginnings


def plainly(model: Any, pairs: list[Pair]) -> tuple[list[float], list[bool]]:
    values, greedy = [], []
    for context, continuation in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([context + continuation])).logits[0].double()
        logp = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
        answer = torch.tensor(continuation)
        values.append(float(logp.gather(1, answer[:, None]).sum()))
        greedy.append(bool((logp.argmax(-1) == answer).all()))
    return values, greedy


@settings(deadline=None, max_examples=30)
@given(pairs=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), batch_size=st.integers(1, 5))
def test_equals_one_pass_per_request(pairs: list[Pair], batch_size: int, llama: Any) -> None:
    plan = LoglikelihoodPlan(pairs, max_length=64, batch_size=batch_size, device="cpu")
    values, greedy, seconds = plan.run(llama)
    expected, likeliest = plainly(llama, pairs)
    np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
    assert greedy.tolist() == likeliest
    assert seconds > 0


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt_neox", "gpt2"])
def test_architectures(architecture: str, make_model: Callable) -> None:
    """Gemma 2 caps its logits after the head: cutting before the head must not lose that."""
    model = make_model(architecture)
    pairs: list[Pair] = [((9, 8, 7), (6, 5)), ((9, 8, 7), (4,)), ((12,), (13, 14, 15, 16)), ((9, 8), (7,))]
    plan = LoglikelihoodPlan(pairs, max_length=64, batch_size=8, device="cpu")
    assert plan.rows == 2
    np.testing.assert_allclose(plan.run(model)[0], plainly(model, pairs)[0], atol=1e-4, rtol=0)


def test_models_without_a_known_head(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[Pair] = [((9, 8, 7), (6, 5)), ((12,), (13, 14, 15, 16))]
    plan = LoglikelihoodPlan(pairs, max_length=64, batch_size=8, device="cpu")
    expected = plan.run(llama)[0]
    monkeypatch.setattr(type(llama), "get_output_embeddings", lambda _: None)
    np.testing.assert_allclose(plan.run(llama)[0], expected, atol=1e-5)


@given(st.lists(tokens, min_size=1, max_size=30))
def test_an_owner_begins_with_what_it_owns(inputs: list[tuple[int, ...]]) -> None:
    owner = _owners(inputs)
    for given_tokens in inputs:
        row = owner[given_tokens]
        assert row[: len(given_tokens)] == given_tokens
        assert owner[row] == row
    rows = set(owner.values())
    assert not any(a != b and b[: len(a)] == a for a in rows for b in rows)


def test_bfloat16_is_rounded_as_lm_eval_does(make_model: Callable) -> None:
    model = make_model("llama").to(torch.bfloat16)
    pairs: list[Pair] = [((9, 8, 7), (6, 5, 11))]
    values = LoglikelihoodPlan(pairs, max_length=64, batch_size=8, device="cpu").run(model)[0]
    with torch.inference_mode():
        logp = torch.log_softmax(model(torch.tensor([[9, 8, 7, 6, 5]])).logits, -1)[0, 2:]
    assert values[0] == float(logp.gather(1, torch.tensor([[6], [5], [11]])).sum())
