"""The contract of every strategy: its settings (`StrategyConfig`) and its ask/tell interface (`Strategy`).

A strategy proposes genotypes and learns from their evaluations. It never sees a model, a file or a
clock: given its seed and the order of its tells it always proposes the same candidates, which is what
makes a run resumable by replay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from evomerge.strategies.step_loss import LossConfig
from evomerge.strategies.warm_start import WarmStart
from fitness.results import Evaluation
from search_spaces.spaces.space import Genotype, SearchSpace

__all__ = [
    "Archiving",
    "AskTellError",
    "Candidate",
    "CandidateKind",
    "Evaluated",
    "Genotype",
    "Proposal",
    "Strategy",
    "StrategyConfig",
]


CandidateKind: TypeAlias = Literal["sample", "mean", "gradient", "founder", "again"]


class AskTellError(RuntimeError):
    """A call out of order, such as a result for an id that was never asked or was told already."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One proposal.

    Attributes
    ----------
    id
        Number of the proposal, from 0; `tell` refers to it.
    genotype
        float64[G], inside the space's box.
    kind
        "sample" for a proposal that the strategy learns from, "mean" for its own best guess, which is only scored,
        "gradient" for a point where it asks for a loss and its derivatives by the genes instead of a score, "founder"
        for a merge that is known without a search and is scored before it, "again" for a candidate that was scored
        before and is asked its generation's items as well, so that a lucky score does not stay. The last two do not
        count for the budget.
    generation
        Number of its generation, from 0.
    parents
        Ids of the candidates that it was made of; empty where it was drawn from a distribution.
    """

    id: int
    genotype: Genotype
    kind: CandidateKind
    generation: int
    parents: tuple[int, ...] = ()


class Proposal(NamedTuple):
    """What a strategy proposes: a candidate without its number.

    `parents` are what it was made of: ids of candidates, or their genotypes, float64[G] each, as they were proposed;
    genotypes that were not are left out.
    """

    genotype: Genotype
    kind: CandidateKind
    generation: int
    parents: Sequence[Genotype | int] = ()


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The evaluation of the candidate with this id. Larger fitness is better; NaN means that it failed."""

    id: int
    evaluation: Evaluation


@runtime_checkable
class Archiving(Protocol):
    """A strategy with an archive, which each candidate enters or not; racing asks whether one still can."""

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter the archive now; changes nothing."""


class StrategyConfig(BaseModel):
    """Settings of a strategy, and what the rest of evomerge must know about it.

    A subclass declares its `kind`, its settings as fields with docstrings (these are the configuration reference), and
    `build`. Everything else has a default; override what is different::

        @register_strategy
        class MineConfig(StrategyConfig):
            kind: Literal["mine"] = "mine"
            population: int = Field(default=16, ge=1)

            def build(self, space: SearchSpace, seed: int) -> Mine:
                return Mine(space, seed, self)

    Attributes
    ----------
    objectives
        How many objectives it optimises: "one", "several" (a front of trade-offs) or "any" number.
    warm_start_type
        The class of its setting `warm_start`; None: it has no such setting, because it cannot use an earlier run.
    archive_compares
        With `keeps_archive`: how members that were asked different items are compared, for a note of `evomerge plan`.
    as_stage
        Whether `staged` can run it as one of its stages. Such a strategy optimises one objective and never finishes.
    reads_answers
        Whether it learns from the answers themselves; candidates are then asked for them, and the log keeps them.
    kind_argument
        A setting that may be written into the kind, as `kind: NAME:VALUE`; None: there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["one", "several", "any"]] = "one"
    warm_start_type: ClassVar[type[WarmStart] | None] = None
    archive_compares: ClassVar[str] = ""
    as_stage: ClassVar[bool] = True
    reads_answers: ClassVar[bool] = False
    kind_argument: ClassVar[str | None] = None

    kind: str

    @property
    def named_kind(self) -> str:
        """The kind as a search file names it, with its argument: `optuna:TPE`."""
        argument = self.kind_argument
        return self.kind if argument is None else f"{self.kind}:{getattr(self, argument)}"

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with every `auto` replaced by what it means for this space and budget.

        Parameters
        ----------
        space
            The space to search.
        noise
            Expected standard error of one fitness value.
        evaluations
            The budget.

        Raises
        ------
        ValueError
            If the settings do not suit this space or budget, or a package is missing.
        """
        return self

    @abstractmethod
    def build(self, space: SearchSpace, seed: int) -> Strategy:
        """Return the strategy at its start. The settings must be resolved."""

    @property
    def keeps_archive(self) -> bool:
        """Whether the strategy is `Archiving`: it judges each candidate against an archive and has no generations."""
        return False

    @property
    def most_in_flight(self) -> int | None:
        """How many candidates it proposes before it needs a result: its setting `parallel`; None: any number."""
        return None

    @property
    def items_per_step(self) -> int:
        """How many search items per task a candidate of kind "gradient" is asked; 0: the strategy proposes none."""
        return 0

    @property
    def step_loss(self) -> LossConfig:
        """What candidates of kind "gradient" are asked for."""
        return LossConfig()

    @property
    def gradient_steps(self) -> int | None:
        """How many candidates of kind "gradient" it proposes, before all others; None: as many as the budget allows.

        The settings must be resolved.
        """
        return 0

    @property
    def places(self) -> int:
        """How many candidates of an earlier run its first population has room for; the settings must be resolved."""
        return int(getattr(self, "population", 1))

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check the settings against the names of the tasks that candidates are scored on.

        Raises
        ------
        ValueError
            If they do not suit these tasks; the message names the key and what to write instead.
        """

    @property
    def earlier_run(self) -> WarmStart | None:
        """The setting `warm_start`; None: the strategy has none, or it is not given."""
        return None if self.warm_start_type is None else getattr(self, "warm_start", None)

    def warm_started(self, space: SearchSpace, points: Sequence[Genotype]) -> Self:
        """Return the settings with a warm start from an earlier run's best candidates.

        Parameters
        ----------
        space
            The space to search.
        points
            Its points, float64[G] each, best first; at least one.

        Raises
        ------
        ValueError
            If the strategy cannot use an earlier run.
        """
        if self.warm_start_type is None:
            raise ValueError(f"strategy.kind {self.named_kind} cannot use an earlier run; write another strategy.kind")
        named = self.earlier_run or self.warm_start_type()
        return self.model_copy(update={"warm_start": named.from_points(space, points)})


class Strategy(ABC):
    """Proposes genotypes of `space` and learns from their evaluations.

    Subclasses implement `_propose` and `_learn`; this class keeps track of ids. All random numbers
    come from `self.rng`.

    Attributes
    ----------
    population
        Candidates per generation.
    steady_state
        Whether it learns from each result as it comes and never waits for the rest of a generation. If not, the driver
        tells results in the order of their ids, so that the number of workers changes nothing.
    guess
        What `recommend` returns, as the final table calls it.
    """

    population: int
    steady_state: bool = False
    guess: str = "distribution mean"

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.rng = np.random.default_rng(seed)
        self._asked = 0
        self._open: dict[int, Candidate] = {}
        self._first_ids: dict[int, int] = {}  # by digest of a genotype: the candidate that had it first
        self._repeats: dict[int, int] = {}  # of a candidate that is not the first one with its genotype: which is

    def ask(self, n: int = 1) -> list[Candidate]:
        """Propose up to `n` candidates: fewer or none while a generation waits for its results, or at the end.

        Raises
        ------
        AskTellError
            If `n` is below 1, or if nothing is proposed although no candidate is open and it has not finished.
        """
        if n < 1:
            raise AskTellError(f"ask({n}): ask for at least one candidate")
        candidates = [
            self._candidate(self._asked + offset, Proposal(*proposal))
            for offset, proposal in enumerate(self._propose(n))
        ]
        self._asked += len(candidates)
        # Keep a copy to learn from, because the caller may change the genotype.
        self._open.update((one.id, replace(one, genotype=one.genotype.copy())) for one in candidates)
        if not self._open and not self.finished:
            raise AskTellError(f"{type(self).__name__} proposes nothing and waits for nothing")
        return candidates

    def _candidate(self, identity: int, proposal: Proposal) -> Candidate:
        found = (parent if isinstance(parent, int) else self._id_of(parent) for parent in proposal.parents)
        parents = tuple(dict.fromkeys(parent for parent in found if parent is not None))
        first = self._first_ids.setdefault(digest(proposal.genotype), identity)
        if first != identity:
            self._repeats[identity] = first
        return Candidate(identity, proposal.genotype, proposal.kind, proposal.generation, parents)

    def _id_of(self, genotype: Genotype) -> int | None:
        """Return the id of the first candidate that had this genotype; None: it was never proposed."""
        return self._first_ids.get(digest(genotype))

    def _first_id(self, candidate: Candidate) -> int:
        """Return the id of the first candidate that had its genotype: a parent that needs no digest of its own."""
        return self._repeats.get(candidate.id, candidate.id)

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
        """Whether it will not propose anything any more; most strategies never finish."""
        return False

    @property
    def racing_archive(self) -> Archiving | None:
        """What candidates compete with now, if the strategy keeps an archive."""
        return self if isinstance(self, Archiving) else None

    def recommend(self) -> Genotype | None:
        """Return the strategy's own best guess, such as a distribution's mean; None if it has none."""
        return None

    def members(self) -> Sequence[Genotype]:
        """Return copies of its population or archive as it is now, best first; empty: it has none."""
        return []

    @abstractmethod
    def _propose(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; a tuple of genotype, kind and generation is one without parents."""

    @abstractmethod
    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take one result."""


def digest(genotype: Genotype) -> int:
    """Return a number that equal genotypes share, in this process alone.

    It has 64 bits: two of a million different genotypes share one with a probability of 3e-8. Cryptographic digests of
    a long genotype take as long as the rest of a proposal.
    """
    return hash(np.ascontiguousarray(genotype, dtype=np.float64).tobytes())
