"""Planned log-likelihoods against one plain forward pass per request, and against lm-eval's HFLM."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitness.scoring import loglikelihood, prefix_tree, shared_prefix
from fitness.scoring.loglikelihood import LoglikelihoodPlan, Pair

tokens = st.lists(st.integers(4, 8), min_size=1, max_size=5).map(tuple)  # few tokens: many shared beginnings

SHARING = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "gpt2"]
WINDOWS = ["mistral", "gemma2", "gemma3_text", "phi3"]


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


def by_hflm(model: Any, tokenizer: Any, pairs: list[Pair], max_length: int) -> list[tuple[float, bool]]:
    from lm_eval.models.huggingface import HFLM

    hflm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=max_length)
    requests = [((str(n), ""), list(context), list(answer)) for n, (context, answer) in enumerate(pairs)]
    return hflm._loglikelihood_tokens(requests, disable_tqdm=True)


def questions(seed: int, count: int, *, shots: int = 0, context: int = 8, choice: int = 5) -> list[Pair]:
    """Questions with four choices each, behind the same examples; in mixed order."""
    rng = random.Random(seed)

    def words(size: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 31) for _ in range(size))

    examples = words(shots)
    asked = [examples + words(context + rng.randrange(4)) for _ in range(count)]
    pairs = [(question, words(rng.randint(1, choice))) for question in asked for _ in range(4)]
    rng.shuffle(pairs)
    return pairs


def mixed() -> list[Pair]:
    """A few-shot task with 37 tokens of examples, a zero-shot one, and choices of one token."""
    return questions(1, 10, shots=37) + questions(2, 4, context=12) + questions(3, 3, choice=1)


def planned(pairs: list[Pair], max_length: int = 64, batch_size: int = 3) -> LoglikelihoodPlan:
    return LoglikelihoodPlan(pairs, max_length=max_length, batch_size=batch_size, device="cpu")


@given(pairs=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), batch_size=st.integers(1, 5))
def test_equals_one_pass_per_request(pairs: list[Pair], batch_size: int, llama: Any) -> None:
    values, greedy, seconds = planned(pairs, batch_size=batch_size).run(llama)
    expected, likeliest = plainly(llama, pairs)
    np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
    assert greedy.tolist() == likeliest
    assert seconds > 0


@pytest.fixture(params=["packed", "behind a prefix"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few-shot questions as one packed row, or, as soon as there are more of them, behind a cached prefix."""
    if request.param != "packed":
        monkeypatch.setattr(prefix_tree, "PACK_SLOTS", 64)
    return request.param


@pytest.mark.parametrize("architecture", SHARING)
def test_sharing_equals_plain_rows(architecture: str, form: str, make_model: Callable) -> None:
    """Rotary and absolute positions, soft caps before and after the head, norms, scaled embeddings."""
    model, pairs = make_model(architecture), mixed()
    plan = planned(pairs)
    assert [len(group.prefix) for group in plan._shared] == ([0] if form == "packed" else [0, 37])
    assert plan.tokens < 0.5 * sum(len(row.tokens) for row in separate_rows(plan))
    expected, likeliest = plainly(model, pairs)
    for _ in range(2):  # the first of a kind is checked against plain rows, the second is not
        values, greedy, _ = plan.run(model)
        assert plan.plain_because is None
        np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
        assert greedy.tolist() == likeliest


def separate_rows(plan: LoglikelihoodPlan) -> list[Any]:
    return [row for group in loglikelihood.separate(list(plan._requests_of)) for row in group.rows]


@pytest.mark.parametrize("architecture", WINDOWS)
def test_sliding_windows_count_positions_not_slots(architecture: str, form: str, make_model: Callable) -> None:
    model, pairs = make_model(architecture, sliding_window=6), mixed()
    plan = planned(pairs)
    np.testing.assert_allclose(plan.run(model)[0], plainly(model, pairs)[0], atol=1e-4, rtol=0)
    assert plan.plain_because is None


def test_eager_attention(form: str, make_model: Callable) -> None:
    model, pairs = make_model("llama"), mixed()
    model.set_attn_implementation("eager")
    plan = planned(pairs)
    np.testing.assert_allclose(plan.run(model)[0], plainly(model, pairs)[0], atol=1e-4, rtol=0)
    assert plan.plain_because is None


@pytest.mark.parametrize("max_length", [64, 44, 20, 6])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_equals_hflm(architecture: str, max_length: int, form: str, make_model: Callable, tokenizer: Any) -> None:
    """Long inputs lose their beginning, and with it what they shared."""
    model, pairs = make_model(architecture), mixed()
    expected = by_hflm(model, tokenizer, pairs, max_length)
    values, greedy, _ = planned(pairs, max_length).run(model)
    np.testing.assert_allclose(values, [value for value, _ in expected], atol=1e-4, rtol=0)
    assert greedy.tolist() == [is_greedy for _, is_greedy in expected]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "depend on the length of the input",
        ),
        ({"attn_implementation": "flex_attention"}, "takes no custom mask"),
    ],
)
def test_known_obstacles(settings: dict[str, Any], reason: str, make_model: Callable) -> None:
    model = make_model("llama", **{k: v for k, v in settings.items() if k != "attn_implementation"})
    if "attn_implementation" in settings:
        model.config._attn_implementation = settings["attn_implementation"]
    assert reason in str(shared_prefix.obstacle(model))


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        ("bloom", {"n_layer": 2, "n_head": 2}, "does not take position ids"),
        ("falcon", {"num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True}, "ALiBi"),
        (
            "gpt_neo",
            {
                "num_layers": 2,
                "num_heads": 2,
                "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 64,
            },
            "it fails",
        ),
        ("mamba", {"num_hidden_layers": 2, "state_size": 4}, "does not take position ids"),
    ],
)
def test_other_architectures_get_plain_rows(kind: str, sizes: dict[str, Any], reason: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, vocab_size=31, hidden_size=32, initializer_range=0.4, **sizes)
    model, pairs = AutoModelForCausalLM.from_config(config).eval(), mixed()
    plan = planned(pairs)
    np.testing.assert_allclose(plan.run(model)[0], plainly(model, pairs)[0], atol=1e-4, rtol=0)
    assert reason in str(plan.plain_because)


def see_everything_before(packed: Any, prefix: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """A model that ignores the tree: every slot sees all slots before it."""
    rows, width = packed.input_BS.shape
    mask = torch.full((width, prefix + width), torch.finfo(dtype).min).triu(prefix + 1)
    return mask.to(dtype).expand(rows, 1, -1, -1)


def test_a_model_that_reads_packed_rows_wrongly_gets_plain_rows(
    form: str, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "_mask", see_everything_before)
    pairs = mixed()
    plan = planned(pairs)
    for _ in range(2):
        np.testing.assert_allclose(plan.run(llama)[0], plainly(llama, pairs)[0], atol=1e-4, rtol=0)
        assert plan.plain_because == "log-likelihoods from packed rows differ from those from plain rows"


def test_a_broken_candidate_decides_nothing(make_model: Callable) -> None:
    broken, sound, pairs = make_model("llama"), make_model("llama"), mixed()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    plan = planned(pairs)
    with pytest.raises(ValueError, match="the model produced NaN"):
        plan.run(broken)
    np.testing.assert_allclose(plan.run(sound)[0], plainly(sound, pairs)[0], atol=1e-4, rtol=0)
    assert plan.plain_because is None


def test_large_masks_are_split(form: str, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mixed()
    expected = planned(pairs).run(llama)[0]
    monkeypatch.setattr(loglikelihood, "MASK_SIZE", 1)
    plan = planned(pairs)
    np.testing.assert_allclose(plan.run(llama)[0], expected, atol=1e-4, rtol=0)
    assert {len(b.packed.input_BS) for _, batches in plan._shared_batches for b in batches if not b.packed.plain} == {1}


def test_rows_without_branches_need_no_mask(llama: Any) -> None:
    pairs: list[Pair] = [((9, 8, 7), (6, 5)), ((9, 8, 7), (4,)), ((12,), (13, 14, 15, 16)), ((9, 8), (7,))]
    plan = planned(pairs)
    assert plan.rows == 2
    assert all(batch.packed.plain for _, batches in plan._plain_batches for batch in batches)
    np.testing.assert_allclose(plan.run(llama)[0], plainly(llama, pairs)[0], atol=1e-4, rtol=0)
    assert plan.plain_because is None


def test_models_without_a_known_head(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mixed()
    expected = planned(pairs).run(llama)[0]
    monkeypatch.setattr(type(llama), "get_output_embeddings", lambda _: None)
    np.testing.assert_allclose(planned(pairs).run(llama)[0], expected, atol=1e-5)


def test_bfloat16_is_rounded_as_lm_eval_does(make_model: Callable) -> None:
    model = make_model("llama").to(torch.bfloat16)
    pairs: list[Pair] = [((9, 8, 7), (6, 5, 11))]
    values = planned(pairs).run(model)[0]
    with torch.inference_mode():
        logp = torch.log_softmax(model(torch.tensor([[9, 8, 7, 6, 5]])).logits, -1)[0, 2:]
    assert values[0] == float(logp.gather(1, torch.tensor([[6], [5], [11]])).sum())


def test_bfloat16_shares(form: str, make_model: Callable) -> None:
    model, pairs = make_model("llama").to(torch.bfloat16), mixed()
    plan = planned(pairs)
    np.testing.assert_allclose(plan.run(model)[0], plainly(model, pairs)[0], atol=1.0)
    assert plan.plain_because is None
