"""Answers of one model to items of both kinds in one pass: choices by log-likelihood, texts by the greedy token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.smollm2.items import Item
from fitness.scoring.encoding import Encoder
from fitness.scoring.loglikelihood import LoglikelihoodPlan

Array = NDArray[np.float64]


class Answers:
    """Scores models on some items.

    Parameters
    ----------
    tokenizer
        The models'.
    items
        The items, in the order of the scores.
    """

    def __init__(self, tokenizer: Any, items: Sequence[Item]) -> None:
        self._items = items
        encoder = Encoder(tokenizer)
        pairs = [pair for item in items for pair in _pairs(encoder, item)]
        self._plan = LoglikelihoodPlan(pairs, max_length=256, batch_size=16, device="cpu")

    def __call__(self, model: Any) -> tuple[Array, Array]:
        """Return scores and losses, float64[I] each: of a text, whether the right answer is the greedy one."""
        likelihood, greedy, _ = self._plan.run(model)
        scores, losses, at = [], [], 0
        for item in self._items:
            count = max(1, len(item.choices))
            own = likelihood[at : at + count]
            if item.choices:
                right = item.choices.index(item.answer)
                scores.append(float(own.argmax() == right))
                losses.append(float(np.logaddexp.reduce(own) - own[right]))
            else:
                scores.append(float(greedy[at]))
                losses.append(float(-own[0]))
            at += count
        return np.array(scores), np.array(losses)


def _pairs(encoder: Any, item: Any) -> Iterator[Any]:
    if item.choices:
        yield from (encoder.pair(item.prompt, f" {choice}") for choice in item.choices)
    else:
        yield encoder.pair(item.prompt, f" {item.answer}\n")
