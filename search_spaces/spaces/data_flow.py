"""The data-flow space: paths through the layers of several models, with factors of the residual stream.

Akiba et al. 2024, arXiv:2403.13187 (Sakana's DFS). The layers of all models form a sequence that is repeated r times.
One bit per slot says whether the slot is on the path. The base's first and last layer begin and end every path. Before
a layer, the residual stream is multiplied by a factor, per slot or per pair of layers (W_ij), which may come from a
small network (`ScaleNetwork`). The layers' weights do not change; `layer_path` explains how factors become part of an
ordinary model.

With ``order: free``, a random key per slot (Bean 1994) gives its position on the path, so that paths are permutations
with repeats and skips. Searches begin at the base: its layers in the first repetition, and all factors 1.

Any model, or a merge from a recipe file, may be the anchor: it takes the base's place in all of this, gives embeddings,
final norm and head, and its first and last layer begin and end the paths.

Legend: T models, L layers each, r repeats, S = T·L·r − 2r slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import MAX_LAYERS, PathLayer
from search_spaces.recipes.layer_path import path_of, path_recipe, scales_obstacle
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.genes import Choice, Gene, Real, low_and_high
from search_spaces.spaces.registry import beginning_at, recipe_from, register_space
from search_spaces.spaces.space import Genotype, SearchSpace

Layer = tuple[str, int]
Array = npt.NDArray[np.float64]

ANCHOR = "anchor"
"""Name of a merge from a recipe file among the models of the pool."""

_OPTIONS = ("skip", "use")
_LIKELY = 0.9  # probability that a sample agrees with the base at a slot
_SPREAD = 0.1  # standard deviation of sampled factors
_DIGITS = 9  # of factors, so that they can be recovered from their products
_SAME = 1e-10
"""Factors that differ less are one factor."""
HIDDEN = 8
"""Hidden units of a network, if the search file does not say how many."""
LEVELS = 10_000
"""Steps of a network's output from 0 to 1, and from 0 to -1."""


class ScaleRange(BaseModel):
    """Range of the factors of the residual stream, which begin at 1; `[low, high]` for short."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    low: float = Field(default=0.5, gt=0, le=1000, allow_inf_nan=False)
    """Smallest factor, above 0 and at most 1."""
    high: float = Field(default=1.5, le=1000, allow_inf_nan=False)
    """Largest factor, at least 1."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return low_and_high(value)

    @model_validator(mode="after")
    def _around_one(self) -> ScaleRange:
        if not (self.low <= 1 <= self.high and self.low < self.high):
            raise ValueError(f"scale: [{self.low}, {self.high}] does not contain 1; write a range such as [0.5, 1.5]")
        return self


@register_space
class DataFlowConfig(BaseModel):
    """Paths through the layers of the models, with scales (Sakana's data-flow space)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keeps_layers: ClassVar[bool] = False

    kind: Literal["data_flow"] = "data_flow"
    """Which space this is."""
    models: tuple[str, ...] = ()
    """Names of the models whose layers are used in addition to the anchor's. If empty, all models."""
    anchor: str | None = None
    """Model, or recipe file of a merge of all layers, in which paths begin and end. None: the base."""
    start: str | None = None
    """Recipe file of a path at which searches begin. None: the anchor's layers in their order."""
    repeats: int = Field(default=2, ge=1, le=100)
    """Repetitions of the sequence of all layers of all models: a layer can be used this many times."""
    order: Literal["slots", "free"] = "slots"
    """`slots`: layers keep the order of the sequence (Sakana's). `free`: any order, by a random key per slot."""
    scales: Literal["none", "slot", "transition", "network"] = "slot"
    """Factors of the residual stream before a layer: none, one per slot, one per pair of consecutive layers (Sakana's
    matrix W), or the output of a small network for the pair and its position on the path, with `hidden` + 1 genes."""
    hidden: int = Field(default=HIDDEN, ge=1, le=1000)
    """Hidden units of `scales: network`."""
    scale: ScaleRange = ScaleRange()
    """Range of the factors."""
    max_layers: int | None = Field(default=None, ge=2, le=10_000)
    """Largest number of layers. Longer paths are truncated before the last layer. None: twice the base's number."""

    @model_validator(mode="after")
    def _hidden_units_of_a_network(self) -> DataFlowConfig:
        if self.hidden != HIDDEN and self.scales != "network":
            raise ValueError(f"hidden: scales: {self.scales} has no network; write scales: network, or remove hidden")
        return self

    def build(self, context: SpaceContext) -> SearchSpace:
        """Return the space over these models; raise a `RecipeError` if a file cannot be used."""
        space = DataFlowSpace(self, context)
        if self.start is None:
            return space
        others = "remove the key to begin at the anchor"
        return beginning_at(self.start, recipe_from(self.start, "space.start", others), space, context)


class ScaleNetwork:
    """Sakana's π_θ(i, j, t), for W as a network: the factor of a transition from layer i to layer j at step t.

    With y in {1, tanh(A x + b)} for the models and relative depths of i and j and the relative step, x,

        z = v · y, clipped to [-1, 1] and rounded to steps of 1 / LEVELS;  factor = high^z where z >= 0, else low^-z.

    v, float64[H + 1], are the genes; zeros give factors of 1. A and b are constants of the architecture, drawn once: so
    z is linear in the genes, and the genes of given factors follow from a linear programme. Deviation: the paper's θ is
    all weights of its network; one whose A is searched could not be found again from a recipe.

    Parameters
    ----------
    models
        Names of the models whose layers are used.
    depth
        Layers of each.
    hidden
        H.
    scale
        Range of the factors.
    longest
        Layers of the longest path.
    """

    def __init__(self, models: Sequence[str], depth: int, hidden: int, scale: ScaleRange, longest: int) -> None:
        self._number = {name: index for index, name in enumerate(models)}
        self._depth, self._longest = depth, longest
        # The legacy generator, whose numbers are the same in every version of numpy.
        drawn = np.random.RandomState(0).standard_normal((2 * len(models) + 4, hidden))
        self._input, self._bias = drawn[:-1], drawn[-1]
        steps = np.arange(-LEVELS, LEVELS + 1) / LEVELS
        self._table = np.round(np.where(steps >= 0, scale.high ** np.abs(steps), scale.low ** np.abs(steps)), _DIGITS)

    def genes(self) -> Iterator[Gene]:
        """Yield the genes: the output's bias and the weights of the hidden units."""
        for index in range(len(self._bias) + 1):
            yield Real(f"scale.network[{index}]", -1.0, 1.0, 0.0, (0.0, _SPREAD))

    def factors(self, genes: Genotype, layers: Sequence[Layer]) -> Array:
        """Return the factor before each layer of a path but the first, float64[N - 1]."""
        output = np.clip(self._units(layers) @ genes, -1.0, 1.0)
        return np.asarray(self._table[np.rint(output * LEVELS).astype(np.int64) + LEVELS], dtype=np.float64)

    def genes_of(self, factors: Array, layers: Sequence[Layer]) -> Genotype:
        """Return genes that give these factors, float64[H + 1], small ones where many do; the nearest where none do.

        The nearest are those whose largest distance of an output z from what its factor needs is the smallest.
        """
        units = self._units(layers)
        first = np.searchsorted(self._table, factors - _SAME)  # of the steps that give a factor
        last = np.searchsorted(self._table, factors + _SAME) - 1
        above = np.clip(first, 1, 2 * LEVELS)
        nearest = above - (factors - self._table[above - 1] < self._table[above] - factors)
        first, last = np.minimum(first, nearest), np.maximum(last, nearest)
        low = np.where(first == 0, -np.inf, (first - LEVELS - 0.5) / LEVELS)
        high = np.where(last == 2 * LEVELS, np.inf, (last - LEVELS + 0.5) / LEVELS)
        genes, outside = _least_outside(units, low, high)
        return genes if outside >= 0 else _smallest(units, low - outside / 2, high + outside / 2)

    def _units(self, layers: Sequence[Layer]) -> Array:
        """Return 1 and the hidden units for each transition of a path, float64[N - 1, H + 1]."""
        one_hot = np.eye(len(self._number))[[self._number[name] for name, _ in layers]]
        depth = 2.0 * np.array([[layer] for _, layer in layers]) / (self._depth - 1) - 1.0
        step = 2.0 * np.arange(1, len(layers))[:, None] / self._longest - 1.0
        inputs = np.hstack((one_hot[:-1], one_hot[1:], depth[:-1], depth[1:], step))
        return np.hstack((np.ones_like(step), np.tanh(inputs @ self._input + self._bias)))


def _least_outside(units: Array, low: Array, high: Array) -> tuple[Genotype, float]:
    """Return genes in [-1, 1] whose outputs are least outside of their ranges, and by how much; below 0: inside."""
    slack = np.ones((len(units), 1))
    rows = np.vstack((np.hstack((units, -slack)), np.hstack((-units, -slack))))
    bounds = [*[(-1.0, 1.0)] * units.shape[1], (-1.0, None)]
    found = _solved(np.append(np.zeros(units.shape[1]), 1.0), rows, np.concatenate((high, -low)), bounds)
    return found[:-1], float(found[-1])


def _smallest(units: Array, low: Array, high: Array) -> Genotype:
    """Return genes in [-1, 1] whose outputs are in their ranges, with the smallest sum of sizes."""
    both = np.hstack((units, -units))
    rows = np.vstack((both, -both))
    found = _solved(np.ones(both.shape[1]), rows, np.concatenate((high, -low)), [(0.0, 1.0)] * both.shape[1])
    return found[: units.shape[1]] - found[units.shape[1] :]


def _solved(costs: Array, rows: Array, limits: Array, bounds: Sequence[tuple[float, float | None]]) -> Array:
    """Return x that minimises costs · x with rows x <= limits, by a linear programme that has a solution."""
    from scipy.optimize import linprog

    used = np.isfinite(limits)
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(costs, rows[used], limits[used], bounds=bounds, method="highs", options=options)
    return np.asarray(found.x, dtype=np.float64)


class DataFlowSpace(SearchSpace):
    """Paths through the layers of some models.

    Parameters
    ----------
    config
        Slots, order and factors.
    context
        The models.
    pool
        Name and reference of the models whose layers are used, the anchor first. None: those that the config names. A
        merge, which has no reference, has None as its reference.

    Attributes
    ----------
    merge
        The anchor's recipe; None: the anchor is a model, or its recipe is not known here.

    Raises
    ------
    RecipeError
        If a model is not known, there are too few layers, or factors cannot be written into such models.
    """

    def __init__(
        self, config: DataFlowConfig, context: SpaceContext, pool: Mapping[str, str | None] | None = None
    ) -> None:
        self.config = config
        self.context = context
        self.merge: Recipe | None = None
        if pool is None:
            self.merge = _anchor_recipe(config.anchor, context)
            self.pool = _pool(config, context, self.merge)
        else:
            self.pool = dict(pool)
        self.base = next(iter(self.pool))
        depth = context.layout.num_layers
        if depth < 2:
            raise RecipeError("space: the models have one layer; a path needs a first and a last one")
        self.first: Layer = (self.base, 0)
        self.last: Layer = (self.base, depth - 1)
        if config.scales != "none" and (reason := scales_obstacle(context.layout)) is not None:
            raise RecipeError(f"space.scales: {reason}; write scales: none")
        nodes = [(name, layer) for name in self.pool for layer in range(depth)]
        inner = [node for node in nodes if node not in (self.first, self.last)]
        self.slots: list[Layer] = inner * config.repeats
        if not self.slots:
            raise RecipeError("space: nothing is left between the first and the last layer; add models or repeats")
        self.max_layers = min(config.max_layers or 2 * depth, MAX_LAYERS)
        self._pairs = self._transitions(nodes)
        self._network: ScaleNetwork | None = None
        if config.scales == "network":
            self._network = ScaleNetwork(list(self.pool), depth, config.hidden, config.scale, self.max_layers)
        self.genes = tuple(self._genes(inner))

    def _transitions(self, nodes: Sequence[Layer]) -> dict[tuple[Layer, Layer], int]:
        """Number the pairs of layers that can follow each other; empty unless each has its own factor."""
        if self.config.scales != "transition":
            return {}
        pairs = [(a, b) for a in nodes if a != self.last for b in nodes if b != self.first]
        return {pair: index for index, pair in enumerate(pairs)}

    def _genes(self, inner: Sequence[Layer]) -> Iterator[Gene]:
        """Yield bits, factors, keys: S bits; S + 1 factors, one per pair, or a network's H + 1 genes; S keys."""
        labels = [_label(slot) + f" #{index // len(inner) + 1}" for index, slot in enumerate(self.slots)]
        for index, label in enumerate(labels):
            on = index < len(inner) and self.slots[index][0] == self.base
            prior = (1 - _LIKELY, _LIKELY) if on else (_LIKELY, 1 - _LIKELY)
            yield Choice(f"use[{label}]", _OPTIONS, _OPTIONS[on], prior)
        scale, around = self.config.scale, (1.0, _SPREAD)
        into = [*labels, "last"] if self.config.scales == "slot" else []
        into += [f"{_label(a)} > {_label(b)}" for a, b in self._pairs]
        for label in into:
            yield Real(f"scale[{label}]", scale.low, scale.high, 1.0, around)
        if self._network is not None:
            yield from self._network.genes()
        if self.config.order == "free":
            for index, label in enumerate(labels):
                yield Real(f"key[{label}]", 0.0, 1.0, (index + 0.5) / len(labels))

    # --- parts of a genotype ---

    @property
    def _factors(self) -> slice:
        counts = {"slot": len(self.slots) + 1, "transition": len(self._pairs), "network": self.config.hidden + 1}
        count = counts.get(self.config.scales, 0)
        return slice(len(self.slots), len(self.slots) + count)

    @property
    def _keys(self) -> slice:
        count = len(self.slots) if self.config.order == "free" else 0
        return slice(self._factors.stop, self._factors.stop + count)

    def _used(self, point: Genotype) -> npt.NDArray[np.int64]:
        """Return the slots on the path, in its order."""
        used = np.flatnonzero(point[: len(self.slots)] >= 1.0)
        if self.config.order == "free":
            used = used[np.argsort(point[self._keys][used], kind="stable")]
        return used[: self.max_layers - 2]

    def _layers(self, used: Sequence[int]) -> list[Layer]:
        """Return the layers of the path through these slots."""
        return [self.first, *(self.slots[slot] for slot in used), self.last]

    def _factor_places(self, used: Sequence[int]) -> list[int]:
        """Return the index of the factor before each layer of the path but the first; all genes of a network."""
        if self.config.scales == "slot":
            return [*used, len(self.slots)]
        if self.config.scales == "transition":
            return [self._pairs[pair] for pair in pairwise(self._layers(used))]
        return list(range(self._factors.stop - self._factors.start))

    def _factors_before(self, point: Genotype, used: Sequence[int]) -> Array:
        """Return the factor before each layer of the path but the first."""
        genes = point[self._factors]
        if self._network is not None:
            return self._network.factors(genes, self._layers(used))
        return np.ones(len(used) + 1) if self.config.scales == "none" else genes[self._factor_places(used)]

    # --- genotype and recipe ---

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of the path: passthrough, with scales of the tensors that add to the residual stream."""
        return self.recipe_of(self.path(genotype))

    def path(self, genotype: Genotype) -> tuple[PathLayer, ...]:
        """Return the path of `genotype`, the first and the last layer included."""
        point = self._checked(genotype)
        used = self._used(point).tolist()
        factors = np.append(1.0, np.round(self._factors_before(point, used), _DIGITS))
        products = np.cumprod(factors).tolist()  # c_k
        return tuple(
            PathLayer(self.pool[name], layer, 1.0 / product)
            for (name, layer), product in zip(self._layers(used), products, strict=True)
        )

    def recipe_of(self, path: Sequence[PathLayer]) -> Recipe:
        """Return the recipe of a path through the pool."""
        if self.merge is not None:
            return replace(self.merge, path=tuple(path)).canonical()
        return path_recipe(
            path,
            self.pool[self.base] or next(iter(self.context.models.values())),
            self.context.layout.num_layers,
            dtype=self.context.dtype,
            out_dtype=self.context.out_dtype,
        )

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of a passthrough recipe.

        Raises
        ------
        RecipeError
            If its path does not begin and end with the base's first and last layer, uses layers of other models, or
            uses a layer more often, or in another order, than there are slots. Of a merge as the anchor: if the recipe
            is not that merge with a path.
        """
        depth = self.context.layout.num_layers
        if self.merge is not None:
            if replace(recipe, path=None, out_dtype=self.merge.out_dtype).expanded(depth) != self.merge:
                raise RecipeError(
                    f"the recipe is not that of space.anchor with a path; give one of {self.config.anchor}"
                )
            return self.genotype_of(recipe.path or tuple(PathLayer(None, layer) for layer in range(depth)))
        path = path_of(recipe, depth)
        base = self.pool[self.base]
        if recipe.slices[0].sources[0].model != base:
            raise RecipeError(f"the recipe's embeddings are not the base's; take them from {base}")
        return self.genotype_of(path)

    def genotype_of(self, path: Sequence[PathLayer]) -> Genotype:
        """Return the genotype of a path; raises as `encode` does."""
        names = {reference: name for name, reference in self.pool.items()}
        foreign = [layer.model for layer in path if layer.model not in names]
        if foreign:
            raise RecipeError(
                f"the recipe's model '{foreign[0]}' is not in the space; use only {', '.join(map(str, names))}"
            )
        layers: list[Layer] = [(names[layer.model], layer.layer) for layer in path]
        if removed := [label for label, layer in zip(layers, path, strict=True) if layer.scale <= 0]:
            raise RecipeError(
                f"the recipe scales {_label(removed[0])} by 0 or less, and factors are above 0; leave the layer out"
            )
        if len(layers) < 2 or (layers[0], layers[-1]) != (self.first, self.last) or path[0].scale != 1.0:
            raise RecipeError(
                f"the recipe's path does not lead from {_label(self.first)} to {_label(self.last)}; begin and end it "
                "with these layers"
            )
        if len(layers) > self.max_layers:
            raise RecipeError(f"the recipe has {len(layers)} layers; set space.max_layers to that at least")
        used = self._slots_of(layers[1:-1])
        point = np.array(self.start)
        point[: len(self.slots)] = 0.5  # skip
        point[used] = 1.5  # use
        self._write_factors(point, used, path)
        if self.config.order == "free":
            keys = point[self._keys]
            keys[used] = (np.arange(len(used)) + 1) / (len(used) + 1)
            point[self._keys] = keys
        return np.clip(point, self.low, self.high)

    def _write_factors(self, point: Genotype, used: Sequence[int], path: Sequence[PathLayer]) -> None:
        products = np.array([1 / layer.scale for layer in path])
        factors = np.round(products[1:] / products[:-1], _DIGITS)
        if self.config.scales == "none" and (factors != 1).any():
            raise RecipeError("the recipe scales layers, the space does not; set space.scales: slot")
        values = point[self._factors]
        if self._network is not None:
            values = self._network.genes_of(factors, self._layers(used))
        elif self.config.scales != "none":
            for place, factor in zip(self._factor_places(used), factors.tolist(), strict=True):
                values[place] = factor
        point[self._factors] = values

    def _slots_of(self, layers: Sequence[Layer]) -> list[int]:
        """Return the first free slot for each layer of a path; after the previous one if the order is fixed."""
        used: list[int] = []
        for layer in layers:
            after = used[-1] + 1 if used and self.config.order == "slots" else 0
            free = (slot for slot in range(after, len(self.slots)) if slot not in used and self.slots[slot] == layer)
            slot = next(free, None)
            if slot is None:
                raise RecipeError(f"the recipe's path has no slot for {_label(layer)}; set space.repeats higher")
            used.append(slot)
        return used

    # --- variation ---

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G]: all bits, and the factors and keys of layers on the path."""
        active = np.zeros(self.dimension, dtype=np.bool_)
        active[: len(self.slots)] = True
        used = self._used(np.asarray(genotype))
        active[self._factors.start + np.array(self._factor_places(used.tolist()), dtype=np.int64)] = True
        if self.config.order == "free":
            active[self._keys.start + np.flatnonzero(np.asarray(genotype)[: len(self.slots)] >= 1.0)] = True
        return active

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child that takes each slot, with its factor and its key, from either parent."""
        slots = len(self.slots)
        first = rng.random(slots) < 0.5
        parts = [first]
        if self.config.scales == "slot":
            parts += [first, rng.random(1) < 0.5]
        else:
            parts.append(rng.random(self._factors.stop - self._factors.start) < 0.5)
        if self.config.order == "free":
            parts.append(first)
        return np.where(np.concatenate(parts), a, b)


def _anchor_recipe(anchor: str | None, context: SpaceContext) -> Recipe | None:
    """Return the recipe of an anchor that is a merge; None for a model.

    Raises
    ------
    RecipeError
        If the anchor is neither a model nor a recipe file, or the recipe is not a merge of all layers of the models.
    """
    if anchor is None or anchor in context.models:
        return None
    models, depth = ", ".join(context.models), context.layout.num_layers
    if ANCHOR in context.models:
        raise RecipeError(f"models.{ANCHOR}: space.anchor gives its merge this name; rename the model")
    recipe = recipe_from(anchor, "space.anchor", f"one of the models {models}").expanded(depth)
    foreign = [model for model in recipe.models if model not in context.models.values()]
    if foreign:
        raise RecipeError(f"space.anchor: its model '{foreign[0]}' is not in the search file; use only {models}")
    if recipe.num_layers != depth or recipe.path is not None:
        raise RecipeError(f"space.anchor: {anchor} is not a merge of all {depth} layers in their order; give another")
    return replace(recipe, out_dtype=context.out_dtype).canonical()


def _pool(config: DataFlowConfig, context: SpaceContext, merge: Recipe | None) -> dict[str, str | None]:
    """Return name and reference of the models whose layers are used, the anchor first."""
    for name in config.models:
        if name not in context.models:
            raise RecipeError(f"space.models: there is no '{name}'; use only {', '.join(context.models)}")
    base = next(iter(context.models))
    anchor = ANCHOR if merge is not None else config.anchor or base
    kept = {anchor, *(config.models or context.models)}
    pool: dict[str, str | None] = {anchor: None if merge is not None else context.models[anchor]}
    return pool | {name: reference for name, reference in context.models.items() if name in kept}


def _label(layer: Layer) -> str:
    return f"{layer[0]}.{layer[1]}"
