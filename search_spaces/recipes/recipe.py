"""The recipe: which models to merge, where and how. A point of every search space.

A recipe does not say how it was found. Its YAML is mergekit's dialect (see ``mergekit_yaml``), its meaning is
mergekit 0.1.5's (see ``resolve``). Two spellings of one merge are equal and share a hash (see ``canonical``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from search_spaces.recipes.canonical import canonical_form, canonical_json, digest
from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.fields import (
    DTYPES,
    MAX_CONDITIONS,
    MAX_GRADIENT,
    MAX_LAYERS,
    MAX_SLICES,
    MAX_SOURCES,
    VOCABULARIES,
    PathLayer,
    RecipeFields,
    Slice,
    Source,
)
from search_spaces.recipes.methods import MethodSpec, Parameter, method_spec
from search_spaces.recipes.mixture_table import Mixture
from search_spaces.recipes.parameter_values import Condition, Parameters

__all__ = ["Condition", "Parameters", "PathLayer", "Recipe", "RecipeError", "Slice", "Source"]


@dataclass(frozen=True, eq=False)
class Recipe(RecipeFields):
    """What to merge and how; immutable, validated at construction, equal to every spelling of the same merge.

    Raises
    ------
    RecipeError
        If the method is unknown, a parameter is not one of its own or has an impossible value, the number of
        sources does not fit the method, or sources of a slice differ in their number of layers.
    """

    def __post_init__(self) -> None:
        _validate(self)

    def with_models(self, mapping: Mapping[str, str]) -> Recipe:
        """Return the recipe with every reference that is a key of `mapping` replaced."""

        def renamed(reference: str | None) -> str | None:
            return reference if reference is None else mapping.get(reference, reference)

        tokenizer = self.tokenizer_source
        slices = tuple(
            replace(
                part,
                sources=tuple(replace(s, model=mapping.get(s.model, s.model)) for s in part.sources),
                base_model=renamed(part.base_model),
            )
            for part in self.slices
        )
        return replace(
            self,
            slices=slices,
            base_model=renamed(self.base_model),
            tokenizer_source=tokenizer if tokenizer in VOCABULARIES else renamed(tokenizer),
            tokens=self.tokens and self.tokens.with_models(mapping),
            calibration_text=self.calibration_text
            if self.calibration_text is None or isinstance(self.calibration_text, str)
            else tuple(sorted((mapping.get(model, model), file) for model, file in self.calibration_text)),
            path=self.path and tuple(replace(layer, model=renamed(layer.model)) for layer in self.path),
        )

    def expanded(self, num_layers: int) -> Recipe:
        """Return the sliced form: the `models:` form becomes one slice over all `num_layers` layers.

        As in mergekit, a base that is not among the models becomes the last source. A sliced recipe is
        returned as it is.
        """
        if self.is_sliced:
            return self
        (part,) = self.slices
        sources = tuple(replace(source, layer_range=(0, num_layers)) for source in self.with_base(part))
        return replace(self, slices=(replace(part, sources=sources),))

    def canonical(self) -> Recipe:
        """Return the form that all recipes for this merge share.

        Sliced recipes become one slice per layer between a head and a tail slice without layers, with every
        value written where it applies. The `models:` form keeps its shape: call `expanded` first to compare it with
        sliced ones.
        """
        return self._canonical

    @cached_property
    def _canonical(self) -> Recipe:
        form = canonical_form(self)
        form.__dict__["_canonical"] = form  # the canonical form is its own canonical form
        return form

    @cached_property
    def _canonical_json(self) -> str:
        return canonical_json(self._canonical)

    @cached_property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical form."""
        return digest(self._canonical_json)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self._canonical_json == other._canonical_json

    def __hash__(self) -> int:
        return hash(self._canonical_json)


# --- checks at construction: one function per noun; `place` is the path in the YAML document that errors begin with ---


def _validate(recipe: RecipeFields) -> None:
    """Raise a `RecipeError` unless `recipe` could be merged, given fitting models; see `Recipe`."""
    spec = method_spec(recipe.merge_method)
    _validate_dtypes(recipe)
    if recipe.seed is not None and (type(recipe.seed) is not int or not 0 <= recipe.seed < 2**63):
        raise RecipeError(f"evomerge.seed: {recipe.seed} is not a seed; write a whole number from 0 to 2**63 - 1")
    _validate_adapters(recipe, spec)
    if recipe.tokens is not None and recipe.tokenizer_source in (None, "pad"):
        raise RecipeError("tokenizer: single tokens need a vocabulary; write source: base, union or a model")
    if not recipe.slices:
        raise RecipeError("slices: the recipe has none; write a `models:` or a `slices:` list")
    if len(recipe.slices) > MAX_SLICES:
        raise RecipeError(f"slices: {len(recipe.slices)} are too many; write at most {MAX_SLICES}")
    _validate_parameters(recipe.parameters, spec, "parameters")
    for index, part in enumerate(recipe.slices):
        place = f"slices[{index}]"
        _validate_slice(recipe, part, _spec_of(recipe, part, place), place)
    _validate_depth(recipe)
    _validate_tail(recipe)
    _validate_calibration(recipe)
    if recipe.mixture is not None:
        _validate_mixture(recipe, recipe.mixture)
    if recipe.path is not None:
        _validate_path(recipe, recipe.path)


def _spec_of(recipe: RecipeFields, part: Slice, place: str) -> MethodSpec:
    if part.merge_method is None:
        return recipe.spec
    if not recipe.is_sliced or recipe.mixture is not None or recipe.adapters is not None:
        raise RecipeError(
            f"{place}.evomerge.merge_method: only slices of full weights can have their own; write one merge_method "
            "for the whole recipe"
        )
    try:
        return method_spec(part.merge_method)
    except RecipeError as error:
        raise RecipeError(f"{place}.evomerge: {error}") from None


def _validate_adapters(recipe: RecipeFields, spec: MethodSpec) -> None:
    """Refuse methods that compare whole weights: core space has task vectors only."""
    if recipe.adapters is None:
        return
    if recipe.adapters != "core":
        raise RecipeError(
            f"evomerge.adapters: {recipe.adapters!r} is not a way to merge adapters; write core, or remove it"
        )
    if recipe.calibration_text is not None:
        raise RecipeError(
            "evomerge.adapters: core space has no input channels to weigh; remove calibration_text, or adapters"
        )
    if spec.core_space == "unsupported" or (spec.base == "optional" and recipe.base_model is None):
        raise RecipeError(
            f"evomerge.adapters: {spec.name} needs whole weights, and core space has only task vectors; write "
            "adapters: full, or use another method (task_arithmetic, ties, ...)"
        )


def _validate_dtypes(recipe: RecipeFields) -> None:
    for key, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype is not None and dtype not in DTYPES:
            raise RecipeError(f"{key}: '{dtype}' is not a precision; {did_you_mean(dtype, DTYPES)}")


def _validate_slice(recipe: RecipeFields, part: Slice, spec: MethodSpec, place: str) -> None:
    if not part.sources:
        raise RecipeError(f"{place}: the slice has no sources; name at least {spec.min_models}")
    if len(part.sources) > MAX_SOURCES:
        raise RecipeError(f"{place}: {len(part.sources)} sources are too many; write at most {MAX_SOURCES}")
    _validate_parameters(part.parameters, spec, f"{place}.parameters")
    sources = f"{place}.sources"
    if part.sources[0].layer_range is None:
        place = sources = "models"  # the form that the user wrote
    for index, source in enumerate(part.sources):
        _validate_source(source, spec, f"{sources}[{index}]")
    ranges = {source.num_layers for source in part.sources}
    if len(ranges) > 1:
        raise RecipeError(
            f"{place}: its sources have different numbers of layers ({sorted(ranges)}); give all the same number"
        )
    _validate_models(recipe, part, spec, place)


def _validate_source(source: Source, spec: MethodSpec, place: str) -> None:
    if not source.model:
        raise RecipeError(f"{place}.model: the name is empty; write a folder or a hub id such as org/name")
    if source.layer_range is not None:
        start, end = source.layer_range
        if not 0 <= start <= end:
            raise RecipeError(f"{place}.layer_range: [{start}, {end}] is not a range; write 0 <= start <= end")
        if end > MAX_LAYERS:
            raise RecipeError(
                f"{place}.layer_range: [{start}, {end}] ends beyond {MAX_LAYERS} layers; write a smaller end"
            )
    _validate_parameters(source.parameters, spec, f"{place}.parameters", of_source=True)


def _validate_models(recipe: RecipeFields, part: Slice, spec: MethodSpec, place: str) -> None:
    """Check a slice's models against the method's requirements."""
    names = [source.model for source in part.sources]
    base = recipe.base_of(part)
    if base is not None and base not in names and part.sources[0].layer_range is None:
        names.append(base)  # as `expanded` will
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{place}: '{name}' occurs twice among the sources; use it once per slice")
    if spec.base == "required" and base is None:
        raise RecipeError(f"base_model: {spec.name} needs a base; write base_model: ONE_OF_THE_MODELS")
    count = len(names)
    if spec.base != "none" and base is not None:
        if base not in names:
            raise RecipeError(f"{place}: the base is not among the sources; add {{model: {base}, layer_range: ...}}")
        count -= 1
    if count < spec.min_models or (spec.max_models is not None and count > spec.max_models):
        wanted = f"{spec.min_models}" if spec.min_models == spec.max_models else f"at least {spec.min_models}"
        beside = "" if spec.base == "none" else " beside the base"
        raise RecipeError(f"{place}: {spec.name} takes {wanted} model(s){beside}, not {count}; change its sources")


def _validate_depth(recipe: RecipeFields) -> None:
    unsliced = [source.layer_range is None for part in recipe.slices for source in part.sources]
    if any(unsliced) and (len(recipe.slices) > 1 or not all(unsliced)):
        raise RecipeError("slices: a source has no layer_range; give every source layer_range: [start, end]")
    if not any(unsliced) and not 0 < (total := sum(part.num_layers for part in recipe.slices)) <= MAX_LAYERS:
        raise RecipeError(f"slices: together they have {total} layers; ask for 1 to {MAX_LAYERS}")


def _validate_tail(recipe: RecipeFields) -> None:
    """Refuse more sources in the last slice than in the first, which mergekit merges wrongly without a message."""
    first, last = len(recipe.slices[0].sources), len(recipe.slices[-1].sources)
    if last > first and len(recipe.specs) == 1:
        raise RecipeError(
            f"slices[{len(recipe.slices) - 1}]: the last slice has {last} sources, the first {first}, and "
            "mergekit drops the rest from the final norm and the head; give both the same number of sources"
        )


def _validate_calibration(recipe: RecipeFields) -> None:
    place = "evomerge.calibration_text"
    if "" in recipe.calibration_files:
        raise RecipeError(f"{place}: the name is empty; write the path of a text file")
    if isinstance(recipe.calibration_text, tuple):
        for model, _ in recipe.calibration_text:
            if model not in recipe.models:
                raise RecipeError(
                    f"{place}: {model} is not one of the recipe's models; {did_you_mean(model, recipe.models)}"
                )
        for model in recipe.measured if recipe.needs_calibration else ():
            if recipe.text_of(model) is None:
                raise RecipeError(f"{place}: {model} has no text; write {model}: TEXT_FILE, or one text for all models")
    if recipe.calibration_text is None and recipe.needs_calibration:
        measuring = [spec.name for spec in recipe.specs if spec.statistics]
        what, whom = (measuring[0], "models") if measuring else ("activation_informed", "the base")
        raise RecipeError(
            f"{what}: it needs a text to measure {whom} on; write evomerge: {{calibration_text: TEXT_FILE}}"
        )


def _validate_mixture(recipe: RecipeFields, table: Mixture) -> None:
    """Check that the table's rows fit the sources, and that no parameters give weights as well."""
    place = "evomerge.mixture"
    if recipe.merge_method != "linear":
        raise RecipeError(f"{place}: a table of weights is for linear merges; write merge_method: linear")
    part, *others = recipe.slices
    if others or any(source.start for source in part.sources):
        raise RecipeError(f"{place}: it is for whole models; write one slice from layer 0, or a `models:` list")
    if recipe.parameters or part.parameters or any(source.parameters for source in part.sources):
        raise RecipeError(f"{place}: the weights are in its rows; remove all parameters")
    if len(part.sources) != table.sources:
        raise RecipeError(
            f"{place}.rows: {table.sources} weights for {len(part.sources)} sources; write one per source, then one "
            "per noise"
        )
    if recipe.donor not in [source.model for source in part.sources]:
        raise RecipeError(f"{place}: the base is not among the sources; add {recipe.donor}, or remove base_model")


def _validate_path(recipe: RecipeFields, path: tuple[PathLayer, ...]) -> None:
    place = "evomerge.path"
    if not 0 < len(path) <= MAX_LAYERS:
        raise RecipeError(f"{place}: {len(path)} layers; write 1 to {MAX_LAYERS}")
    depth = sum(part.num_layers for part in recipe.slices) if recipe.is_sliced else MAX_LAYERS
    for index, layer in enumerate(path):
        end = depth if layer.model is None else MAX_LAYERS
        if not 0 <= layer.layer < end:
            raise RecipeError(f"{place}[{index}].layer: there is no layer {layer.layer}; write 0 to {end - 1}")
        if not math.isfinite(layer.scale):
            raise RecipeError(f"{place}[{index}].scale: {layer.scale} is not finite; write a number such as 0.5")
        if layer.model == "":
            raise RecipeError(f"{place}[{index}].model: the name is empty; write a folder, a hub id, or leave it out")


def _validate_parameters(parameters: Parameters, spec: MethodSpec, place: str, *, of_source: bool = False) -> None:
    previous = ""
    for name, setting in parameters:
        parameter = _parameter(spec, name, place)
        if of_source and not parameter.per_model:
            # mergekit would ignore it without a message
            raise RecipeError(f"{place}: '{name}' is not per model; write it in the slice's parameters")
        if name <= previous:
            raise RecipeError(f"{place}: parameters must be sorted and unique; put '{name}' before '{previous}'")
        previous = name
        if not setting:
            raise RecipeError(f"{place}.{name}: no value; write a number or a list of {{filter, value}}")
        if len(setting) > MAX_CONDITIONS:
            raise RecipeError(f"{place}.{name}: {len(setting)} conditions; write at most {MAX_CONDITIONS}")
        for condition in setting:
            _validate_condition(condition, parameter.kind, f"{place}.{name}")


def _parameter(spec: MethodSpec, name: str, place: str) -> Parameter:
    try:
        return spec.parameter(name)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from None


def _validate_condition(condition: Condition, kind: type, place: str) -> None:
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    if not 0 < len(values) <= MAX_GRADIENT:
        raise RecipeError(f"{place}: a gradient of {len(values)} values; write 1 to {MAX_GRADIENT}")
    for value in values:
        if kind is bool and not isinstance(value, bool):
            raise RecipeError(f"{place}: {value!r} is not a truth value; write true or false")
        if kind is float and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise RecipeError(f"{place}: {value!r} is not a number; write one such as 0.5")
        if kind is float and not math.isfinite(value):
            raise RecipeError(f"{place}: {value!r} is not finite; write a number such as 0.5")
    if condition.filter is not None and not isinstance(condition.filter, str):
        raise RecipeError(f"{place}: the filter {condition.filter!r} is not text; write a part of a tensor's name")
