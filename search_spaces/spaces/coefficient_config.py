"""The settings of a search over coefficients: methods, grouping, ranges, and what has a fixed value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.fields import CalibrationText
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import METHODS, MethodSpec, Parameter
from search_spaces.recipes.parameter_values import Scalar
from search_spaces.spaces.genes import Real, low_and_high
from search_spaces.spaces.layer_groups import Groups, LayerGroup, layer_groups

Modules: TypeAlias = tuple[str, ...] | Literal["all"]


def _not_a_number(text: str) -> str:
    """Return text that is an option of a choice; `1e-3`, which YAML reads as text, becomes a number elsewhere."""
    try:
        float(text)
    except ValueError:
        return text
    raise ValueError("it is a number")


FixedValue: TypeAlias = float | bool | Annotated[str, AfterValidator(_not_a_number)]
"""Value of a parameter, or of a gene: a number, a truth value, or a choice's option."""

_SEARCHED = ("weight", "density", "t")
"""Parameters that are searched by default and have their own keys in the config."""


def _is_searchable(name: object) -> bool:
    """Return whether a registered method has anything to search."""
    if name == "passthrough" or name not in METHODS:
        return False
    return any(p.search is not None and not p.after for p in METHODS[str(name)].parameters)


class Range(BaseModel):
    """The range in which a parameter is searched; `[low, high]` for short."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    low: float = Field(ge=-1000, le=1000, allow_inf_nan=False)
    """Smallest value."""
    high: float = Field(ge=-1000, le=1000, allow_inf_nan=False)
    """Largest value, above `low`."""
    start: float | None = Field(default=None, allow_inf_nan=False)
    """Where the search begins, within the range. None: the method's default, or the middle if that is outside."""
    std: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    """Standard deviation of random samples around `start` (a normal prior, truncated at the bounds). None: samples are
    uniform."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return low_and_high(value)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        if self.start is not None and not self.low <= self.start <= self.high:
            raise ValueError(f"start {self.start} is not in [{self.low}, {self.high}]; write one inside")
        return self


TASK = "task:"
"""Before the name of a task, in place of a calibration text: the text is that of the task's search items."""


class CoefficientSettings(BaseModel):
    """The keys of ``kind: layer_coefficients``, which three spaces read; `CoefficientConfig` builds one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["layer_coefficients"] = "layer_coefficients"
    """Which space this is."""
    method: str | tuple[str, ...] = "task_arithmetic"
    """Merge method; any except passthrough and methods without searchable parameters (model_stock, ram, arcee_fusion).
    With a list, the method itself is a gene. Coefficients that the chosen method does not use are ignored (inactive
    genes), and methods share coefficients with the same meaning. A method for two models (slerp) is searched over all
    pairs of experts."""
    method_scope: Literal["merge", "layers"] = "merge"
    """With a list of methods: one method gene for the whole `merge`, or one for each group of `layers` (the embeddings,
    and the final norm with the head, are groups as well). mergekit cannot rebuild a merge with several methods."""
    method_prior: dict[str, float] = Field(default_factory=dict)
    """Prior probability of each method in the list: `{ties: 0.7, slerp: 0.3}`. Random samples follow it, and `eda` and
    `catcma` begin with it. By default samples are uniform, and these two begin with the start's method."""
    start: str | None = None
    """Where the search begins: `uniform` (weights of 1/T for T experts), `task_arithmetic` (weights of 0.3), `metagpt`
    (weights proportional to the squared norms of the task vectors), or a recipe file. By default each gene begins at
    its range's start."""
    layers_per_group: int = Field(default=1, ge=1, le=10_000)
    """Number of consecutive layers that share their coefficients. The last group may be smaller."""
    groups: Groups | None = None
    """Groups of layers that share coefficients, in place of `layers_per_group`: `model` for the whole model, or a list
    of groups that together have every layer, `embeddings` and `final` (the final norm with the head) once:
    `[[embeddings, 0-3], [4-10, 12], [11, 13-15, final]]`. A mapping gives them names: `{early: [embeddings, 0-7], late:
    [8-15, final]}`."""
    smooth: bool = False
    """Whether the groups of layers are knots: each layer has a value on the straight line between the two nearest, as
    in a list of values in a mergekit recipe."""
    modules: Modules = "all"
    """Parts of a group with separate coefficients: a list of `attention`, `mlp`, and parts of tensors' names as in
    mergekit's filters (`q_proj`, `layernorm`, `lm_head`), where the first that fits decides, and `other` (the rest,
    which is required); or `all` for one coefficient per group."""
    weight: Range | None = None
    """Range of the models' weights. None: the method's default."""
    density: Range | None = None
    """Range of the fraction of each task vector that is kept, within (0, 1]. None: the method's default."""
    t: Range | None = None
    """Range of slerp's position between the base (0) and the other model (1). None: the method's default."""
    ranges: dict[str, Range] = Field(default_factory=dict)
    """Ranges of further parameters of the method, by name: `gamma: {low: 0.0, high: 0.05}`, `lambda: {low: 0.5, high:
    1.5}`. A method without weight, density and t has all its parameters searched in their default ranges."""
    fixed: dict[str, FixedValue] = Field(default_factory=dict)
    """Fixed values, which are not searched: parameters of the whole merge by name (`lambda: 0.8`, `normalize: true`),
    or single genes by the names that `evomerge plan` prints (`"ops.weight[embeddings]": 0`, `ops.mask: on`), where `*`
    matches any text (`"*[final]": 0.5`)."""
    tie: tuple[str, ...] | dict[str, str | tuple[str, ...]] = ()
    """Genes that share one value, and so are one gene: patterns of the names that `evomerge plan` prints, where `*`
    matches any text (`["*.weight[*]"]`: one weight for all models), or a mapping from a name for the joint gene to one
    pattern or several."""
    masks: Literal["none", "on_off", "signed"] = "none"
    """Genes that turn each expert's task vector on or off (`on_off`), or add it, leave it out or subtract it
    (`signed`). An expert that is off keeps its coefficients for when it is on again."""
    mask_scope: Literal["merge", "layers"] = "merge"
    """One such gene per expert for the whole `merge`, or one for each group of `layers`."""

    calibration_text: str | dict[str, str] | None = None
    """Text file for calibration, of all models, or a mapping from each model's name to its own: UTF-8, without any
    item that is held out. `task:NAME` in place of a file means the search items of one of the search file's tasks, with
    their answers. Methods that look at data (`fisher`, `regmean`, ...) measure every model on its text. The parameter
    `activation_informed` (activation-informed merging, for any method with a base) needs it to find the base's most
    active channels, whose change it reduces. Write `ranges: {activation_informed: {low: 0, high: 1}}` to search that
    parameter, or set it in `fixed`."""

    @model_validator(mode="before")
    @classmethod
    def _complete_ranges(cls, values: Any) -> Any:
        """Let a range give one bound only; the other is the method's default, the widest of several methods'."""
        if not isinstance(values, dict):
            return values
        completed = dict(values)
        for name in _SEARCHED:
            ranges = [p.search for spec in _specs_in(values) for p in spec.parameters if p.name == name and p.search]
            if ranges and isinstance(values.get(name), dict):
                widest = {"low": min(low for low, _, _ in ranges), "high": max(high for _, high, _ in ranges)}
                completed[name] = widest | values[name]
        return completed

    @field_validator("method")
    @classmethod
    def _known_methods(cls, method: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (method,) if isinstance(method, str) else method
        for name in names:
            if not _is_searchable(name):
                searchable = [method for method in METHODS if _is_searchable(method)]
                if name in METHODS:
                    raise ValueError(f"{name} has no coefficients to search; use one of {', '.join(searchable)}")
                raise ValueError(f"'{name}' is not a merge method; {did_you_mean(name, searchable)}")
            if names.count(name) > 1:
                raise ValueError(f"{name} is in the list twice; name each method once")
        if not names:
            raise ValueError("the list is empty; name one method, or several")
        return names[0] if len(names) == 1 else names

    @field_validator("modules")
    @classmethod
    def _whole_layer(cls, modules: Modules) -> Modules:
        if modules == "all":
            return modules
        twice = next((module for module in modules if modules.count(module) > 1), None)
        if twice is not None:
            raise ValueError(f"{list(modules)} names {twice} twice; name each module once")
        if "other" not in modules:
            raise ValueError(f"{list(modules)} leaves out the rest of a layer; add other")
        if any(not module or set(module) & set(",[]*") for module in modules):
            raise ValueError(f"{list(modules)} has a name that no tensor can have; write names such as q_proj")
        return modules

    @model_validator(mode="after")
    def _one_grouping(self) -> CoefficientSettings:
        if self.groups is not None and self.layers_per_group != 1:
            raise ValueError("groups and layers_per_group both define which layers share coefficients; remove one")
        if isinstance(self.groups, dict) and any(not name or set(name) & set(",[]*") for name in self.groups):
            raise ValueError(f"groups: {list(self.groups)} has a name with one of , [ ] *; write plain names")
        return self

    def groups_of(self, layout: ModelLayout) -> tuple[LayerGroup, ...]:
        """Return the groups of a model's tensors that share coefficients.

        Raises
        ------
        RecipeError
            If the groups or modules do not fit the model.
        """
        modules = () if self.modules == "all" else tuple(name for name in self.modules if name != "other")
        return layer_groups(layout, groups=self.groups, layers_per_group=self.layers_per_group, modules=modules)

    @field_validator("fixed")
    @classmethod
    def _values_that_can_be(cls, fixed: dict[str, FixedValue]) -> dict[str, FixedValue]:
        for name, value in fixed.items():
            if isinstance(value, str) and not _names_genes(name):
                raise ValueError(f"{name}: {value!r} does not fit; write a number, or true or false")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: {value} is not finite; write a number such as 0.5")
        return fixed

    @model_validator(mode="after")
    def _parameters_of_methods(self) -> CoefficientSettings:
        if self.smooth and self.method_scope == "layers":
            raise ValueError(
                "smooth: there is no line between two methods; write method_scope: merge, or remove smooth"
            )
        if isinstance(self.method, tuple):
            _check_list(self)
        else:
            _check_single(self)
        return self

    @classmethod
    def places_of(cls, key: str, section: object) -> tuple[str, ...]:
        """Return the keys of this section under which a method's parameter `key` belongs."""
        found = [
            parameter
            for spec in _specs_in(section if isinstance(section, dict) else {})
            for parameter in spec.parameters
            if parameter.name == key
        ]
        searched = any(parameter.search is not None for parameter in found)
        return (("ranges",) if searched else ()) + (("fixed",) if found else ())

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, one or several."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def spec(self) -> MethodSpec:
        """What the merge method takes, where there is a single one."""
        (method,) = self.methods
        return METHODS[method]

    @property
    def ties(self) -> dict[str, tuple[str, ...]]:
        """The entries of `tie`: patterns by the name of the joint gene, which is the pattern if it has none."""
        named = self.tie if isinstance(self.tie, dict) else {pattern: pattern for pattern in self.tie}
        return {name: (own,) if isinstance(own, str) else own for name, own in named.items()}

    @property
    def fixed_parameters(self) -> dict[str, Scalar]:
        """The entries of `fixed` that name parameters."""
        named = self.fixed.items()
        return {name: value for name, value in named if not _names_genes(name) and not isinstance(value, str)}

    @property
    def fixed_genes(self) -> dict[str, FixedValue]:
        """The entries of `fixed` that name genes, by name or pattern."""
        return {name: value for name, value in self.fixed.items() if _names_genes(name)}

    def only(self, method: str) -> CoefficientSettings:
        """Return the settings for one method of the list, without parameters that it does not have.

        A range of `weight` is for factors of task vectors; methods whose weights are shares keep their default range.
        """
        spec = METHODS[method]
        taken = {parameter.name for parameter in spec.parameters if not parameter.inert}
        weighs = {name for name in _SEARCHED if name != "weight" or spec.base == "required"}
        kept = {
            name: value
            for name, value in self.fixed_parameters.items()
            if not (spec.weighted_average and name == "normalize")
        }
        return CoefficientSettings(
            method=method,
            layers_per_group=self.layers_per_group,
            groups=self.groups,
            smooth=self.smooth,
            modules=self.modules,
            calibration_text=self.calibration_text,
            ranges={name: asked for name, asked in self.ranges.items() if name in taken},
            fixed={name: value for name, value in kept.items() if name in taken},
            **{name: getattr(self, name) for name in weighs & taken},
        )

    def text_for(self, models: Mapping[str, str]) -> CalibrationText | None:
        """Return the calibration texts by the models' references, which `models` gives by name.

        Raises
        ------
        RecipeError
            If a text is for a model that there is not.
        """
        text = self.calibration_text
        if not isinstance(text, dict):
            return text
        for name in text:
            if name not in models:
                raise RecipeError(f"space.calibration_text: no model is called {name}; {did_you_mean(name, models)}")
        return tuple(sorted((models[name], file) for name, file in text.items()))

    def searched(self) -> tuple[Parameter, ...]:
        """Return the parameters that get genes: weight, density, ``t``, and those in `ranges`."""
        able = [parameter for parameter in self.spec.parameters if parameter.search is not None]
        own = [parameter for parameter in able if not parameter.after]
        usual = [parameter for parameter in own if parameter.name in _SEARCHED] or own
        return tuple(
            parameter
            for parameter in able
            if (parameter in usual or parameter.name in self.ranges) and parameter.name not in self.fixed_parameters
        )

    def gene(self, parameter: Parameter, name: str) -> Real:
        """Return the gene called `name` of a searched parameter."""
        low, high, start = self._range_of(parameter)
        asked = self._asked(parameter)
        std = None if asked is None else asked.std
        return Real(name, low, high, start, None if std is None else (start, std))

    def _asked(self, parameter: Parameter) -> Range | None:
        asked: Range | None = self.ranges.get(parameter.name) or getattr(self, parameter.name, None)
        return asked

    def _range_of(self, parameter: Parameter) -> tuple[float, float, float]:
        """Return low, high and start of a searched parameter."""
        asked = self._asked(parameter)
        if parameter.search is None:
            raise RecipeError(f"space: {parameter.name} cannot be searched; use one of {', '.join(_SEARCHED)}")
        low, high, start = parameter.search
        if asked is None:
            return low, high, start
        if asked.start is not None:
            start = asked.start
        inside = asked.low <= start <= asked.high
        return asked.low, asked.high, start if inside else (asked.low + asked.high) / 2


def _specs_in(values: dict[str, Any]) -> list[MethodSpec]:
    """Return the specifications of the methods in settings that are not validated yet."""
    method = values.get("method", "task_arithmetic")
    names = method if isinstance(method, list | tuple) else [method]
    return [METHODS[name] for name in names if _is_searchable(name)]


def _names_genes(key: str) -> bool:
    return any(sign in key for sign in "[*.")  # no parameter's name has one of them


def _check_single(config: CoefficientSettings) -> None:
    for name in _SEARCHED:
        if getattr(config, name) is not None:
            _require_effect(config.spec, name, name)
            if name in config.fixed:
                raise ValueError(f"{name} is both searched and fixed; remove one of the two")
    for name in config.ranges:
        _check_range(config, name)
    for name, value in config.fixed_parameters.items():
        _check_fixed(config.spec, name, value)
    _check_bounds(config)
    if config.spec.statistics and config.calibration_text is None:
        raise ValueError(f"{config.method}: it needs a text; write calibration_text: TEXT_FILE")
    for parameter in config.spec.parameters:
        if parameter.after and config.calibration_text is None and parameter.name in {**config.ranges, **config.fixed}:
            raise ValueError(f"{parameter.name}: it needs a text; write calibration_text: TEXT_FILE")
    if config.method_scope != "merge":
        raise ValueError("method_scope: there is one method; write a list of methods, or remove it")
    if config.method_prior:
        raise ValueError("method_prior: there is one method; write a list of methods, or remove it")


def _check_list(config: CoefficientSettings) -> None:
    """Check the settings for each method, and that some method has each parameter."""
    for name in (*(n for n in _SEARCHED if getattr(config, n) is not None), *config.ranges, *config.fixed_parameters):
        takers = [m for m in config.methods if any(p.name == name and not p.inert for p in METHODS[m].parameters)]
        if not takers:
            raise ValueError(f"{name}: none of {', '.join(config.methods)} has this parameter; remove it")
    for name in config.method_prior:
        if name not in config.methods:
            raise ValueError(f"method_prior: '{name}' is not one of the methods; {did_you_mean(name, config.methods)}")
    if config.method_prior and not math.isclose(sum(config.method_prior.values()), 1.0, abs_tol=1e-6):
        total = sum(config.method_prior.values())
        raise ValueError(f"method_prior: the probabilities sum to {total:g}; write ones that sum to 1")
    if any(probability < 0 for probability in config.method_prior.values()):
        raise ValueError("method_prior: a probability is negative; write numbers from 0 to 1")
    for method in config.methods:
        try:
            config.only(method)
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{method}: {message}") from None


def _require_effect(spec: MethodSpec, name: str, place: str) -> None:
    effective = [parameter.name for parameter in spec.parameters if not parameter.inert]
    if name not in effective:
        valid = ", ".join(effective)
        raise ValueError(f"{place}: {spec.name} has no parameter '{name}'; remove it (valid: {valid})")


def _check_range(config: CoefficientSettings, name: str) -> None:
    place = f"ranges.{name}"
    if name in _SEARCHED:
        raise ValueError(f"{place}: it has its own key; write {name}: {{low: ..., high: ...}} beside ranges")
    _require_effect(config.spec, name, place)
    if config.spec.parameter(name).search is None:
        able = [parameter.name for parameter in config.spec.parameters if parameter.search is not None]
        raise ValueError(f"{place}: it cannot be searched; use {' or '.join(able)}, or write it in fixed")
    if name in config.fixed:
        raise ValueError(f"{name} is both searched and fixed; remove one of the two")


def _check_fixed(spec: MethodSpec, name: str, value: Scalar) -> None:
    _require_effect(spec, name, "fixed")
    if spec.weighted_average:
        raise ValueError(f"fixed: {spec.name} weights are searched and divided by their sum; remove '{name}'")
    if spec.parameter(name).kind is not type(value):
        example = "true or false" if spec.parameter(name).kind is bool else "a number such as 0.5"
        raise ValueError(f"fixed.{name}: {value!r} does not fit; write {example}")


def _check_bounds(config: CoefficientSettings) -> None:
    averages = isinstance(config.method, str) and config.spec.weighted_average
    if averages and config.weight is not None and config.weight.low != 0:
        raise ValueError(f"weight: {config.method} weights are divided by their sum and begin at zero; write low: 0")
    densities = [config.fixed_parameters["density"]] if "density" in config.fixed else []
    densities += [config.density.low, config.density.high] if config.density is not None else []
    if any(not 0 < density <= 1 for density in densities):
        raise ValueError("density: it is a fraction; write numbers above 0 and up to 1")
    if config.t is not None and not (config.t.low >= 0 and config.t.high <= 1):
        raise ValueError("t: it is a position between two models; write numbers from 0 to 1")
