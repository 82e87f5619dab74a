"""The loop against `model.generate`, on architectures with different caches and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.results import TaskError
from fitness.scoring import decoding, generation, reading
from fitness.scoring.generation import GenerationPlan
from fitness.tasks.lm_eval_rules import RightTexts, cut_at_stop

PROMPTS = [(10, 12, 7), (9, 20, 21, 22, 8, 5), (15,), (11, 11, 5), (25, 26, 27, 13, 14)]
SETTINGS = {"until": ["."], "max_gen_toks": 14}
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "gpt2"]


def texts(model: Any, tokenizer: Any, settings: dict[str, Any], batch_size: int = 8) -> list[str]:
    plan = GenerationPlan(
        PROMPTS, [settings] * len(PROMPTS), tokenizer, max_length=64, batch_size=batch_size, device="cpu"
    )
    return plan.run(model)[0]


def one_by_one(model: Any, tokenizer: Any, count: int, stop: str) -> list[str]:
    """The slow reference: the whole sequence through the model for each token, no cache, no padding."""
    found = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(count):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        text = tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
        found.append(text.split(stop)[0])
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loop_equals_generate_and_the_slow_reference(
    architecture: str, tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(architecture)
    batch = GenerationPlan(
        PROMPTS, [SETTINGS] * len(PROMPTS), tokenizer, max_length=64, batch_size=8, device="cpu"
    )._groups[0]
    assert generation._loop_applies(model, batch)
    expected = one_by_one(model, tokenizer, 14, ".")
    assert texts(model, tokenizer, SETTINGS) == expected
    assert len({len(text) for text in expected}) > 1  # rows end at different times
    monkeypatch.setattr(generation, "_loop_applies", lambda *_: False)
    assert texts(model, tokenizer, SETTINGS) == expected


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_leaving_finished_rows_out_changes_nothing(
    share: float, tokenizer: Any, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SHRINK_AT", share)
    assert texts(llama, tokenizer, SETTINGS) == one_by_one(llama, tokenizer, 14, ".")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_change_the_texts(batch_size: int, tokenizer: Any, llama: Any) -> None:
    assert texts(llama, tokenizer, SETTINGS, batch_size) == texts(llama, tokenizer, SETTINGS)


SHOTS = (12, 7, 20, 9, 8, 25, 13, 30, 11, 6, 14, 22, 28, 10, 17, 19, 23, 5, 29, 18, 16, 21, 26, 27, 15, 24, 12, 9, 8, 7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_few_shot_examples_are_read_once(
    architecture: str, tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of different lengths behind 30 common tokens: padding comes between the two."""
    monkeypatch.setattr(generation, "PASS_COST", 0)
    monkeypatch.setattr(f"{__name__}.PROMPTS", [SHOTS + prompt for prompt in PROMPTS])
    model, read = make_model(architecture), []
    expected = one_by_one(model, tokenizer, 14, ".")
    before = model.register_forward_pre_hook(
        lambda _, args, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        assert texts(model, tokenizer, SETTINGS) == expected
    finally:
        before.remove()
    sliding = architecture == "mistral"  # its default window; the cache counts padding
    assert read[:3] == ([(5, 36), (5, 1), (5, 1)] if sliding else [(5, 36), (1, 30), (5, 6)])  # first, to compare


def test_a_prompt_that_is_the_common_beginning(tokenizer: Any, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PASS_COST", 0)
    monkeypatch.setattr(f"{__name__}.PROMPTS", [SHOTS, *(SHOTS + prompt for prompt in PROMPTS)])
    assert texts(llama, tokenizer, SETTINGS) == one_by_one(llama, tokenizer, 14, ".")


def test_equal_prompts_keep_a_token_to_go_on_from(tokenizer: Any, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PASS_COST", 0)
    monkeypatch.setattr(f"{__name__}.PROMPTS", [SHOTS] * 4)
    assert texts(llama, tokenizer, SETTINGS) == one_by_one(llama, tokenizer, 14, ".")


def test_a_short_beginning_is_not_worth_a_pass(tokenizer: Any) -> None:
    prompts = [SHOTS + prompt for prompt in PROMPTS]
    for count, expected in ((5, 0), (60, 30)):
        plan = GenerationPlan(
            prompts[:1] * (count - 1) + prompts[1:2],
            [SETTINGS] * count,
            tokenizer,
            max_length=64,
            batch_size=64,
            device="cpu",
        )
        assert {prompt.shared for prompt in plan._groups[0].prompts} == {expected}


def test_sliding_window(tokenizer: Any, make_model: Callable) -> None:
    model = make_model("mistral", sliding_window=4)
    assert texts(model, tokenizer, SETTINGS, 1) == one_by_one(model, tokenizer, 14, ".")


def test_stop_strings_of_several_words(tokenizer: Any, llama: Any) -> None:
    whole = one_by_one(llama, tokenizer, 14, "never said")
    words = max(whole, key=len).split()
    stop = f"{words[1]} {words[2]}"
    stopped = texts(llama, tokenizer, {"until": [stop], "max_gen_toks": 14})
    assert stopped == [text.split(stop)[0] for text in whole]
    assert stopped != whole


def test_other_settings_go_to_generate(tokenizer: Any, llama: Any, make_model: Callable) -> None:
    penalised = texts(llama, tokenizer, {**SETTINGS, "repetition_penalty": 5.0})
    assert penalised != texts(llama, tokenizer, SETTINGS)
    model = make_model("llama")
    model.generation_config.repetition_penalty = 5.0  # the model's own setting counts as in lm-eval
    assert texts(model, tokenizer, SETTINGS) == penalised


def test_a_model_that_prepares_its_own_inputs_goes_to_generate(tokenizer: Any, make_model: Callable) -> None:
    model = make_model("llama")

    class Own(type(model)):  # type: ignore[misc]
        def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
            """Read each token as the one before it in the vocabulary."""
            return dict(super().prepare_inputs_for_generation((input_ids - 1).clamp(min=0), **kwargs))

    plain = texts(model, tokenizer, SETTINGS)
    model.__class__ = Own
    found = texts(model, tokenizer, SETTINGS)
    assert found != plain
    plan = GenerationPlan(PROMPTS[:1], [SETTINGS], tokenizer, max_length=64, batch_size=1, device="cpu")
    assert plan.run(model)[0] == found[:1]


def test_an_end_token_of_the_generation_config(tokenizer: Any, make_model: Callable) -> None:
    model = make_model("llama")
    before = texts(model, tokenizer, {"until": [], "max_gen_toks": 14})
    second = tokenizer.convert_tokens_to_ids(before[0].split()[1])
    model.generation_config.eos_token_id = [2, second]
    after = texts(model, tokenizer, {"until": [], "max_gen_toks": 14})
    assert after[0].split() == before[0].split()[:2]


def test_nan_stops_generate_too(tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    monkeypatch.setattr(generation, "_loop_applies", lambda *_: False)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="the model produced NaN"):
        texts(model, tokenizer, SETTINGS)


@pytest.mark.parametrize("extra", [{"do_sample": True}, {"num_beams": 2}, {"max_length": 9}])
def test_settings_that_are_refused(extra: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(TaskError, match="set do_sample: false, num_beams: 1 and max_gen_toks"):
        texts(None, tokenizer, {**SETTINGS, **extra})


def lengths(model: Any, tokenizer: Any, count: int, stop: str = ".") -> tuple[list[tuple[int, ...]], list[str]]:
    """Prompts of 1 to 9 tokens and their answers, by the slow reference: more than fit into a batch."""
    drawn = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(5, 31, (int(torch.randint(1, 10, (1,), generator=drawn)),), generator=drawn).tolist())
        for _ in range(count)
    ]
    return prompts, prompts and _answers(model, tokenizer, prompts, 14, stop)


def _answers(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], count: int, stop: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.PROMPTS", prompts)
        return one_by_one(model, tokenizer, count, stop)


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_prompts_that_join_a_running_batch(
    architecture: str, rows: int, tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are dropped on the way, and rows are moved once no prompt is left."""
    monkeypatch.setattr(decoding, "SLACK", 1)
    model = make_model(architecture)
    prompts, expected = lengths(model, tokenizer, 9)
    plan = GenerationPlan(prompts, [SETTINGS] * 9, tokenizer, max_length=64, batch_size=rows, device="cpu")
    assert plan.run(model)[0] == expected
    assert len({len(text) for text in expected}) > 2  # so rows do wait for others


def test_a_batch_stays_full(tokenizer: Any, llama: Any) -> None:
    """With unequal answers there are fewer passes than when each batch waits for its longest answer."""
    prompts, expected = lengths(llama, tokenizer, 16)
    continuous = GenerationPlan(prompts, [SETTINGS] * 16, tokenizer, max_length=64, batch_size=4, device="cpu")
    together, found = passes(llama, continuous)
    assert found == expected
    apart = 0
    for at in range(0, 16, 4):
        batch = GenerationPlan(
            prompts[at : at + 4], [SETTINGS] * 4, tokenizer, max_length=64, batch_size=4, device="cpu"
        )
        apart += len(passes(llama, batch)[0])
    assert len(together) < apart


def test_prefixes_of_several_tasks_are_each_read_once(
    tokenizer: Any, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "PASS_COST", 0)
    others = SHOTS[::-1]
    prompts = [shots + prompt for prompt in PROMPTS for shots in (SHOTS, others)]
    expected = _answers(llama, tokenizer, prompts, 14, ".")
    read: list[int] = []
    plan = GenerationPlan(prompts, [SETTINGS] * 10, tokenizer, max_length=64, batch_size=2, device="cpu")
    assert plan.run(llama)[0] == expected
    before = llama.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    found = plan.run(llama)[0]
    before.remove()
    assert found == expected
    assert sorted(width for width in read if width > 6) == [len(SHOTS)] * 2


@pytest.mark.parametrize("options", [{}, {"ignore_case": True}, {"ignore_numbers": True, "ignore_punctuation": True}])
def test_a_text_that_can_only_be_wrong_ends_early_and_keeps_its_score(
    options: dict[str, bool], tokenizer: Any, llama: Any
) -> None:
    """Right, half right and wrong answers: `exact_match` of the cut texts is that of the whole ones."""
    from lm_eval.api.metrics import exact_match_hf_evaluate

    prompts, whole = lengths(llama, tokenizer, 16)
    golds = [
        (text, text[: len(text) // 2], text.upper(), "w1 w2", text + " w9", text.split(" ")[0])[at % 6]
        for at, text in enumerate(whole)
    ]
    right = [RightTexts((gold,), **options) for gold in golds]
    plan = GenerationPlan(prompts, [SETTINGS] * 16, tokenizer, max_length=64, batch_size=4, device="cpu", right=right)
    assert plan.run(llama)[0] == whole
    cut = plan.run(llama, whole=False)[0]
    for text, short, gold in zip(whole, cut, golds, strict=True):
        one, other = (exact_match_hf_evaluate([each], [gold], **options)["exact_match"] for each in (text, short))
        assert one == other and text.startswith(short)
    assert sum(map(len, cut)) < sum(map(len, whole))


@given(
    text=st.text("ab1. \n", max_size=8),
    more=st.text("ab1. \n", max_size=8),
    gold=st.text("aAb1. \n", max_size=6),
    stop=st.lists(st.text("a.\n", min_size=1, max_size=3), max_size=2),
    ignore=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_no_text_that_may_become_right_is_given_up(
    text: str, more: str, gold: str, stop: list[str], ignore: tuple[bool, bool, bool]
) -> None:
    """Whatever follows: if the whole text, cut at a stop string, is right, then its beginning was not given up."""
    from lm_eval.api.metrics import exact_match_hf_evaluate

    names = ("ignore_case", "ignore_punctuation", "ignore_numbers")
    options = dict(zip(names, ignore, strict=True))
    if any(each in text for each in stop):
        return  # it has ended before
    final = cut_at_stop(text + more, tuple(stop))
    if exact_match_hf_evaluate([final], [gold], **options)["exact_match"]:
        assert RightTexts((gold,), **options).may_become(text, tuple(stop))


def passes(model: Any, plan: GenerationPlan, *, whole: bool = False) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes of the passes of a run, and its texts."""
    shapes: list[tuple[int, int]] = []
    before = model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        return shapes, plan.run(model, whole=whole)[0]
    finally:
        before.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_right_answers_are_read_with_their_prompts(
    architecture: str, tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that are right, right at first and wrong: the texts are the same, and right ones take fewer passes."""
    monkeypatch.setattr(reading, "PASS_COST", 1000)
    model = make_model(architecture)
    prompts, expected = lengths(model, tokenizer, 12)
    taken = {}
    for name, golds in (
        ("right", expected),
        ("mixed", [(text, text[: len(text) // 2] + " w1 w2", "w3 w1")[at % 3] for at, text in enumerate(expected)]),
    ):
        right = [RightTexts((gold,)) for gold in golds]
        plan = GenerationPlan(
            prompts, [SETTINGS] * 12, tokenizer, max_length=64, batch_size=4, device="cpu", right=right
        )
        for _ in range(2):  # the first run compares packed rows with plain ones
            shapes, found = passes(model, plan, whole=True)
            assert found == expected
        taken[name] = len(shapes)
    assert taken["right"] <= taken["mixed"]  # equal where an answer's text does not give its tokens
    assert architecture != "llama" or taken["right"] < taken["mixed"]


def test_more_prompts_are_read_than_rows_are_free(tokenizer: Any, llama: Any) -> None:
    """All answers but a few are wrong at once, so that a pass may hold as many prompts as its slots allow."""
    prompts: list[tuple[int, ...]] = [(10, 12, 7, 9, 8, last) for last in range(5, 29)]
    expected = _answers(llama, tokenizer, prompts, 14, ".")
    right = [RightTexts((text if at % 8 == 0 else "?",)) for at, text in enumerate(expected)]
    plan = GenerationPlan(prompts, [SETTINGS] * 24, tokenizer, max_length=64, batch_size=4, device="cpu", right=right)
    for _ in range(2):
        shapes, found = passes(llama, plan)
        assert found[::8] == expected[::8]
        assert all(text.startswith(cut) for text, cut in zip(expected, found, strict=True))
    assert all(rows <= 4 for rows, _ in shapes)
    assert max(width for _, width in shapes) > 6  # packed
    assert len(shapes) < 24


@pytest.mark.parametrize("broken", ["wrong", "fails"])
def test_a_model_that_misreads_packed_rows_reads_plain_ones(
    broken: str, tokenizer: Any, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    forward = model.forward

    def without_mask(
        input_ids: Any, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None, **given: Any
    ) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            if broken == "fails":
                raise TypeError("takes no such mask")
            attention_mask = None
        return forward(input_ids, attention_mask, position_ids=position_ids, past_key_values=past_key_values, **given)

    monkeypatch.setattr(model, "forward", without_mask)
    prompts: list[tuple[int, ...]] = [(10, 12, 7, 9, 8, last) for last in range(5, 21)]
    expected = _answers(make_model("llama"), tokenizer, prompts, 14, ".")
    plan = GenerationPlan(prompts, [SETTINGS] * 16, tokenizer, max_length=64, batch_size=8, device="cpu")
    for _ in range(2):
        shapes, found = passes(model, plan)
        assert found == expected
    assert max(width for _, width in shapes) == 6
    assert list(plan._verdicts.values()) == [False]
