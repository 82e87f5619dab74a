"""The canonical form of a recipe, and the hash over it.

Two recipes that give the same weights by mergekit's rules have one form, so that no merge is scored twice. The form
writes every value where it applies: a head slice without layers for the embeddings, one slice per layer, and a tail
slice without layers for the final norm and the head. Parameters are at their sources, or at the slice if shared.
Values that equal their defaults are left out, gradients are evaluated, and the base comes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from search_spaces.recipes import token_rules
from search_spaces.recipes.fields import CalibrationText, PathLayer, RecipeFields, Slice, Source
from search_spaces.recipes.methods import MethodSpec, Parameter
from search_spaces.recipes.mixture_table import Mixture
from search_spaces.recipes.parameter_values import (
    Condition,
    Parameters,
    Scalar,
    Setting,
    at,
    chain,
    interpolate,
    simplified,
)

AnyRecipe = TypeVar("AnyRecipe", bound=RecipeFields)


def canonical_form(recipe: AnyRecipe) -> AnyRecipe:
    """Return the canonical form of `recipe`; see the module's docstring."""
    if recipe.mixture is not None:
        return _canonical_mixture(recipe, recipe.mixture)
    main = recipe.spec_of(recipe.slices[0]).name
    lowered = [_lowered(recipe, part, main) for part in recipe.slices]
    specs = [recipe.spec_of(part) for part in recipe.slices]
    if recipe.is_sliced:
        depths = _depths(recipe)
        pairs = list(zip(lowered, specs, strict=True))
        layers = [_layer(part, index, spec) for part, spec in pairs for index in range(part.num_layers)]
        head, tail = _edge(lowered[0], dict.fromkeys(depths, 0), specs[0]), _edge(lowered[-1], depths, specs[-1])
        slices = (head, *layers, tail)
    else:
        slices = tuple(_written(part, [None] * len(part.sources), None, specs[0]) for part in lowered)
    return replace(
        recipe,
        merge_method=main,
        slices=slices,
        base_model=recipe.base_model if any(spec.base == "optional" for spec in specs) else recipe.donor,
        parameters=(),
        out_dtype=None if recipe.out_dtype == recipe.dtype else recipe.out_dtype,
        seed=(recipe.seed or 0) if any(spec.stochastic for spec in specs) else None,
        calibration_text=_text(recipe),
        path=_path(recipe),
    )


def _text(recipe: RecipeFields) -> CalibrationText | None:
    """Return the calibration texts that are read; one name if all are the same file."""
    text = recipe.calibration_text if recipe.needs_calibration else None
    if text is None or isinstance(text, str):
        return text
    read = tuple((model, file) for model, file in sorted(text) if model in recipe.measured)
    files = {file for _, file in read}
    return files.pop() if len(files) == 1 else read


def _canonical_mixture(recipe: AnyRecipe, table: Mixture) -> AnyRecipe:
    """Return the canonical form of a recipe with a table of weights: its only slice is not split into layers."""
    return replace(
        recipe,
        base_model=recipe.donor,
        slices=(replace(recipe.slices[0], base_model=None),),
        out_dtype=None if recipe.out_dtype == recipe.dtype else recipe.out_dtype,
        seed=None,
        calibration_text=None,
        mixture=table.canonical(),
        path=_path(recipe),
    )


def _path(recipe: RecipeFields) -> tuple[PathLayer, ...] | None:
    """Return the recipe's path; None if it keeps the merge's layers in their order."""
    if recipe.path is None:
        return None
    path = tuple(PathLayer(layer.model, layer.layer, float(layer.scale) + 0.0) for layer in recipe.path)
    depth = sum(part.num_layers for part in recipe.slices)  # 0 in the `models:` form
    return None if path == tuple(PathLayer(None, index) for index in range(depth)) else path


def canonical_json(canonical: RecipeFields) -> str:
    """Return a canonical recipe as JSON without spaces: equal texts are equal merges."""
    slices = [
        (
            [(source.model, source.layer_range, source.parameters) for source in part.sources],
            part.parameters,
            part.base_model,
            *(() if part.merge_method is None else (part.merge_method,)),
        )
        for part in canonical.slices
    ]
    rest: tuple[object, ...] = (
        canonical.merge_method,
        canonical.base_model,
        canonical.dtype,
        canonical.out_dtype,
        canonical.tokenizer_source,
        canonical.chat_template,
        canonical.seed,
        *(() if canonical.calibration_text is None else ("calibration", canonical.calibration_text)),
    )
    if canonical.adapters is not None:
        rest = (*rest, canonical.adapters)
    if canonical.tokens is not None:
        rest = (*rest, "tokens", token_rules.as_data(canonical.tokens))
    table = canonical.mixture
    extensions: tuple[object, ...] = () if table is None else ((table.rows, table.tensors, table.noises),)
    if canonical.path is not None:
        extensions += ("path", [(layer.model, layer.layer, layer.scale) for layer in canonical.path])
    return json.dumps((slices, rest, *extensions), separators=(",", ":"), default=_condition_json)


def _condition_json(condition: Condition) -> list[object]:
    return [condition.value, condition.filter]


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- positions ---


def _depths(recipe: RecipeFields) -> dict[str, int]:
    """Return where each model's ranges end. The tail slice's empty range is written there, for human readers only."""
    depths = dict.fromkeys(recipe.models, 0)
    for part in recipe.slices:
        for source in part.sources:
            if source.num_layers:
                depths[source.model] = max(depths[source.model], source.start + source.num_layers)
    return depths


def _edge(part: Slice, positions: Mapping[str, int], spec: MethodSpec) -> Slice:
    """Return the settings of `part` for the tensors outside the layers, where gradients have their first value."""
    ranges = [(positions[source.model], positions[source.model]) for source in part.sources]
    return _written(part, ranges, 0.0, spec)


def _layer(part: Slice, index: int, spec: MethodSpec) -> Slice:
    """Return layer `index` of `part` as a slice of its own; a single layer takes a gradient's last value."""
    ranges = [(source.start + index, source.start + index + 1) for source in part.sources]
    return _written(part, ranges, index / (part.num_layers - 1) if part.num_layers > 1 else 1.0, spec)


# --- parameters ---


def _lowered(recipe: RecipeFields, part: Slice, main: str) -> Slice:
    """Return `part` with the settings of the recipe's wider scopes and the defaults written into it.

    `main` is the recipe's method, which a slice does not repeat.
    """
    spec, scopes, base = recipe.spec_of(part), recipe.scopes_of(part), recipe.base_of(part)
    treated_apart = base if spec.base != "none" else None
    sources = [
        Source(
            source.model,
            source.layer_range,
            () if source.model == treated_apart else _joined(spec.per_model, (source.parameters, *scopes)),
        )
        for source in recipe.with_base(part)
    ]
    if treated_apart is not None:
        sources.sort(key=lambda source: source.model == treated_apart)  # stable: the other sources keep their order
    return Slice(
        sources=tuple(sources),
        parameters=_joined(spec.shared, scopes),
        base_model=treated_apart if treated_apart != recipe.base_model else None,
        merge_method=None if spec.name == main else spec.name,
    )


def _joined(parameters: Iterable[Parameter], scopes: tuple[Parameters, ...]) -> Parameters:
    settings = {p.name: chain(scopes, p.name, p.default) for p in parameters if not p.inert}
    return tuple(sorted((name, setting) for name, setting in settings.items() if setting))


def _written(part: Slice, ranges: Iterable[tuple[int, int] | None], t: float | None, spec: MethodSpec) -> Slice:
    """Return `part` with other layer ranges and its settings at `t` (None leaves gradients), shortened."""
    return Slice(
        sources=tuple(
            Source(source.model, layer_range, _shortened(source.parameters, t, spec))
            for source, layer_range in zip(part.sources, ranges, strict=True)
        ),
        parameters=_shortened(part.parameters, t, spec),
        base_model=part.base_model,
        merge_method=part.merge_method,
    )


def _shortened(parameters: Parameters, t: float | None, spec: MethodSpec) -> Parameters:
    written = []
    for name, setting in parameters:
        first = setting[0]
        if first.is_catch_all:  # later conditions have no effect; the fast path for most recipes of a search
            value = first.value if t is None else interpolate(first.value, t)
            short: Setting = (Condition(_plain_value(value)),)
        else:
            short = simplified(_plain(setting if t is None else at(setting, t)))
        default = spec.parameter(name).default
        if default is None or len(short) > 1 or short[0].filter is not None or short[0].value != default:
            written.append((name, short))
    return tuple(written)


def _plain(setting: Setting) -> Setting:
    """Write equal numbers alike: 1 as 1.0, -0.0 as 0.0, a gradient of one value as that value."""
    return tuple(Condition(_plain_value(condition.value), condition.filter) for condition in setting)


def _plain_value(value: Scalar | tuple[Scalar, ...]) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, tuple):
        numbers = tuple(_plain_scalar(element) for element in value)
        return numbers[0] if len(numbers) == 1 else numbers
    return _plain_scalar(value)


def _plain_scalar(value: Scalar) -> Scalar:
    return value if isinstance(value, bool) else float(value) + 0.0  # -0.0 + 0.0 is 0.0
