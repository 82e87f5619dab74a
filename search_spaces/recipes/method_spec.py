"""What is known of a merge method: its parameters and what it merges. Data only, no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from search_spaces.recipes.errors import RecipeError, did_you_mean

BaseRole = Literal["required", "optional", "none"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    Attributes
    ----------
    name
        mergekit's name.
    per_model
        True: one value per (non-base) source, filters match the source's tensor name. False: one value for
        the merge, filters match the output's tensor name.
    kind
        ``float`` or ``bool``.
    default
        Value when no scope sets it. ``None`` for a required parameter, or for one that is off unless set.
    low, high, start
        Range that a search uses unless told otherwise, and where it begins; ``None`` when not searchable.
    required
        Whether every tensor needs a value.
    inert
        Accepted because mergekit accepts it, without effect on the weights; the canonical form drops it.
    after
        Applied to what was merged, whatever the method: no argument of its function; off unless set, and searched
        only when asked for.
    extension
        Ours: mergekit does not know it, and cannot rebuild a recipe that sets it to other than its default.
    doc
        Meaning, in one sentence.
    """

    name: str
    per_model: bool
    kind: type
    default: float | bool | None = None
    low: float | None = None
    high: float | None = None
    start: float | None = None
    required: bool = False
    inert: bool = False
    after: bool = False
    extension: bool = False
    doc: str = ""

    @property
    def search(self) -> tuple[float, float, float] | None:
        """`low`, `high` and `start`; None when the parameter is not searchable."""
        if self.low is None or self.high is None or self.start is None or self.inert:
            return None
        return self.low, self.high, self.start


@dataclass(frozen=True)
class MethodSpec:
    """What a merge method takes.

    Attributes
    ----------
    name
        The value of ``merge_method``.
    parameters
        Parameters, per-model ones first.
    base
        ``required``: one source of every slice is the base, and the method treats it apart. ``optional``: it
        does so when the recipe names a base. ``none``: ``base_model`` names no more than the donor of the
        config and the tokenizer.
    min_models, max_models
        Sources per slice, the base not counted where it is treated apart; ``max_models=None`` for no bound.
    stochastic
        Whether the weights depend on the recipe's seed.
    doc
        Formula or source, in one sentence.
    in_mergekit
        Whether mergekit 0.1.5 has a method of this name.
    deviation
        Where its weights differ from ours, at ``dtype: float32``, whatever the coefficients; else empty.
    statistic
        What is measured of each model on the recipe's calibration text before it is merged: ``fisher``, the mean
        squared gradient of every weight. None: nothing.
    """

    name: str
    parameters: tuple[Parameter, ...]
    base: BaseRole
    min_models: int
    max_models: int | None
    stochastic: bool
    doc: str
    in_mergekit: bool = True
    deviation: str = ""
    statistic: Literal["fisher"] | None = None

    def parameter(self, name: str) -> Parameter:
        """Return the parameter called `name`.

        Raises
        ------
        RecipeError
            If the method has none of that name; the nearest is named.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        valid = [parameter.name for parameter in self.parameters]
        raise RecipeError(f"{self.name} has no parameter '{name}'; {did_you_mean(name, valid)}")

    @cached_property
    def per_model(self) -> tuple[Parameter, ...]:
        """Parameters with one value per source."""
        return tuple(parameter for parameter in self.parameters if parameter.per_model)

    @cached_property
    def shared(self) -> tuple[Parameter, ...]:
        """Parameters with one value for the merge."""
        return tuple(parameter for parameter in self.parameters if not parameter.per_model)
