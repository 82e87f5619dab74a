"""Parity with the authority: the same items, model and tokenizer through lm_eval.simple_evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from fitness.results import TaskError
from fitness.scoring.evaluator import PLANS_KEPT, Evaluator

KINDS = ["mc", "mc_several", "mc_information", "ll", "gen", "gen_length"]


def by_lm_eval(
    toys: Any,
    task: str,
    model: Any,
    tokenizer: Any,
    *,
    samples: Sequence[int] | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """lm-eval's own samples of a task's evaluation split, in the order of the documents (and filters)."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):  # starts processes for two seconds
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length),
            tasks=[task],
            task_manager=TaskManager(include_path=str(toys.folder), include_defaults=False),
            samples=None if samples is None else {task: list(samples)},
            bootstrap_iters=0,
            **options,
        )
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def ids(suite: Any, task: str = "toy", side: str = "held_out") -> tuple[str, ...]:
    return tuple(item.id for item in getattr(suite.pool, side)[task])


def equal_scores(toys: Any, suite: Any, model: Any, tokenizer: Any, **options: Any) -> np.ndarray:
    """Assert that all items of the test split agree, item for item; returns their scores."""
    evaluator = Evaluator(suite, tokenizer, batch_size=5, max_length=options.get("max_length"))
    scores = evaluator.score(model, ids(suite))
    metric, chosen = suite.metrics["toy"].split(",")
    samples = [s for s in by_lm_eval(toys, "toy", model, tokenizer, **options) if s["filter"] == chosen]
    expected = {f"toy/test/{sample['doc_id']}": float(sample[metric]) for sample in samples}
    assert dict(zip(scores.items, scores.scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)
    return scores.scores


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_lm_eval_item_for_item(
    kind: str, architecture: str, toys: Any, tokenizer: Any, make_model: Callable
) -> None:
    toys.write("toy", kind, validation=5, test=30)
    scores = equal_scores(toys, toys.suite("toy"), make_model(architecture), tokenizer)
    assert kind == "ll" or scores.std() > 0  # they agree on more than one value


@pytest.mark.parametrize("kind", ["mc_several", "ll"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_length", [None, 6])
def test_loglikelihoods_equal_hflm(
    kind: str, bos: bool, max_length: int | None, toys: Any, make_tokenizer: Callable
) -> None:
    toys.write("toy", kind, validation=5, test=20)
    suite, tokenizer, model = toys.suite("toy"), make_tokenizer(bos=bos), toys.llama
    evaluator = Evaluator(suite, tokenizer, batch_size=7, max_length=max_length)
    values, greedy = raw_loglikelihoods(evaluator, model, ids(suite))
    samples = by_lm_eval(toys, "toy", model, tokenizer, batch_size=4, max_length=max_length)
    responses = [response for sample in samples for response in sample["filtered_resps"]]
    assert len(responses) == len(values)
    np.testing.assert_allclose(values, [float(r[0]) for r in responses], atol=1e-4, rtol=0)
    assert greedy.tolist() == [r[1] for r in responses]


def raw_loglikelihoods(evaluator: Evaluator, model: Any, items: tuple[str, ...]) -> tuple[Any, Any]:
    plan = evaluator._plan(items, evaluator._limit(model))
    values, greedy, _ = plan._loglikelihood.run(model)
    return values, greedy


def test_empty_context_starts_from_the_bos_token(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc_several", validation=5, test=20, doc_to_text="")
    equal_scores(toys, toys.suite("toy"), toys.llama, tokenizer)


def test_context_in_the_choices(toys: Any, tokenizer: Any) -> None:
    """Winogrande's form: doc_to_text is the gold index, the contexts are the choices."""
    toys.write("toy", "mc_several", validation=5, test=20, doc_to_text="{{gold}}", doc_to_target="{{answer}}")
    assert equal_scores(toys, toys.suite("toy"), toys.llama, tokenizer).std() > 0


def test_several_right_choices(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc", validation=5, test=20, doc_to_target="{{[gold, 0]}}")
    assert equal_scores(toys, toys.suite("toy"), toys.llama, tokenizer).std() > 0


@pytest.mark.parametrize("kind", ["mc", "gen_length"])
@pytest.mark.parametrize("options", [{"num_fewshot": 2}, {"num_fewshot": 2, "apply_chat_template": True}])
def test_few_shot_and_chat_prompts_equal_lm_eval(
    kind: str, options: dict[str, Any], toys: Any, make_tokenizer: Callable
) -> None:
    toys.write("toy", kind, train=12, validation=5, test=15)
    suite = toys.suite("toy", **options)
    assert equal_scores(toys, suite, toys.llama, make_tokenizer(chat=True), **options).std() > 0


def test_long_prompts_lose_their_beginning(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen_length", train=12, validation=5, test=15)
    equal_scores(toys, toys.suite("toy", num_fewshot=3), toys.llama, tokenizer, num_fewshot=3, max_length=20)


def test_changing_subsets_get_their_own_prompts(toys: Any, tokenizer: Any) -> None:
    """lm-eval's request cache would answer the second subset with the first one's prompts."""
    toys.write("toy", "gen_length", validation=5, test=30)
    suite = toys.suite("toy")
    evaluator = Evaluator(suite, tokenizer)
    everything = evaluator.score(toys.llama, ids(suite)).scores
    for subset in ([3, 7, 20], [4, 7, 21], [20, 3]):
        scores = evaluator.score(toys.llama, [f"toy/test/{index}" for index in subset])
        samples = by_lm_eval(toys, "toy", toys.llama, tokenizer, samples=sorted(subset))
        by_index = {sample["doc_id"]: sample["length"] for sample in samples}
        assert scores.scores.tolist() == [by_index[index] for index in subset]
        assert scores.scores.tolist() == everything[subset].tolist()


def test_tasks_of_both_kinds_together(toys: Any, tokenizer: Any) -> None:
    for name, kind in (("a", "mc_several"), ("b", "gen_length"), ("c", "ll")):
        toys.write(name, kind, validation=5, test=12)
    suite = toys.suite("a", "b", "c")
    mixed = [item for trio in zip(*(ids(suite, task) for task in "abc"), strict=True) for item in trio]
    together = Evaluator(suite, tokenizer).score(toys.llama, mixed)
    assert together.items == tuple(mixed)
    assert together.forward_seconds > 0
    assert together.scores.dtype == np.float32
    for at, task in enumerate("abc"):
        alone = Evaluator(suite, tokenizer).score(toys.llama, ids(suite, task))
        assert together.scores[at::3].tolist() == alone.scores.tolist()


def test_search_items_of_the_validation_split(toys: Any, tokenizer: Any) -> None:
    """lm-eval would score the test split here; a copy of the task without one is the reference."""
    toys.write("toy", "gen_length", validation=15, test=5)
    suite = toys.suite("toy")
    scores = Evaluator(suite, tokenizer).score(toys.llama, ids(suite, side="search"))
    toys.write("copy", "gen_length", validation=15)
    samples = by_lm_eval(toys, "copy", toys.llama, tokenizer)
    assert scores.scores.tolist() == [sample["length"] for sample in samples]


def test_an_item_is_never_its_own_example(toys: Any) -> None:
    toys.write("toy", "gen_length", validation=4, test=4)  # examples come from the validation split, too
    suite = toys.suite("toy", num_fewshot=3)
    for item in suite.pool.search["toy"]:
        (request,) = suite.task("toy").requests(item)
        own = suite.task("toy").documents.of("validation")[item.index]["question"]
        assert request.context.count(own) == 1


def test_unnamed_repeats_do_not_change_the_score(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=10, repeats=3)
    equal_scores(toys, toys.suite("toy"), toys.llama, tokenizer)


def test_choices_of_one_token_share_a_row(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc", validation=5, test=20)
    toys.write("several", "mc_several", validation=5, test=20)
    suite = toys.suite("toy", "several")
    # "x" and "z" are read in the row of "x y"; "u v w" needs one of its own
    for task, rows in (("toy", 20), ("several", 40)):
        evaluator = Evaluator(suite, tokenizer)
        plan = evaluator._plan(ids(suite, task), 64)
        assert plan._loglikelihood.rows == rows


def test_the_head_runs_only_where_logits_are_read(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc", validation=5, test=20)
    suite = toys.suite("toy")
    seen: list[int] = []
    handle = toys.llama.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0][..., 0].numel()))
    try:
        Evaluator(suite, tokenizer).score(toys.llama, ids(suite))
    finally:
        handle.remove()
    assert seen == [20]


def test_scores_do_not_depend_on_the_batch_size(toys: Any, tokenizer: Any) -> None:
    for name in ("mc_several", "gen_length"):
        toys.write(name, name, validation=5, test=20)
    suite = toys.suite("mc_several", "gen_length")
    items = ids(suite, "mc_several") + ids(suite, "gen_length")
    first, *others = (Evaluator(suite, tokenizer, batch_size=n).score(toys.llama, items) for n in (1, 3, 64))
    assert all(other.scores.tolist() == first.scores.tolist() for other in others)


@pytest.mark.parametrize("kind", ["mc", "gen"])
def test_nan_weights_are_an_error(kind: str, toys: Any, tokenizer: Any, make_model: Callable) -> None:
    toys.write("toy", kind, validation=5, test=5)
    suite, model = toys.suite("toy"), make_model("llama")
    evaluator = Evaluator(suite, tokenizer)
    assert np.isfinite(evaluator.score(model, ids(suite)).scores).all()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the model produced NaN .*: its weights are not usable"):
        evaluator.score(model, ids(suite))


def test_bad_requests_say_what_to_do(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=5)
    suite = toys.suite("toy")
    evaluator = Evaluator(suite, tokenizer)
    with pytest.raises(ValueError, match="give at least one item id"):
        evaluator.score(toys.llama, [])
    with pytest.raises(TaskError, match="no item 'toy/test/99': take ids from the pool"):
        evaluator.score(toys.llama, ["toy/test/99"])
    with pytest.raises(ValueError, match="batch_size is 0: give at least 1"):
        Evaluator(suite, tokenizer, batch_size=0)
    with pytest.raises(TaskError, match=r"generates up to 6 .* reads 4 in all: lower max_gen_toks"):
        Evaluator(suite, tokenizer, max_length=4).prepare(ids(suite))
    with pytest.raises(TaskError, match=r"no chat template: set fitness\.apply_chat_template: false"):
        Evaluator(toys.suite("toy", apply_chat_template=True), tokenizer)


def test_a_choice_longer_than_the_model_reads(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc_several", validation=5, test=5)
    suite = toys.suite("toy")
    with pytest.raises(TaskError, match=r"3 tokens and the model reads 2: raise fitness\.max_length"):
        Evaluator(suite, tokenizer, max_length=2).prepare(ids(suite))


def test_a_choice_without_a_token(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc", validation=5, test=5, doc_to_choice=["w1", " "], doc_to_target=0)
    suite = toys.suite("toy")
    with pytest.raises(TaskError, match=r"gives ' +' after .* no token of its own: set the task's target_delimiter"):
        Evaluator(suite, tokenizer).prepare(ids(suite))


def test_nothing_to_continue(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=5, doc_to_text=" ")
    suite = toys.suite("toy")
    with pytest.raises(TaskError, match="the prompt ' ' has no tokens to continue: give the task a doc_to_text"):
        Evaluator(suite, tokenizer).prepare(ids(suite))


def test_batches_are_kept_and_bounded(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc", validation=5, test=30)
    suite = toys.suite("toy")
    evaluator = Evaluator(suite, tokenizer, max_length=64)
    evaluator.prepare(ids(suite)[:3])
    plan = evaluator._plan(ids(suite)[:3], 64)
    evaluator.score(toys.llama, ids(suite)[:3])
    assert evaluator._plan(ids(suite)[:3], 64) is plan
    for n in range(4, 4 + PLANS_KEPT):
        evaluator.prepare(ids(suite)[:n])
    assert len(evaluator._plans) == PLANS_KEPT
    assert evaluator._plan(ids(suite)[:3], 64) is not plan


def test_the_tokenizer_is_left_alone(toys: Any, make_tokenizer: Callable) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    toys.write("toy", "gen", validation=5, test=5)
    suite = toys.suite("toy")
    Evaluator(suite, tokenizer).score(toys.llama, ids(suite))
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("kind", ["mc_several", "gen"])
def test_cut_items_are_those_that_do_not_fit(toys: Any, tokenizer: Any, kind: str) -> None:
    """A token is a word here: the longest request of each item is counted by hand."""
    toys.write("toy", kind, train=20, validation=10, test=30)
    suite = toys.suite("toy", num_fewshot=1)
    evaluator, items = Evaluator(suite, tokenizer), suite.pool.held_out_ids()

    def needed(item: str) -> int:
        requests = suite.task("toy").requests(suite.item(item))
        lengths = [len(f"{request.context} {request.continuation or ''}".split()) for request in requests]
        return max(lengths) - 1 if kind == "mc_several" else max(lengths) + 6  # max_gen_toks

    lengths = [needed(item) for item in items]
    for limit in (min(lengths) - 1, min(lengths), max(lengths) - 1, max(lengths), 10_000):
        assert evaluator.cut_items(items, limit) == sum(length > limit for length in lengths)
