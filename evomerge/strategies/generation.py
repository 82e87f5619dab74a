"""Generations of synchronous strategies: proposed one by one, used for learning when all results are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.base import Candidate, Genotype, Proposal
from fitness.results import Evaluation


def default_population(genes: int) -> int:
    """Return CMA-ES's default population for G genes and exact fitness: 4 + floor(3 ln G).

    N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, table 1.
    """
    return 4 + math.floor(3 * math.log(max(genes, 1)))


def resolved_number(name: str, value: int | Literal["auto"]) -> int:
    """Return a setting that must be a number by now.

    Raises
    ------
    ValueError
        If the setting is still `auto`.
    """
    if value == "auto":
        raise ValueError(f"{name} is `auto`: call config.resolved(...) first, or give a number")
    return value


class Generation:
    """Proposals with consecutive ids, and their results, told in any order.

    Parameters
    ----------
    number
        The generation's number, from 0.
    first
        Id of the first proposal.
    samples
        Genotypes to learn from.
    mean
        The strategy's own best guess, to be scored as well but not used for learning; None: it is not proposed.
    again
        Genotypes of earlier candidates that are asked this generation's items as well.
    parents
        Of each sample, what it was made of, as genotypes or ids; empty: they have none.
    """

    def __init__(
        self,
        number: int,
        first: int,
        samples: Sequence[Genotype],
        mean: Genotype | None = None,
        again: Sequence[Genotype] = (),
        parents: Sequence[Sequence[Genotype | int]] = (),
    ) -> None:
        self.number = number
        self.samples = [np.array(sample, dtype=np.float64) for sample in samples]
        self.mean = None if mean is None else np.array(mean, dtype=np.float64)
        self.mean_evaluation: Evaluation | None = None
        self._first = first
        self._results: dict[int, Evaluation] = {}  # by position among the samples
        made_of = parents or [()] * len(self.samples)
        self._queue = [
            Proposal(sample.copy(), "sample", number, own) for sample, own in zip(self.samples, made_of, strict=True)
        ]
        if self.mean is not None:
            self._queue.append(Proposal(self.mean.copy(), "mean", number))
        self._again = first + len(self._queue)
        self._queue += [Proposal(np.array(genotype, dtype=np.float64), "again", number) for genotype in again]
        self._answers: dict[int, Evaluation] = {}  # by position among those asked again
        self._missing = len(self._queue)

    @classmethod
    def none(cls) -> Generation:
        """Return an empty, complete generation with number -1, to start from."""
        return cls(-1, 0, [])

    @property
    def complete(self) -> bool:
        """Whether every proposal has been told."""
        return self._missing == 0

    @property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations of the samples, in their order; all must have been told."""
        return [self._results[position] for position in range(len(self.samples))]

    def evaluation_again(self, position: int) -> Evaluation:
        """Return the evaluation of the one at this position of those that were asked again."""
        return self._answers[position]

    @property
    def fitness(self) -> NDArray[np.float64]:
        """Fitness of the samples in their order, float64[P]; NaN for failed ones."""
        return np.array([evaluation.fitness for evaluation in self.evaluations])

    def take(self, n: int) -> list[Proposal]:
        """Return up to `n` proposals that have not been taken yet."""
        taken, self._queue = self._queue[:n], self._queue[n:]
        return taken

    def put(self, candidate: Candidate, evaluation: Evaluation) -> bool:
        """Take a result; return whether it was the last one."""
        if candidate.kind == "mean":
            self.mean_evaluation = evaluation
        elif candidate.kind == "again":
            self._answers[candidate.id - self._again] = evaluation
        else:
            self._results[candidate.id - self._first] = evaluation
        self._missing -= 1
        return self.complete


class Answered:
    """Which items have been asked so far, and how many of them each genotype has answered.

    A genotype goes by the id of the first candidate that had it.
    """

    def __init__(self) -> None:
        self._items: set[str] = set()
        self._last: tuple[str, ...] = ()
        self._counts: dict[int, int] = {}

    def add(self, first_id: int, evaluation: Evaluation) -> None:
        """Take a result; of a candidate that was asked again it holds all answers."""
        if evaluation.items is not self._last:  # one tuple where all candidates are asked the same
            self._items.update(evaluation.items)
            self._last = evaluation.items
        self._counts[first_id] = len(evaluation.items)

    def misses_some(self, first_id: int | None) -> bool:
        """Return whether others have answered items that this genotype has not; False for one without answers."""
        count = None if first_id is None else self._counts.get(first_id)
        return count is not None and count < len(self._items)


class Sampling:
    """Generations sampled from a distribution that is updated after each; its mode is proposed now and then.

    Parameters
    ----------
    draw
        Returns the samples of a generation.
    mode
        Returns the distribution's own best guess.
    every
        The mode is proposed every this many generations.
    learn
        Takes the samples of a generation, float64[P, G], and their fitness, float64[P], failed ones lowest. It is not
        called if all have failed or all are equal, because such a generation carries no information.
    """

    def __init__(
        self,
        draw: Callable[[], Sequence[Genotype]],
        mode: Callable[[], Genotype],
        every: int,
        learn: Callable[[NDArray[np.float64], NDArray[np.float64]], None],
    ) -> None:
        self._draw, self._mode, self._every, self._learn = draw, mode, every, learn
        self._generation = Generation.none()

    def take(self, n: int, first: int) -> list[Proposal]:
        """Return up to `n` proposals; `first` is the id of the next one."""
        if self._generation.complete:
            number = self._generation.number + 1
            samples = self._draw()
            mode = self._mode() if number % self._every == 0 else None
            self._generation = Generation(number, first, samples, mode)
        return self._generation.take(n)

    def put(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take a result; after the last one of a generation, update the distribution."""
        if not self._generation.put(candidate, evaluation):
            return
        fitness = failures_last(self._generation.fitness)
        if fitness is not None and np.ptp(fitness) > 0:
            self._learn(np.array(self._generation.samples), fitness)


def failures_last(fitness: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the fitness, float64[P], with failed candidates (NaN) below all others; None if all have failed."""
    good = np.isfinite(fitness)
    if not good.any():
        return None
    return np.where(good, fitness, fitness[good].min() - 1.0)
