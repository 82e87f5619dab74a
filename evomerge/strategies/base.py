"""The ask/tell contract of every strategy: who may be asked what, and when.

A strategy proposes genotypes and learns from their evaluations. It never sees a model, a file or a
clock: given its seed and the order of its tells it always proposes the same candidates, which is what
makes a run resumable by replay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Genotype = NDArray[np.float64]


class AskTellError(RuntimeError):
    """A call out of order: an id that was never asked, or one that was already told."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One proposal.

    Attributes
    ----------
    id
        Counts proposals from 0; `tell` takes it back.
    genotype
        float64[G], inside the space's box.
    kind
        "sample" for a proposal the strategy learns from, "mean" for its own best guess offered for scoring.
    generation
        Which generation it belongs to, from 0.
    """

    id: int
    genotype: Genotype
    kind: Literal["sample", "mean"]
    generation: int


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The evaluation of the candidate with this id. Larger fitness is better; NaN means that it failed."""

    id: int
    evaluation: Evaluation


@runtime_checkable
class Archiving(Protocol):
    """A strategy that keeps the best in an archive, each candidate by itself: a race asks it whether one can get in."""

    def keeps(self, evaluation: Evaluation) -> bool:
        """Tell whether a candidate with this evaluation would get into the archive now; changes nothing."""


class Strategy(ABC):
    """Proposes genotypes of `space` and learns from their evaluations.

    Subclasses implement `_propose` and `_learn`; the state machine of ids lives here, once. All randomness
    comes from `self.rng`.

    Attributes
    ----------
    population
        Candidates per generation.
    steady_state
        Whether it learns from each result as it comes and never waits for a generation's slowest member. If not,
        the driver tells results in the order of their ids, so that the number of workers changes nothing.
    """

    population: int
    steady_state: ClassVar[bool] = False

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.rng = np.random.default_rng(seed)
        self._asked = 0
        self._open: dict[int, Candidate] = {}

    def ask(self, n: int = 1) -> list[Candidate]:
        """Propose up to `n` candidates; fewer, or none, while a generation waits for its results or at the end.

        Raises
        ------
        AskTellError
            If nothing can be proposed although no candidate is open and the strategy has not finished.
        """
        if n < 1:
            raise AskTellError(f"ask({n}): ask for at least one candidate")
        candidates = [
            Candidate(self._asked + offset, genotype, kind, generation)
            for offset, (genotype, kind, generation) in enumerate(self._propose(n))
        ]
        self._asked += len(candidates)
        # What it learns from later is a copy of its own: the caller may do with the genotype as they like.
        self._open.update((one.id, replace(one, genotype=one.genotype.copy())) for one in candidates)
        if not self._open and not self.finished:
            raise AskTellError(f"{type(self).__name__} proposes nothing and waits for nothing")
        return candidates

    def tell(self, results: Iterable[Evaluated]) -> None:
        """Take the evaluations of asked candidates, in any order, each once.

        Raises
        ------
        AskTellError
            If an id was never asked or has been told before.
        """
        for result in results:
            candidate = self._open.pop(result.id, None)
            if candidate is None:
                known = "has been told already" if 0 <= result.id < self._asked else "was never asked"
                raise AskTellError(
                    f"candidate {result.id} {known}; tell each candidate once, with the id that ask() returned"
                )
            self._learn(candidate, result.evaluation)

    @property
    def finished(self) -> bool:
        """Whether it will never propose anything again; most strategies go on for as long as they are asked."""
        return False

    def recommend(self) -> Genotype | None:
        """Return the strategy's own best guess where it has one (a distribution's mean), else None."""
        return None

    @abstractmethod
    def _propose(self, n: int) -> list[tuple[Genotype, Literal["sample", "mean"], int]]:
        """Return up to `n` proposals as (genotype, kind, generation)."""

    @abstractmethod
    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take one result."""
