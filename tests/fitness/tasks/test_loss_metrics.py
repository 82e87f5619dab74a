"""The loss of the right answer and the length of texts, against the model asked directly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fitness.config import TaskConfig
from fitness.results import TaskError
from fitness.scoring.evaluator import Evaluator


def loss(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Negative log-likelihood of an answer in nats, by a forward pass of its own."""
    before = tokenizer(context, add_special_tokens=False).input_ids
    after = tokenizer(answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].double()
    chosen = torch.log_softmax(logits, -1)[len(before) - 1 : -1]
    return -float(chosen[torch.arange(len(after)), torch.tensor(after)].sum())


def scored(toys: Any, tokenizer: Any, metric: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The documents, and their scores."""
    suite = toys.suite({"task": "toy", "metric": metric})
    items = suite.pool.subset("all", 0)
    docs = suite.task("toy").documents.of("validation")
    assert suite.metrics == {"toy": f"{metric},none"}
    return docs, Evaluator(suite, tokenizer).score(toys.llama, items).scores


@pytest.mark.parametrize("kind", ["mc", "mc_several", "mc_information", "gen", "ll"])
def test_the_loss_of_the_right_answer(kind: str, toys: Any, tokenizer: Any) -> None:
    toys.write("toy", kind, validation=12, test=2)
    docs, nats = scored(toys, tokenizer, "answer_loss")
    _, bits = scored(toys, tokenizer, "bits_per_byte")
    for doc, nat, bit in zip(docs, nats, bits, strict=True):
        answer = doc["answer"]
        if kind.startswith("mc"):
            answer = doc["single" if kind == "mc" else "several"][doc["gold"]]
        expected = loss(toys.llama, tokenizer, doc["question"], " " + answer)
        assert nat == pytest.approx(-expected, abs=1e-4)
        assert bit == pytest.approx(-expected / math.log(2) / len(answer), abs=1e-4)


@pytest.mark.parametrize(("prefix", "between"), [(None, ""), ("w1", " "), ("w1 ", "")])
def test_the_right_answer_begins_a_turn_as_choices_and_examples_do(
    prefix: str | None, between: str, toys: Any, make_tokenizer: Any
) -> None:
    """lm-eval puts no delimiter between a turn's beginning and what the model says in it."""
    keys = {} if prefix is None else {"gen_prefix": prefix}
    toys.write("toy", "gen", validation=3, test=2, **keys)
    suite = toys.suite({"task": "toy", "metric": "answer_loss"}, apply_chat_template=True)
    evaluator, item = Evaluator(suite, make_tokenizer(chat=True)), suite.pool.search["toy"][0]
    doc = suite.task("toy").documents.of("validation")[0]
    assert evaluator.requests(item)[0].continuation == between + doc["answer"]


def test_the_loss_of_a_generated_answer_generates_nothing(toys: Any) -> None:
    toys.write("toy", "gen", validation=3, test=2)
    suite = toys.suite({"task": "toy", "metric": "answer_loss"})
    for item in suite.pool.search["toy"]:
        (request,) = suite.task("toy").requests(item)
        assert request.continuation is not None


def test_the_length_of_texts(toys: Any, tokenizer: Any) -> None:
    toys.write("toy", "gen_length", validation=12, test=2)
    _, length = scored(toys, tokenizer, "length")
    _, negative = scored(toys, tokenizer, "answer_length")
    assert (negative <= 0).all() and (-negative <= length).all()  # theirs counts white space at the ends, too
    assert len(set(negative.tolist())) > 1


@pytest.mark.parametrize("kind", ["mc", "mc_several", "mc_information"])
def test_the_probability_of_the_right_choice(kind: str, toys: Any, tokenizer: Any) -> None:
    toys.write("toy", kind, validation=12, test=2)
    docs, found = scored(toys, tokenizer, "choice_probability")
    for doc, probability in zip(docs, found, strict=True):
        choices = doc["single" if kind == "mc" else "several"]
        likelihood = [math.exp(-loss(toys.llama, tokenizer, doc["question"], " " + choice)) for choice in choices]
        assert probability == pytest.approx(likelihood[doc["gold"]] / sum(likelihood), abs=1e-4)
    assert 0 < found.min() < found.max() < 1
    _, certain = scored(toys, tokenizer, "choice_certainty")
    for doc, certainty in zip(docs, certain, strict=True):
        choices = doc["single" if kind == "mc" else "several"]
        likelihood = np.exp([-loss(toys.llama, tokenizer, doc["question"], " " + choice) for choice in choices])
        share = likelihood / likelihood.sum()
        assert certainty == pytest.approx(1 + (share * np.log(share)).sum() / np.log(len(share)), abs=1e-4)


def test_certainty_needs_no_right_answer(toys: Any, tokenizer: Any) -> None:
    """The scores are the same where the right answers are others, or several."""
    _, before = (toys.write("toy", "mc", validation=4, test=2), scored(toys, tokenizer, "choice_certainty"))[1]
    toys.write("toy", "mc", validation=4, test=2, doc_to_target="no answer")
    _, after = scored(toys, tokenizer, "choice_certainty")
    assert after.tolist() == before.tolist() and 0 <= before.min() < before.max() <= 1


def test_what_cannot_be_measured_is_refused(toys: Any) -> None:
    toys.write("words", "gen", validation=3, test=2)
    with pytest.raises(TaskError, match=r"'words' has no choices, which choice_probability needs: use answer_loss"):
        toys.suite({"task": "words", "metric": "choice_probability"})
    with pytest.raises(TaskError, match=r"which choice_certainty needs: use strategy.kind: least_change, or"):
        toys.suite({"task": "words", "metric": "choice_certainty"})
    toys.write("toy", "mc", validation=3, test=2)
    with pytest.raises(TaskError, match=r"'toy' generates no text, .*: use answer_loss"):
        toys.suite({"task": "toy", "metric": "answer_length"})
    toys.write("gen", "gen", validation=3, test=2, doc_to_target="{{''}}")
    with pytest.raises(TaskError, match=r"'answer_loss' has no value for 5 of 5 items, .*: use another metric"):
        toys.suite({"task": "gen", "metric": "answer_loss"})


def test_metrics_can_be_named_in_a_search_file() -> None:
    assert TaskConfig(task="t", metric="bits_per_byte").metric == "bits_per_byte"
