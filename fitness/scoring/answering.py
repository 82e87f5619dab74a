"""What computes a model's answers to planned requests: the model itself, or another program with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fitness.scoring.generation import GenerationPlan
from fitness.scoring.loglikelihood import LoglikelihoodPlan, Pair
from fitness.tasks.lm_eval_rules import RightTexts


class Loglikelihoods(Protocol):
    """Planned requests for log-likelihoods; see `LoglikelihoodPlan`."""

    def run(self, model: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], float]:
        """Return log-likelihoods float64[R], greedy bool[R], and seconds."""


class Generations(Protocol):
    """Planned requests for texts; see `GenerationPlan`."""

    def run(self, model: Any, *, whole: bool = True) -> tuple[list[str], float, list[int]]:
        """Return R texts, seconds, and the requests whose text ended at the limit of new tokens.

        Unless they are wanted `whole`, a text may end where it can only be wrong.
        """


class Answering(Protocol):
    """Plans requests, and computes a model's answers to them.

    Its plans take what `taken` returned for the model. `batch_size` is the number of sequences at a time.
    """

    def loglikelihoods(self, pairs: Sequence[Pair], *, max_length: int, batch_size: int, device: str) -> Loglikelihoods:
        """Return a plan for log-likelihoods; arguments and errors as for `LoglikelihoodPlan`."""

    def generations(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        device: str,
        right: Sequence[RightTexts | None] = (),
    ) -> Generations:
        """Return a plan for texts; arguments and errors as for `GenerationPlan`."""

    def taken(self, model: Any) -> Any:
        """Return what answers in place of a model that was merged, with the weights that it has now."""

    def prepare(self, model: Any, sample: Sequence[Pair]) -> None:
        """Do what does not depend on a candidate, and check with a few requests that a model's answers are right."""

    def describe(self) -> list[str]:
        """Return sentences for people about what this takes besides the model, once it is prepared."""

    def close(self) -> None:
        """End what was started; may be called twice."""


class OwnAnswers:
    """The model that was merged answers itself, in this process."""

    def loglikelihoods(
        self, pairs: Sequence[Pair], *, max_length: int, batch_size: int, device: str
    ) -> LoglikelihoodPlan:
        """Return a plan for log-likelihoods."""
        return LoglikelihoodPlan(pairs, max_length=max_length, batch_size=batch_size, device=device)

    def generations(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        device: str,
        right: Sequence[RightTexts | None] = (),
    ) -> GenerationPlan:
        """Return a plan for texts."""
        sizes: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "device": device}
        return GenerationPlan(prompts, settings, tokenizer, right=right, **sizes)

    def taken(self, model: Any) -> Any:
        """Return the model, in evaluation mode."""
        return model.eval()

    def prepare(self, model: Any, sample: Sequence[Pair]) -> None:
        """Nothing is to be done."""

    def describe(self) -> list[str]:
        """Return no sentences: it takes nothing."""
        return []

    def close(self) -> None:
        """Nothing was started."""
