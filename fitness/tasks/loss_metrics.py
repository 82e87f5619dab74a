"""What a model answers, and the metrics that are made from it here and not by lm-eval.

- `answer_loss`: the negative log-likelihood of the right answer in nats. Smooth where accuracy jumps: it tells two
  merges apart that are wrong on the same items, and for a task that generates text it needs one forward pass.
- `bits_per_byte`: the same, in bits, per byte of the answer: long and short answers count alike.
- `answer_length`: characters of the generated text, to keep answers short.

All are to be minimised, and a search maximises, so scores are their negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Response = tuple[float, bool] | str  # log-likelihood and "is the greedy answer", or the generated text

OF_THE_RIGHT_ANSWER = ("answer_loss", "bits_per_byte")
LOSS_METRICS = (*OF_THE_RIGHT_ANSWER, "answer_length")


@dataclass(frozen=True)
class Answers:
    """A model's answers to a list of requests.

    Attributes
    ----------
    loglikelihood
        float64[R + 1], natural logarithm; -inf where a text was generated, and at the end.
    greedy
        bool[R]: the continuation is what greedy decoding would say.
    texts
        R generated texts; None where a continuation was scored.
    """

    loglikelihood: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    texts: Sequence[str | None]

    def responses(self, start: int, count: int) -> tuple[Response, ...]:
        """The answers from `start`, as lm-eval's metrics take them."""
        found: list[Response] = []
        for at in range(start, start + count):
            text = self.texts[at]
            scored = (float(self.loglikelihood[at]), bool(self.greedy[at]))
            found.append(scored if text is None else text)
        return tuple(found)


Scorer = Callable[[Answers], npt.NDArray[np.float32]]

AnswerExtractor = Callable[[Answers], Sequence[str]]
"""From a model's answers to a list of requests to what it has answered to each item, as text."""


def loss_scorer(metric: str, continuations: Sequence[str | None], first: Sequence[int]) -> Scorer:
    """A function from answers to scores, one per item.

    Parameters
    ----------
    metric
        One of `LOSS_METRICS`.
    continuations
        Right answers, for a loss.
    first
        int[I], the position of each item's request among the answers.
    """
    where_I = np.array(first)
    if metric == "answer_length":
        return lambda answers: np.array([-len((answers.texts[at] or "").strip()) for at in where_I], np.float32)
    if metric == "answer_loss":
        return lambda answers: answers.loglikelihood[where_I].astype(np.float32)
    bytes_I = np.array([max(1, len((text or "").strip().encode())) for text in continuations])
    return lambda answers: (answers.loglikelihood[where_I] / (math.log(2) * bytes_I)).astype(np.float32)
