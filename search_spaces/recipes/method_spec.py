"""The description of a merge method: its parameters and what it merges. Data only, no arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

from search_spaces.recipes.errors import RecipeError, did_you_mean

BaseRole: TypeAlias = Literal["required", "optional", "none"]
CoreSpace: TypeAlias = Literal["exact", "different", "unsupported"]

_KINDS: Mapping[str, type] = {"float": float, "bool": bool}


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
        Range that a search uses unless the search file gives another, and where it begins; ``None`` when not
        searchable.
    required
        Whether every tensor needs a value.
    inert
        Accepted because mergekit accepts it, without effect on the weights; the canonical form drops it.
    after
        Applied to the merged tensor, whatever the method: not an argument of its function, off unless set, and
        searched only when the search file names it.
    extension
        Ours: mergekit does not know it, and cannot rebuild a recipe that sets it to other than its default.
    common
        Means the same to every method that adds task vectors to a base: a search over methods has one gene for all.
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
    common: bool = False
    doc: str = ""

    @property
    def search(self) -> tuple[float, float, float] | None:
        """`low`, `high` and `start`; None when the parameter is not searchable."""
        if self.low is None or self.high is None or self.start is None or self.inert:
            return None
        return self.low, self.high, self.start


@dataclass(frozen=True)
class MethodSpec:
    """The description of a merge method.

    Attributes
    ----------
    name
        The value of ``merge_method``.
    parameters
        Parameters, per-model ones first.
    doc
        What the method does and its source, in one sentence.
    base
        ``required``: one source of every slice is the base, and the method treats it apart. ``optional``: it
        does so when the recipe names a base. ``none``: ``base_model`` only names the donor of the config and the
        tokenizer.
    min_models, max_models
        Sources per slice, the base not counted where it is treated apart; ``max_models=None`` for no bound.
    stochastic
        Whether the weights depend on the recipe's seed.
    statistics
        What is measured of each model on its calibration text, by the names of `evomerge.merging.calibration`:
        ``fisher``, ``gram``, ... After ``base.``, the same of the base on the model's text; after ``first.`` or
        ``further.``, of the first model alone or of all others.
    weighted_average
        Whether the result is Σ w_t θ_t / Σ w_t, divided when `normalize`: only the ratios of the weights count.
    differentiable
        Names of parameters that merged weights are smooth in, with everything prepared, masks and elections held: a
        search may follow derivatives by them.
    core_space
        What the method computes from adapters in core space: ``exact``, what it computes from full weights;
        ``different``, another merge; ``unsupported``, nothing, since it needs whole weights.
    in_mergekit
        Whether mergekit 0.1.5 has a method of this name.
    deviation
        How mergekit's weights differ from ours whatever the coefficients; else empty.
    """

    name: str
    parameters: tuple[Parameter, ...]
    doc: str
    base: BaseRole = "required"
    min_models: int = 1
    max_models: int | None = None
    stochastic: bool = False
    statistics: tuple[str, ...] = ()
    weighted_average: bool = False
    differentiable: tuple[str, ...] = ()
    core_space: CoreSpace = "different"
    in_mergekit: bool = False
    deviation: str = ""

    def parameter(self, name: str) -> Parameter:
        """Return the parameter called `name`.

        Raises
        ------
        RecipeError
            If the method has none of that name; the text names the nearest.
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


def as_data(spec: MethodSpec) -> dict[str, Any]:
    """Return a spec as plain data for JSON, without fields that have their default."""
    data = _set_fields(spec) | {"parameters": [_set_fields(parameter) for parameter in spec.parameters]}
    for parameter in data["parameters"]:
        parameter["kind"] = parameter["kind"].__name__
    return data


def from_data(data: Mapping[str, Any]) -> MethodSpec:
    """Return the spec that `as_data` wrote."""
    parameters = tuple(Parameter(**{**values, "kind": _KINDS[values["kind"]]}) for values in data["parameters"])
    names = {key: tuple(data.get(key, ())) for key in ("differentiable", "statistics")}
    return MethodSpec(**{**data, **names, "parameters": parameters})


def _set_fields(value: MethodSpec | Parameter) -> dict[str, Any]:
    data = asdict(value)
    return {field.name: data[field.name] for field in fields(value) if data[field.name] != field.default}
