"""The estimators by name; other packages add theirs with `register_estimator`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy.typing as npt

from fitness.estimation.inputs import EstimatorInputs
from fitness.results import Estimate

Need: TypeAlias = Literal["parents", "item_bank", "other_models"]
SubsetKind: TypeAlias = Literal["random", "anchors", "parent_strata", "informative"]
EstimateFunction: TypeAlias = Callable[[npt.ArrayLike, npt.ArrayLike, EstimatorInputs], Estimate]


@dataclass(frozen=True)
class Estimator:
    """How the score on all items of a task follows from the answers to some of them.

    Attributes
    ----------
    name
        As a search file names it.
    estimate
        ``(scores float[S], positions int[S] of the asked items, inputs) -> estimate`` of the mean score. Scores are in
        [0, 1] unless `any_scores`.
    needs
        What it cannot work without: the ``parents``' scores on all items (the search then scores the sources first),
        item parameters from an ``item_bank``, or the scores of ``other_models`` (from the same file).
    uses
        What it uses too where it is at hand.
    subset_kind
        Which items candidates are asked: ``random`` ones; ``anchors`` with weights (k-means over the item parameters);
        more of the strata where parents disagree (``parent_strata``); or the ``informative`` ones, which most reduce
        the variance that the prior of `fitness.estimation.parent_prior` leaves.
    rotates
        Whether each generation is asked other items, unless the search file says so.
    learns
        Whether it uses the answers of earlier candidates (`EstimatorInputs.evaluated`).
    any_scores
        Whether scores may be outside [0, 1].
    """

    name: str
    estimate: EstimateFunction
    needs: frozenset[Need] = frozenset()
    uses: frozenset[Need] = frozenset()
    subset_kind: SubsetKind = "random"
    rotates: bool = True
    learns: bool = False
    any_scores: bool = False


@dataclass
class _Registration:
    """The package that registers at the moment, and what it has registered so far."""

    origin: str
    names: list[str]


_current: ContextVar[_Registration | None] = ContextVar("current estimator registration", default=None)


class UnknownEstimator(KeyError):
    """A name without an estimator; the text names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


class EstimatorRegistry:
    """Estimators by name, in the order of registration."""

    def __init__(self) -> None:
        self._estimators: dict[str, Estimator] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, estimator: Estimator) -> None:
        """Add an estimator.

        Raises
        ------
        ValueError
            The name is taken, or is not a lower-case identifier.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "auto":
            raise ValueError(f"estimator {name!r}: not a valid name; use lower-case letters, digits and _, not auto")
        if name in self._estimators:
            raise ValueError(f"estimator '{name}' is taken, {self._origins[name]} registers it; use another name")
        ours = estimator.estimate.__module__.startswith("fitness.")  # whichever package imports it first
        registration = None if ours else _current.get()
        self._estimators[name] = estimator
        self._origins[name] = "evomerge" if registration is None else registration.origin
        if registration is not None:
            registration.names.append(name)

    def remove(self, name: str) -> None:
        """Take an estimator out again."""
        del self._estimators[name], self._origins[name]

    def __getitem__(self, name: str) -> Estimator:
        """Return the estimator of this name.

        Raises
        ------
        UnknownEstimator
            There is none; the text names the nearest one.
        """
        if name not in self._estimators:
            raise UnknownEstimator(self.unknown(name))
        return self._estimators[name]

    def __contains__(self, name: object) -> bool:
        return name in self._estimators

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimators)

    def __len__(self) -> int:
        return len(self._estimators)

    def origin(self, name: str) -> str:
        """Return the name of the distribution that registered it; ``evomerge`` for our own."""
        self[name]
        return self._origins[name]

    def unknown(self, name: object) -> str:
        """Return the message about an unknown name: the nearest one, and all there are."""
        close = difflib.get_close_matches(str(name), self._estimators, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"there is no estimator {name!r}; {hint}valid: auto, {', '.join(sorted(self))}"


ESTIMATORS = EstimatorRegistry()


def register_estimator(estimator: Estimator) -> Estimator:
    """Make an estimator available to search files under its name, and return it.

    Raises
    ------
    ValueError
        The name is taken or malformed.
    """
    ESTIMATORS.register(estimator.name, estimator)
    return estimator


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Record `origin`, a distribution's name, for the estimators registered inside the block.

    If the block raises, the estimators it registered are removed again.
    """
    registration = _Registration(origin, [])
    token = _current.set(registration)
    try:
        yield
    except BaseException:
        for name in registration.names:
            ESTIMATORS.remove(name)
        raise
    finally:
        _current.reset(token)
