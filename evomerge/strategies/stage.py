"""Strategies inside of others: their candidates under the outer strategy's ids and generation numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

from evomerge.files.messages import counted
from evomerge.strategies.base import Archiving, Candidate, Evaluated, Genotype, Proposal, Strategy, StrategyConfig
from fitness.results import Evaluation


class Stage:
    """A strategy that another one runs for a while.

    Parameters
    ----------
    strategy
        The inner strategy, at its start.
    offset
        Added to its generation numbers.
    whole
        Turns its genotypes into the outer strategy's.

    Attributes
    ----------
    last
        The highest generation number so far, as the outer strategy counts.
    """

    def __init__(
        self, strategy: Strategy, offset: int = 0, whole: Callable[[Genotype], Genotype] = lambda x: x
    ) -> None:
        self.strategy = strategy
        self.last = offset - 1
        self._offset = offset
        self._whole = whole
        self._ids: dict[int, int] = {}  # the outer strategy's candidate ids to the inner one's
        self._outer: dict[int, int] = {}  # the inner one's to the outer strategy's, kept for parents

    def ask(self, n: int, first: int) -> list[Proposal]:
        """Return up to `n` proposals; the outer strategy gives them ids from `first`."""
        candidates = self.strategy.ask(n)
        for index, candidate in enumerate(candidates):
            self._ids[first + index] = candidate.id
            self._outer[candidate.id] = first + index
            self.last = max(self.last, candidate.generation + self._offset)
        return [
            Proposal(
                self._whole(one.genotype),
                one.kind,
                one.generation + self._offset,
                [self._outer[parent] for parent in one.parents],
            )
            for one in candidates
        ]

    def is_known_as(self, proposal: int, candidate: int) -> None:
        """Let the proposal that would have had the first id be an earlier candidate of the outer strategy."""
        self._outer[self._ids[proposal]] = candidate

    def owns(self, candidate: Candidate) -> bool:
        """Tell whether a candidate is one of its own that has not been told."""
        return candidate.id in self._ids

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Pass a result on, of one of its candidates."""
        self.strategy.tell([Evaluated(self._ids.pop(candidate.id), evaluation)])

    def recommend(self) -> Genotype | None:
        """Return the inner strategy's own best guess as the outer strategy's genotype."""
        guess = self.strategy.recommend()
        return None if guess is None else self._whole(guess)

    def members(self) -> list[Genotype]:
        """Return the inner strategy's population as the outer strategy's genotypes."""
        return [self._whole(member) for member in self.strategy.members()]


class RelayConfig(StrategyConfig):
    """Settings of a strategy that runs others one after the other, with what it passes on of theirs."""

    as_stage = False

    @property
    @abstractmethod
    def stages(self) -> tuple[StrategyConfig, ...]:
        """The settings of the stages, in order."""

    @property
    def places(self) -> int:
        """The largest of the stages' places."""
        return max(stage.places for stage in self.stages)

    @property
    def most_in_flight(self) -> int | None:
        """The smallest of the stages' limits; None: none has one."""
        return min((stage.most_in_flight for stage in self.stages if stage.most_in_flight is not None), default=None)

    @property
    def keeps_archive(self) -> bool:
        """Whether one of the stages does."""
        return any(stage.keeps_archive for stage in self.stages)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check all stages' settings against the tasks."""
        for stage in self.stages:
            stage.check_tasks(tasks)


class Relay(Strategy):
    """A strategy that runs others one after the other; it looks from outside like the one that runs now.

    A subclass calls `_enter` with each stage when all candidates of the one before have been told.
    """

    _stage: Stage

    @property
    def racing_archive(self) -> Archiving | None:
        """That of the stage."""
        return self._stage.strategy.racing_archive

    def ask(self, n: int = 1) -> list[Candidate]:
        """Propose as the stage does."""
        candidates = super().ask(n)
        self._resemble()
        return candidates

    def tell(self, results: Iterable[Evaluated]) -> None:
        """Take results as the stage does."""
        super().tell(results)
        self._resemble()

    def recommend(self) -> Genotype | None:
        """Return the stage's own best guess."""
        return self._stage.recommend()

    def members(self) -> list[Genotype]:
        """Return the stage's population."""
        return self._stage.members()

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        self._resemble()

    def _resemble(self) -> None:
        """Take over what the stage says about itself: restarts and stages of its own change that."""
        inner = self._stage.strategy
        self.population, self.guess, self.steady_state = inner.population, inner.guess, inner.steady_state


def rest_of_budget(first: int, evaluations: int) -> int:
    """Return the candidates that a first stage leaves for a second one.

    Raises
    ------
    ValueError
        If it leaves none.
    """
    if first >= evaluations:
        raise ValueError(
            f"strategy.evaluations: the first stage takes {counted(first, 'candidate')}, and budget.evaluations is "
            f"{evaluations}; write strategy.evaluations below {evaluations}, or raise budget.evaluations"
        )
    return evaluations - first
