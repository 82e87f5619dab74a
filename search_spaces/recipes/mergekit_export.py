"""Reasons why mergekit 0.1.5 cannot rebuild a recipe's weights, and the nearest recipe that it can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.mixture_table import Mixture, Piece
from search_spaces.recipes.parameter_values import (
    Condition,
    Parameters,
    constant,
    find,
    fitting_epsilon,
    simplified,
)
from search_spaces.recipes.recipe import Recipe, Slice, Source
from search_spaces.recipes.references import is_dequantized, parts
from search_spaces.recipes.resolve import TensorPlan

_PATH = "evomerge.path: mergekit does not merge and reorder layers in one document"
_SEVERAL = "slices.evomerge.merge_method: layers have their own methods, and mergekit allows only one per document"


def obstacles(recipe: Recipe) -> tuple[str, ...]:
    """Return a sentence for each reason why mergekit would give other weights; empty if it gives the same."""
    recipe = _with_one_method(recipe)
    if recipe.path is not None:
        return (_PATH, *obstacles(replace(recipe, path=None)))
    spec = recipe.spec
    if recipe.mixture is not None:
        return _mixture_obstacles(recipe.mixture)
    if len(recipe.specs) > 1:
        return (_SEVERAL,)
    if not spec.in_mergekit:
        return (f"mergekit 0.1.5 has no merge_method '{spec.name}'",)
    found = [f"{name}: mergekit has no such parameter of {spec.name}" for name in _extensions(recipe)]
    if recipe.adapters is not None:
        found.append("adapters: core: mergekit merges adapters as full weights")
    found.extend(reason for model in recipe.models if (reason := _unread(model)))
    if recipe.tokenizer_source in ("first", "pad"):
        found.append(f"vocabulary: {recipe.tokenizer_source}: mergekit has no such policy")
    if _deviates(recipe):
        found.append(f"{_subject(recipe)}: {spec.deviation}")
    found += refused_by_mergekit(recipe)
    return tuple(found)


def model_obstacles(recipe: Recipe, model: Model | None) -> tuple[str, ...]:
    """Return a sentence for each reason why mergekit would merge models like this one otherwise.

    Parameters
    ----------
    recipe
        Any recipe.
    model
        One of its models; None: not known, and taken for one that mergekit merges whole.
    """
    if model is None:
        return ()
    if model.part_of is not None:
        return (f"mergekit 0.1.5 merges all of a model of type {model.part_of}, and evomerge its text part",)
    if model.definition is None:
        return (*model.treated_otherwise, *_outer_obstacles(recipe, model.architecture))
    found = list(model.treated_otherwise)
    if dropped := model.dropped():
        found.append(
            f"mergekit 0.1.5 drops {_such_as(dropped)}: its definition of {model.architecture} does not contain them"
        )
    if lacking := model.lacking():
        found.append(
            f"mergekit 0.1.5 refuses the models: its definition of {model.architecture} requires {_such_as(lacking)}, "
            "and the models do not have it"
        )
    return tuple(found)


def _unread(reference: str) -> str | None:
    """Return why mergekit does not read a model; None: it does."""
    model = parts(reference)[0]
    if is_dequantized(reference):
        return f"{model}: mergekit does not dequantise"
    return f"{model}: mergekit reads no GGUF" if model.lower().endswith(".gguf") else None


def _such_as(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors, such as {names[0]}"


def _outer_obstacles(recipe: Recipe, architecture: str) -> tuple[str, ...]:
    """Return why mergekit would merge the final norm and the head of an architecture that it has no definition of.

    It knows which tensors of those are in a layer, and takes the final norm and the head from the first slice, as it
    does the embeddings.
    """
    if recipe.mixture is not None:
        return ()
    slices = recipe.canonical().slices
    first, last = (
        replace(part, sources=tuple(replace(source, layer_range=None) for source in part.sources))
        for part in (slices[0], slices[-1])
    )
    if first == last:
        return ()
    return (
        f"slices: mergekit 0.1.5 does not know where the tensors of {architecture} belong, and merges the final norm "
        "and the head as the embeddings",
    )


def rounded(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Return the nearest recipe that mergekit reads in full, and a sentence for each thing given up.

    Raises
    ------
    RecipeError
        If mergekit has no such method, or layers have methods of their own.
    """
    recipe = _with_one_method(recipe)
    if recipe.path is not None:
        plain, others = rounded(replace(recipe, path=None))
        return plain, (f"{_PATH}; only the merge is written, its layers in their order", *others)
    if recipe.mixture is not None:
        return _without_mixture(recipe, recipe.mixture)
    if len(recipe.specs) > 1:
        raise RecipeError(f"{_SEVERAL}; build the model with evomerge merge, or search one method for all layers")
    if not recipe.spec.in_mergekit:
        known = ", ".join(sorted(spec.name for spec in METHODS.values() if spec.in_mergekit))
        raise RecipeError(
            f"merge_method: mergekit 0.1.5 has no '{recipe.merge_method}'; build the model with evomerge merge, or "
            f"search one of {known}"
        )
    notes = [f"{name} is dropped; mergekit has no such parameter" for name in _extensions(recipe)]
    recipe = _without(recipe, _extensions(recipe))
    if recipe.adapters is not None:
        recipe = replace(recipe, adapters=None)
        notes.append("adapters: core is dropped; mergekit merges adapters as full weights")
    for model in recipe.models:
        if reason := _unread(model):
            raise RecipeError(
                f"{reason}; build the model with evomerge merge, or save the model in plain safetensors and name that "
                "folder"
            )
    if recipe.tokenizer_source in ("first", "pad"):
        notes.append(f"vocabulary: {recipe.tokenizer_source} is written as tokenizer_source: base")
        recipe = replace(recipe, tokenizer_source="base")
    if _deviates(recipe):
        notes.append(
            f"{_subject(recipe)}: the seed is dropped; mergekit draws masks of its own (give it --random-seed)"
            if recipe.spec.stochastic
            else f"{_subject(recipe)}: {recipe.spec.deviation}"
        )
    if refused := refused_by_mergekit(recipe):
        recipe = _with_fitting_spread(recipe)
        notes += refused
    return replace(recipe, seed=None, calibration_text=None), tuple(notes)


def differences(recipe: Recipe) -> tuple[str, ...]:
    """Return a sentence for each way in which a recipe of mergekit's gives other weights here, beyond rounding.

    Recipes with a seed, as evomerge writes them, mean our own masks.
    """
    if recipe.seed is not None or recipe.mixture is not None or len(recipe.specs) > 1:
        return ()
    return (f"{_subject(recipe)}: {recipe.spec.deviation}",) if _deviates(recipe) else ()


def refused_by_mergekit(recipe: Recipe) -> tuple[str, ...]:
    """Return a sentence for each spread of della's probabilities that mergekit 0.1.5 may refuse (`fitting_epsilon`).

    For the export, before the models are known: filters and gradients may keep two values from meeting in a tensor.
    """
    if not any(parameter.name == "epsilon" and parameter.per_model for parameter in recipe.spec.parameters):
        return ()
    found = {
        f"epsilon: density {density:g} with epsilon {epsilon:g} leaves (0, 1), which mergekit refuses; it is taken as "
        f"{fitting_epsilon(epsilon, density):g}"
        for part in recipe.canonical().slices
        for source in part.sources
        for density in _values(source.parameters, "density", 1.0)
        for epsilon in _values(source.parameters, "epsilon", _default(recipe, "epsilon"))
        if fitting_epsilon(epsilon, density) != epsilon
    }
    return tuple(sorted(found))


def check_spreads(plans: Iterable[TensorPlan]) -> None:
    """Refuse the spreads of della's probabilities that mergekit 0.1.5 refuses (`fitting_epsilon`).

    Raises
    ------
    RecipeError
        At the first tensor with one.
    """
    for plan in plans:
        for part in plan.contributions:
            density, epsilon = (part.parameters.get(name) for name in ("density", "epsilon"))
            if density is None or epsilon is None:
                continue
            fitting = fitting_epsilon(epsilon, density)
            if fitting != epsilon:
                raise RecipeError(
                    f"epsilon: {part.model} has density {density:g} with epsilon {epsilon:g} at {plan.name}, and "
                    f"density - epsilon to density + epsilon must be within (0, 1); write an epsilon below "
                    f"{min(density, 1 - density):g}, or another density"
                )


def _with_fitting_spread(recipe: Recipe) -> Recipe:
    """Return the canonical recipe with the largest epsilon for each source that all its densities allow."""
    recipe = recipe.canonical()
    slices = []
    for part in recipe.slices:
        base = recipe.base_of(part)
        sources = [source if source.model == base else _with_spread(source, recipe) for source in part.sources]
        slices.append(replace(part, sources=tuple(sources)))
    return replace(recipe, slices=tuple(slices))


def _with_spread(source: Source, recipe: Recipe) -> Source:
    densities = _values(source.parameters, "density", 1.0)
    epsilons = _values(source.parameters, "epsilon", _default(recipe, "epsilon"))
    fitting = min(fitting_epsilon(epsilon, density) for epsilon in epsilons for density in densities)
    if all(fitting_epsilon(epsilon, density) == epsilon for epsilon in epsilons for density in densities):
        return source
    others = tuple((name, setting) for name, setting in source.parameters if name != "epsilon")
    return replace(source, parameters=tuple(sorted((*others, ("epsilon", constant(fitting))))))


def _values(parameters: Parameters, name: str, usual: float) -> list[float]:
    """Return every value that a source's parameter takes anywhere."""
    setting = find(parameters, name)
    listed = [each.value if isinstance(each.value, tuple) else (each.value,) for each in setting]
    open_ended = not any(each.is_catch_all for each in setting)
    return [float(value) for values in listed for value in values] + [usual] * open_ended


def _default(recipe: Recipe, name: str) -> float:
    return float(recipe.spec.parameter(name).default or 0.0)


def _with_one_method(recipe: Recipe) -> Recipe:
    """Return the recipe with its method above the slices if all slices have the same, or can be written with one."""
    return _copies_as_sums(recipe.canonical()) if any(part.merge_method for part in recipe.slices) else recipe


def _copies_as_sums(recipe: Recipe) -> Recipe:
    """Return task arithmetic in some slices and plain copies in all others as task arithmetic in all.

    A copy of a model is its whole task vector over the base, one of the base is none of another model's; equal up to
    rounding. Other recipes are returned as they are.
    """
    bases = {recipe.base_of(part) for part in recipe.slices if recipe.spec_of(part).name == "task_arithmetic"}
    copies = [part for part in recipe.slices if recipe.spec_of(part).name == "passthrough"]
    base = next(iter(bases), None)
    others = [model for model in recipe.models if model != base]
    if (
        {spec.name for spec in recipe.specs} != {"task_arithmetic", "passthrough"}
        or len(bases) != 1
        or base is None
        or any(source.parameters for part in copies for source in part.sources)
    ):
        return recipe

    def summed(part: Slice) -> Slice:
        if part not in copies:
            return replace(part, merge_method=None, base_model=None)
        (source,) = part.sources
        weight = 0.0 if source.model == base else 1.0
        model = others[0] if source.model == base else source.model
        added = Source(model, source.layer_range, (("weight", constant(weight)),))
        return Slice((added, Source(base, source.layer_range)))

    slices = tuple(map(summed, recipe.slices))
    return replace(recipe, merge_method="task_arithmetic", slices=slices, base_model=base).canonical()


def _mixture_obstacles(table: Mixture) -> tuple[str, ...]:
    table = table.canonical()
    cut = [name for name, pieces in table.tensors if len(pieces) > 1]
    found = []
    if cut:
        others = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        found.append(f"evomerge.mixture: the weights change within {cut[0]}{others}; mergekit has one per tensor")
    if table.noises:
        found.append(f"evomerge.mixture: it adds seeded noise ({len(table.noises)} terms); mergekit has none")
    return tuple(found)


def _without_mixture(recipe: Recipe, table: Mixture) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with a weight per tensor: the mean over its entries; noise is left out."""
    notes = []
    table = table.canonical()
    cut = [name for name, pieces in table.tensors if len(pieces) > 1]
    if cut:
        notes.append(f"{len(cut)} tensors get one weight, the mean over their entries; mergekit has one per tensor")
    if table.noises:
        notes.append(f"{len(table.noises)} seeded noises are left out; mergekit has none")
    weights = {name: _mean_weights(pieces) for name, pieces in table.pieces()}
    layers = sorted({at for name in weights if (at := _layer_of(name)) is not None})
    depth = len(layers)
    outer = {name: row for name, row in weights.items() if _layer_of(name) is None}
    parts = [((0, 0), outer)]
    for layer in layers:
        own = {_within(name): row for name, row in weights.items() if _layer_of(name) == layer}
        parts.append(((layer, layer + 1), own))
    parts.append(((depth, depth), outer))
    models = [source.model for source in recipe.slices[0].sources]
    slices = tuple(
        Slice(tuple(Source(model, span, _weights_of(at, own)) for at, model in enumerate(models)))
        for span, own in parts
    )
    plain = replace(
        recipe, mixture=None, slices=slices, parameters=(("normalize", constant(False)),), base_model=recipe.donor
    )
    return plain.canonical(), tuple(notes)


def _weights_of(source: int, rows: dict[str, tuple[float, ...]]) -> Parameters:
    """Return one source's weights as conditions on tensor names, the last for all other tensors."""
    # longer names first: one may contain another
    names = sorted(rows, key=lambda name: (-len(name), name))
    conditions = [Condition(rows[name][source], name) for name in names]
    return (("weight", simplified((*conditions[:-1], Condition(conditions[-1].value)))),)


def _mean_weights(pieces: tuple[Piece, ...]) -> tuple[float, ...]:
    if len(pieces) == 1:
        return pieces[0].weights
    starts = (0, *(piece.end for piece in pieces))
    size = pieces[-1].end
    return tuple(
        sum((piece.end - start) / size * piece.weights[at] for start, piece in zip(starts, pieces, strict=False))
        for at in range(len(pieces[0].weights))
    )


def _layer_of(name: str) -> int | None:
    """Return a tensor's layer, the first number in its name; None outside the layers."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return None if number is None else int(number)


def _within(name: str) -> str:
    """Return a tensor's name within its layer, with the dot before it."""
    return "." + name.partition(f".{_layer_of(name)}.")[2]


def _subject(recipe: Recipe) -> str:
    return f"{recipe.merge_method} masks" if recipe.spec.stochastic else recipe.merge_method


def _deviates(recipe: Recipe) -> bool:
    """Whether the method's deviation has an effect; that of random masks needs a density below 1."""
    if not recipe.spec.stochastic:
        return bool(recipe.spec.deviation)
    scopes = [source.parameters for part in recipe.canonical().slices for source in part.sources]
    values = [condition.value for scope in scopes for condition in find(scope, "density")]
    return any(min(value) < 1 if isinstance(value, tuple) else value < 1 for value in values)


def _extensions(recipe: Recipe) -> tuple[str, ...]:
    """Return our own parameters that the recipe sets to other than their defaults."""
    ours = {parameter.name for parameter in recipe.spec.parameters if parameter.extension}
    return tuple(sorted(ours & set(_parameters(recipe.canonical())))) if ours else ()


def _parameters(recipe: Recipe) -> Iterator[str]:
    for part in recipe.slices:
        for scope in (part.parameters, *(source.parameters for source in part.sources)):
            yield from (name for name, _ in scope)


def _without(recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    """Return the recipe without the parameters `names`."""
    if not names:
        return recipe

    def kept(parameters: Parameters) -> Parameters:
        return tuple((name, setting) for name, setting in parameters if name not in names)

    slices = tuple(
        Slice(
            tuple(replace(source, parameters=kept(source.parameters)) for source in part.sources),
            kept(part.parameters),
            part.base_model,
        )
        for part in recipe.slices
    )
    return replace(recipe, slices=slices, parameters=kept(recipe.parameters))
