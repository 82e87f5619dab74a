"""Counts the answers and the seconds of a search, and keeps its guesses along the way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.search_efficiency.problems import Problem
from search_spaces.spaces.space import Genotype


@dataclass(frozen=True)
class Curve:
    """Held-out scores of one search's guesses.

    The guess is what the search would hand over if it ended there: what its strategy or program recommends.

    Attributes
    ----------
    spent
        Numbers of answers, as the problem's checkpoints.
    held_out
        Score of the guess after that many answers, 0 to 1.
    seconds
        Processor seconds of the search until then, one thread, without the scoring of guesses.
    answers
        How many answers were bought in all; less than the last checkpoint if the search ended by itself.
    """

    problem: str
    contender: str
    seed: int
    spent: list[int]
    held_out: list[float]
    seconds: list[float]
    answers: int


class BudgetSpent(Exception):
    """The last checkpoint is reached."""


class Meter:
    """Sells answers to a program, and notes its guess whenever a checkpoint is passed.

    Parameters
    ----------
    problem
        Whose answers.
    checkpoints
        Numbers of answers after which the guess is noted, ascending; the last is the budget. By default the problem's.

    Attributes
    ----------
    guess
        The program's best guess; it sets this whenever it would write another recipe.
    """

    def __init__(self, problem: Problem, checkpoints: tuple[int, ...] = ()) -> None:
        self.problem = problem
        self.checkpoints = checkpoints or problem.checkpoints
        self.guess: Genotype = np.array(problem.space.start)
        self.spent = 0
        self._guesses: list[Genotype] = []
        self._seconds: list[float] = []
        self._started = time.process_time()

    def ask(self, genotype: Genotype, items: tuple[str, ...]) -> NDArray[np.float64]:
        """Return a genotype's scores on items, float64[I].

        Raises
        ------
        BudgetSpent
            Before the first answer beyond the budget.
        """
        self.note()
        if self.spent >= self.checkpoints[-1]:
            raise BudgetSpent
        self.spent += len(items)
        return self.problem.scores(genotype, items)

    def fitness(self, genotype: Genotype, items: tuple[str, ...]) -> float:
        """Return a genotype's mean score on items, each task by its weight."""
        scores = self.ask(genotype, items)
        names = np.array([item.rsplit("/", 2)[0] for item in items])
        weights = self.problem.weights
        total = sum(weights.values())
        return float(sum(weight / total * scores[names == task].mean() for task, weight in weights.items()))

    def note(self) -> None:
        """Keep the guess for each checkpoint that the answers bought so far have passed."""
        while len(self._guesses) < len(self.checkpoints) and self.spent >= self.checkpoints[len(self._guesses)]:
            self._guesses.append(np.array(self.guess))
            self._seconds.append(time.process_time() - self._started)

    def curve(self, contender: str, seed: int) -> Curve:
        """Score the guesses; a search that ended early keeps its last one."""
        self.note()
        spent = self.checkpoints
        missing = len(spent) - len(self._guesses)
        guesses = self._guesses + [np.array(self.guess)] * missing
        seconds = self._seconds + [time.process_time() - self._started] * missing
        scores = [round(self.problem.held_out(guess), 5) for guess in guesses]
        rounded = [round(value, 3) for value in seconds]
        return Curve(self.problem.name, contender, seed, list(spent), scores, rounded, self.spent)
