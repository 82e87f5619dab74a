"""A model's answers to requests, and five metrics of ours that lm-eval does not have.

- `answer_loss`: the negative log-likelihood of the right answer in nats. It is smooth where accuracy jumps, so it
  distinguishes two merges that are wrong on the same items; for a generation task it needs only one forward pass.
- `bits_per_byte`: the same in bits per byte of the answer, so that long and short answers have the same weight.
- `answer_length`: the number of characters of the generated text, to keep answers short.

Lower is better for these three, and a search maximises, so scores are their negatives.

- `choice_probability`: the probability of the right choice, a softmax over the choices' log-likelihoods. It is
  between 0 and 1 as accuracy does, and also says by how much an answer is right or wrong.
- `choice_certainty`: 1 − H(p) / ln C, where H is the entropy of the same softmax over an item's C choices. It needs no
  right answer: 1 where one choice has all the probability, 0 where all have the same. To maximise it is to minimise the
  entropy, as AdaMerging does (Yang et al. 2024, arXiv 2310.02575).
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
CHOICE_PROBABILITY = "choice_probability"
CHOICE_CERTAINTY = "choice_certainty"
OF_CHOICES = (CHOICE_PROBABILITY, CHOICE_CERTAINTY)
OWN_METRICS = (*LOSS_METRICS, *OF_CHOICES)
NEED_RIGHT_ANSWER = (*OF_THE_RIGHT_ANSWER, CHOICE_PROBABILITY)


@dataclass(frozen=True)
class Answers:
    """A model's answers to a list of R requests.

    Attributes
    ----------
    loglikelihood
        float64[R + 1], natural logarithm; -inf where a text was generated, and in the last place.
    greedy
        bool[R]: whether greedy decoding gives the continuation.
    texts
        R generated texts; None where a continuation was scored.
    """

    loglikelihood: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    texts: Sequence[str | None]

    def responses(self, start: int, count: int) -> tuple[Response, ...]:
        """Return `count` answers from `start` on, in the form that lm-eval's metrics take."""
        found: list[Response] = []
        for at in range(start, start + count):
            text = self.texts[at]
            scored = (float(self.loglikelihood[at]), bool(self.greedy[at]))
            found.append(scored if text is None else text)
        return tuple(found)


Scorer = Callable[[Answers], npt.NDArray[np.float32]]

AnswerExtractor = Callable[[Answers], Sequence[str]]
"""From a model's answers to a list of requests to its answer to each item, as text."""


def loss_scorer(metric: str, continuations: Sequence[str | None], first: Sequence[int]) -> Scorer:
    """Return a function from answers to scores, one per item.

    Parameters
    ----------
    metric
        One of `LOSS_METRICS`.
    continuations
        Right answers, for metrics of their loss.
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
