"""The inputs of estimators besides a candidate's answers.

Letters: T parents, J other models, I items, D ability dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fitness.estimation import parent_prior, regression
from fitness.estimation.irt import ItemBank, ability_map
from fitness.estimation.irt_predictions import likeliest_ability, validation_error

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EstimatorInputs:
    """What is known about one task besides a candidate's answers; all arrays have the items in the same order.

    Attributes
    ----------
    items
        I, the number of the task's items.
    parents
        float64[T, I], scores of the merged models on all items.
    banks
        Item parameters; published estimators use the last bank, which is the multidimensional one if there are two.
    other_models
        float64[J, I], scores of other models on all items.
    weights
        Item position to its weight in an anchor subset (`fitness.estimation.subset.anchors`); None: equal weights.
    strata
        int[I], for `stratified_mean`; None: the parents' strata (`fitness.estimation.subset.parent_strata`).
    evaluated
        (scores, positions) of earlier candidates with the same parents, oldest first.
    learn_from
        How many of them count, the latest ones, because a search moves on.
    p_irt_error
        b of gp-IRT, in [0, 1]; None: measure it on the other models, which takes seconds.
    """

    items: int
    parents: Array | None = None
    banks: tuple[ItemBank, ...] = ()
    other_models: Array | None = None
    weights: Mapping[int, float] | None = None
    strata: npt.NDArray[np.int64] | None = None
    evaluated: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]] = ()
    p_irt_error: float | None = None
    learn_from: int = 32

    def __post_init__(self) -> None:
        for name in ("parents", "other_models"):
            scores = getattr(self, name)
            if scores is not None and (np.ndim(scores) != 2 or np.shape(scores)[1] != self.items):
                raise ValueError(f"{name} have shape {np.shape(scores)}: give [models, {self.items}]")
        for bank in self.banks:
            if len(bank.items) != self.items:
                raise ValueError(
                    f"the item bank has {len(bank.items)} items and the task {self.items}: use ItemBank.select first"
                )

    @cached_property
    def prior(self) -> parent_prior.Prior | regression.RegressionPrior:
        """The default estimator's prior for a candidate, from parents, banks and evaluated candidates.

        Parents' scores other than 0 and 1 give a regression prior, which uses no banks.
        """
        latest = self.evaluated[-self.learn_from :]
        if self.parents is not None and not np.isin(self.parents, (0.0, 1.0)).all():
            return regression.learn(regression.prior(self.parents), latest)
        return parent_prior.learn(parent_prior.prior(self.items, self.parents, self.banks), latest)

    @property
    def bank(self) -> ItemBank:
        """The item parameters that published estimators use."""
        if not self.banks:
            raise ValueError("this estimator needs item parameters: run `evomerge fit-items` and name its file")
        return self.banks[-1]

    @property
    def parent_scores(self) -> Array:
        """The parents' scores, float64[T, I]."""
        if self.parents is None or not len(self.parents):
            raise ValueError("this estimator needs the parents' scores on all items: evaluate the sources first")
        return self.parents

    @property
    def other_models_scores(self) -> Array:
        """Other models' scores, float64[J, I]."""
        if self.other_models is None or len(self.other_models) < 2:
            raise ValueError("this estimator needs other models' scores on all items: give a responses matrix")
        return self.other_models

    @cached_property
    def measured_p_irt_error(self) -> float:
        """The b of gp-IRT."""
        return validation_error(self.bank, self.other_models_scores) if self.p_irt_error is None else self.p_irt_error

    @cached_property
    def likeliest_abilities(self) -> Array:
        """float64[T, D]: the parents' maximum-likelihood abilities, as MERGE³ fits them."""
        every = np.arange(self.items)
        return np.stack([likeliest_ability(self.bank, score_I, every) for score_I in self.parent_scores])

    @cached_property
    def map_abilities(self) -> Array:
        """float64[T, D]: the parents' maximum a posteriori abilities."""
        return np.stack([ability_map(self.bank, score_I) for score_I in self.parent_scores])
