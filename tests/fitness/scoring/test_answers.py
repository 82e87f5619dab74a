"""What a model answers, as text that can be voted on: lm-eval's filtered responses, or the option chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fitness.scoring.evaluator import Evaluator
from fitness.tasks.scores import LONGEST_ANSWER, _short
from tests.fitness.scoring.test_evaluator import by_lm_eval, ids


def told(toys: Any, tokenizer: Any, suite: Any) -> Any:
    return Evaluator(suite, tokenizer, batch_size=5).score(toys.llama, ids(suite), want_answers=True)


@pytest.mark.parametrize("chosen", ["first", "whole"])
def test_a_text_is_what_the_filter_leaves(chosen: str, toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=20)
    suite = toys.suite({"task": "toy", "metric": f"exact_match,{chosen}"})
    samples = [s for s in by_lm_eval(toys, "toy", toys.llama, tokenizer) if s["filter"] == chosen]
    expected = [sample["filtered_resps"][0] for sample in samples]
    assert list(told(toys, tokenizer, suite).answers) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_of_choices_it_is_the_preferred_one(metric: str, toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "mc_several", validation=5, test=30)
    suite = toys.suite({"task": "toy", "metric": metric})
    scored = told(toys, tokenizer, suite)
    documents = [json.loads(line) for line in (toys.folder / "toy.test.jsonl").read_text().splitlines()]
    right = [int(answer) == doc["gold"] for answer, doc in zip(scored.answers, documents, strict=True)]
    assert scored.scores.tolist() == right
    assert len(set(scored.answers)) > 1


def test_they_come_in_the_order_of_the_items(toys: Any, tokenizer: Any) -> None:
    """Of two tasks by turns, and only on request."""
    toys.write("toy", "mc", validation=5, test=6)
    toys.write("other", "gen", validation=5, test=6)
    suite = toys.suite("toy", "other")
    evaluator = Evaluator(suite, tokenizer)
    apart = {
        item: answer
        for task in ("toy", "other")
        for item, answer in zip(
            ids(suite, task), evaluator.score(toys.llama, ids(suite, task), want_answers=True).answers, strict=True
        )
    }
    mixed = [item for pair in zip(ids(suite), ids(suite, "other"), strict=True) for item in pair]
    assert list(evaluator.score(toys.llama, mixed, want_answers=True).answers) == [apart[item] for item in mixed]
    assert evaluator.score(toys.llama, mixed).answers == ()


@pytest.mark.parametrize("metric", ["answer_loss", "bits_per_byte"])
def test_a_metric_of_the_right_answer_leaves_the_models_own_unknown(metric: str, toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=5)
    assert set(told(toys, tokenizer, toys.suite({"task": "toy", "metric": metric})).answers) == {""}


def test_of_a_metric_of_lengths_it_is_the_text(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen", validation=5, test=5)
    scored = told(toys, tokenizer, toys.suite({"task": "toy", "metric": "answer_length"}))
    assert [-len(answer.strip()) for answer in scored.answers] == scored.scores.tolist()


def test_of_choices_that_the_metric_weighs_it_is_the_likeliest(toys: Any, tokenizer: Any) -> None:
    """As of the plain accuracy of the same documents."""
    toys.write("toy", "mc_information", validation=5, test=20)
    weighed = told(toys, tokenizer, toys.suite({"task": "toy", "metric": "acc_mutual_info"})).answers
    assert list(weighed) == list(told(toys, tokenizer, toys.suite({"task": "toy", "metric": "acc"})).answers)
    assert len(set(weighed)) > 1


def test_without_choices_it_is_the_right_text_where_the_model_would_write_it(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "ll", validation=5, test=30)
    suite = toys.suite({"task": "toy", "metric": "acc"})
    scored = told(toys, tokenizer, suite)
    texts = suite.texts(scored.items)
    for item, answer, score in zip(scored.items, scored.answers, scored.scores, strict=True):
        assert (answer in texts[item].targets) == (score == 1)
        assert answer or score == 0


def test_items_are_shown_as_they_are_asked(toys: Any) -> None:
    toys.write("toy", "mc_several", validation=5, test=3)
    toys.write("other", "gen", validation=5, test=3)
    suite = toys.suite("toy", "other")
    for name in ("toy", "other"):
        lines = (toys.folder / f"{name}.test.jsonl").read_text().splitlines()
        for identity, line in zip(ids(suite, name), lines, strict=True):
            text, document = suite.texts([identity])[identity], json.loads(line)
            assert text.question == suite.task(name).question(suite.item(identity))
            if name == "toy":
                assert text.targets == (text.choices[document["gold"]],)
                assert text.answer(str(document["gold"])) == text.targets[0]
            else:
                assert text.choices == ()
                assert text.answer("0") == "0"


def test_long_answers_stay_short_and_distinct() -> None:
    long = "x" * 10_000
    assert _short(["seven"]) == "seven"
    assert len(_short([long])) <= LONGEST_ANSWER
    assert _short([long]) == _short([long]) != _short([long + "y"])
    assert _short([["a", "b"]]) != _short([["a", "c"]])
