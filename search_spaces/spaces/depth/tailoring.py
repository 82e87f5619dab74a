"""Tailoring: a model with fewer layers, each kept as it is, taken from another model, or merged from several.

GPTailor (Su et al., arXiv:2506.20480, ICLR 2026): exactly R layers are removed; at each of the others, a bit per
candidate model says whether it takes part. No bit: the layer of the anchor. One: that model's layer. More: task
arithmetic over the base, with a scale per layer,

    θ_l = base_l + s_l · Σ_{m on} (θ_m,l − base_l),    s_l in [0, 1].

Deviations: which layers are removed follows from a key per layer, the R lowest (random keys, Bean 1994), where the
paper draws R distinct indices; so strategies for real genes can search it, too. R may be a gene within bounds. Searches
begin by removing the R layers before the last one, which are worth least in most models (Gromov et al.,
arXiv:2403.17887).

Legend: L layers, C candidate models, R removed layers, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice
from search_spaces.recipes.parameter_values import evaluate, find
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.depth.layer_slices import copied, ends_of, layers_of, reference_of, stacked, summed
from search_spaces.spaces.genes import Choice, Gene, Integer, Real
from search_spaces.spaces.registry import register_space
from search_spaces.spaces.space import Genotype, SearchSpace

_KEPT, _REMOVED = 0.75, 0.25
"""Keys of layers that are kept and of those that are removed, at the start."""
_SPREAD = 0.2
"""Standard deviation of sampled keys."""
_LIKELY = 0.75
"""Probability that a sample leaves a candidate model out of a layer."""

Layers = Annotated[int, Field(ge=0, le=1024)]


@register_space
class TailoringConfig(BaseModel):
    """Fewer layers, each copied from a model or merged from several (GPTailor)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keeps_layers: ClassVar[bool] = False

    kind: Literal["tailoring"] = "tailoring"
    """Which space this is."""
    models: tuple[str, ...] = ()
    """Names of the models that layers are taken and merged from. If empty, all but the base. The anchor alone: layers
    are only removed."""
    anchor: str | None = None
    """Name of the model whose layer is used if no other is chosen; its embeddings, final norm and head are used as
    well. None: the base."""
    remove: Layers | tuple[Layers, Layers] | None = None
    """How many layers are removed; or `[fewest, most]`, between which the search chooses. None: a quarter of them, or
    as many as `max_parameters` requires."""
    max_parameters: float | None = Field(default=None, gt=0, le=1)
    """Largest share of the base's weights that the result may have, embeddings and head included. None: any."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Range of the factor of merged task vectors, one per layer, within [-10, 10]."""

    @model_validator(mode="after")
    def _ordered(self) -> TailoringConfig:
        if isinstance(self.remove, tuple) and not self.remove[0] < self.remove[1]:
            raise ValueError(f"remove: {list(self.remove)} is not a range; write [fewest, most], or one number")
        if not -10 <= self.scale[0] < self.scale[1] <= 10:
            raise ValueError(f"scale: {list(self.scale)} is not a range within [-10, 10]; write one such as [0, 1]")
        return self

    def build(self, context: SpaceContext) -> TailoringSpace:
        """Return the space over these models."""
        return TailoringSpace(self, context)


class TailoringSpace(SearchSpace):
    """Recipes with R layers fewer than the models have.

    Parameters
    ----------
    config
        How many layers are removed, and what the others are made of.
    context
        The models.

    Attributes
    ----------
    fewest, most
        Bounds of the number of removed layers, R; equal if it is not searched.

    Raises
    ------
    RecipeError
        If a model is not known, no layer would be left, or no number of layers is as small as `max_parameters`.
    """

    def __init__(self, config: TailoringConfig, context: SpaceContext) -> None:
        self.config, self.context = config, context
        self.depth = context.layout.num_layers
        self.base = next(iter(context.models.values()))
        anchor = config.anchor
        self.anchor = self.base if anchor is None else reference_of(anchor, context, "space.anchor")
        self._ends = ends_of(self.anchor, self.depth)
        names = config.models or tuple(context.models)[1:]
        self.candidates = {name: reference_of(name, context, "space.models") for name in names}
        if list(self.candidates.values()) == [self.anchor]:
            self.candidates = {}
        self.fewest, self.most = _bounds(config, context)
        if not self.candidates and self.most == 0:
            raise RecipeError("space.remove: nothing is removed and nothing merged; write remove: 1 or more, or models")
        self._scaled = len(self.candidates) > 1
        self.genes = tuple(self._genes())

    def _genes(self) -> Iterator[Gene]:
        """Yield R if it is searched, L keys, L · C bits, and L scales where several models can be merged."""
        removed = range(max(0, self.depth - 1 - self.fewest), self.depth - 1)
        if self.fewest < self.most:
            yield Integer("remove", self.fewest, self.most, self.fewest)
        for layer in range(self.depth):
            start = _REMOVED if layer in removed else _KEPT
            yield Real(f"keep[layer {layer}]", 0.0, 1.0, start, (start, _SPREAD))
        for layer in range(self.depth):
            for name in self.candidates:
                yield Choice(f"{name}[layer {layer}]", ("off", "on"), "off", (_LIKELY, 1 - _LIKELY))
        low, high = self.config.scale
        if self._scaled:
            for layer in range(self.depth):
                yield Real(f"scale[layer {layer}]", low, high, float(np.clip(1 / len(self.candidates), low, high)))

    # --- parts of a genotype ---

    @property
    def _keys(self) -> slice:
        first = int(self.fewest < self.most)
        return slice(first, first + self.depth)

    @property
    def _bits(self) -> slice:
        return slice(self._keys.stop, self._keys.stop + self.depth * len(self.candidates))

    @property
    def _scales(self) -> slice:
        return slice(self._bits.stop, self._bits.stop + self.depth * self._scaled)

    def _kept(self, point: Genotype) -> npt.NDArray[np.bool_]:
        """Return which layers are kept, bool[L]: all but the R with the lowest keys."""
        gene = self.genes[0]
        count = gene.value(point[0]) if isinstance(gene, Integer) else self.fewest
        kept = np.ones(self.depth, dtype=np.bool_)
        kept[np.argsort(point[self._keys], kind="stable")[:count]] = False
        return kept

    def _on(self, point: Genotype) -> npt.NDArray[np.bool_]:
        """Return which candidates take part in each layer, bool[L, C]."""
        on: npt.NDArray[np.bool_] = point[self._bits].reshape(self.depth, -1) >= 1.0
        return on

    # --- genotype and recipe ---

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of `genotype`: a slice per kept layer, copied or merged."""
        point = self._checked(genotype)
        on, scales = self._on(point), point[self._scales]
        references = np.array(list(self.candidates.values()), dtype=object)
        layers = []
        for layer in np.flatnonzero(self._kept(point)).tolist():
            chosen: list[str] = references[on[layer]].tolist()
            if len(chosen) > 1:
                experts = [model for model in chosen if model != self.base]
                layers.append(summed(experts, self.base, layer, float(scales[layer])))
            else:
                layers.append(copied(chosen[0] if chosen else self.anchor, layer))
        return stacked(layers, self._ends, self.context)

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of a recipe of whole layers in their order.

        Raises
        ------
        RecipeError
            If it has too many or too few layers, repeats or swaps some, or makes one of other models, by another method
            or with another scale than the space has.
        """
        parts = layers_of(recipe, self._ends, self.anchor, self.context)
        removed = self.depth - len(parts)
        if not self.fewest <= removed <= self.most:
            bounds = f"{self.depth - self.most} to {self.depth - self.fewest}"
            raise RecipeError(f"the recipe has {len(parts)} layers, the space allows {bounds}; set space.remove to fit")
        point = np.array(self.start)
        point[self._keys], point[self._bits] = _REMOVED, 0.5
        if self.fewest < self.most:
            point[0] = removed
        before = -1
        for part in parts:
            before = self._encode_layer(part, before, point)
        return point

    def _encode_layer(self, part: Slice, before: int, point: Genotype) -> int:
        """Write one layer into `point` and return its number, which must be above `before`."""
        layer = part.sources[0].start
        if layer <= before or any(source.start != layer for source in part.sources):
            raise RecipeError(f"the recipe's layer {layer} is out of order; give one that only leaves layers out")
        point[self._keys.start + layer] = _KEPT
        chosen, scale = self._made_of(part)
        for at, model in enumerate(self.candidates.values()):
            if model in chosen:
                point[self._bits.start + layer * len(self.candidates) + at] = 1.5
        if scale is not None:
            point[self._scales.start + layer] = scale
        return layer

    def _made_of(self, part: Slice) -> tuple[set[str], float | None]:
        """Return the candidates that a layer is made of, and the scale if they are merged."""
        models = [source.model for source in part.sources]
        known = set(self.candidates.values())
        if part.merge_method == "passthrough" and not part.sources[0].parameters:
            (model,) = models
            if model != self.anchor and model not in known:
                raise RecipeError(f"the recipe's model '{model}' is not in the space; use only {self._names}")
            return {model} & known, None
        experts = [source for source in part.sources if source.model != self.base]
        scales = {evaluate(find(source.parameters, "weight"), "", 0.0) for source in experts}
        alone = len(experts) == 1
        if part.merge_method != "task_arithmetic" or part.parameters or part.base_model != self.base or len(scales) > 1:
            raise RecipeError(
                f"the recipe merges layer {part.sources[0].start} by {part.merge_method} or with several weights; give "
                "layers that are copied, or summed by task_arithmetic over the base with one weight"
            )
        chosen = {source.model for source in experts} | ({self.base} if alone else set())
        if not chosen <= known:
            raise RecipeError(f"the recipe merges {', '.join(sorted(chosen))}; use only {self._names}")
        scale = float(scales.pop() or 0.0)
        low, high = self.config.scale
        if not low <= scale <= high:
            raise RecipeError(f"the recipe's weight {scale} is outside [{low}, {high}]; set space.scale to contain it")
        return chosen, scale

    @property
    def _names(self) -> str:
        return ", ".join(dict.fromkeys([self.anchor, *self.candidates.values()]))

    def shortfall(self, recipe: Recipe) -> str | None:
        """Return that a recipe has more layers than the space allows; None if it has not."""
        layers, most = recipe.num_layers or self.depth, self.depth - self.fewest
        return f"{layers} layers, where the most are {most}," if layers > most else None

    def structures(self) -> tuple[Recipe, ...]:
        """Return the start, and the same layers merged from all candidates."""
        merged = np.array(self.start)
        merged[self._bits] = 1.5
        return (self.decode(self.start), self.decode(merged))

    # --- variation ---

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G]: all keys, the bits of kept layers, and scales of merged ones."""
        point = np.asarray(genotype, dtype=np.float64)
        kept, on = self._kept(point), self._on(point)
        active = np.ones(self.dimension, dtype=np.bool_)
        active[self._keys] = self.most > 0
        active[self._bits] = np.repeat(kept, len(self.candidates))
        if self._scaled:
            active[self._scales] = kept & (on.sum(axis=1) > 1)
        return active

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child that takes each layer, with its key, bits and scale, from either parent."""
        first = rng.random(self.depth) < 0.5
        number = rng.random(int(self.fewest < self.most)) < 0.5
        bits, scales = np.repeat(first, len(self.candidates)), first if self._scaled else first[:0]
        return np.where(np.concatenate([number, first, bits, scales]), a, b)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` with a removed layer in a kept one's place, or with other genes moved, with probability ½ each."""
        kept = self._kept(a)
        swaps = 0 < kept.sum() < self.depth
        if not swaps or (self.candidates and rng.random() < 0.5):
            return super().mutate(a, rng)
        out, back = rng.choice(np.flatnonzero(kept)), rng.choice(np.flatnonzero(~kept))
        child: Genotype = a.copy()
        keys = child[self._keys]
        if keys[out] == keys[back]:  # their order follows from their places, which a swap would keep
            keys[back], keys[out] = 1.0, 0.0
        else:
            keys[out], keys[back] = keys[back], keys[out]
        child[self._keys] = keys
        return child


def _bounds(config: TailoringConfig, context: SpaceContext) -> tuple[int, int]:
    """Return the fewest and the most layers that are removed; raises as `TailoringSpace` does."""
    depth = context.layout.num_layers
    needed = _needed(config.max_parameters, context)
    if config.remove is None:
        count = needed if config.max_parameters is not None else max(1, round(depth / 4))
        fewest, most = min(count, depth - 1), min(count, depth - 1)
    else:
        fewest, most = config.remove if isinstance(config.remove, tuple) else (config.remove, config.remove)
    if most >= depth:
        raise RecipeError(f"space.remove: the models have {depth} layers and one must stay; write at most {depth - 1}")
    if most < needed:
        raise RecipeError(
            f"space.max_parameters: {config.max_parameters} of the weights needs {needed} of {depth} layers removed, "
            f"and space.remove allows {most}; write remove: {needed}, or a larger share"
        )
    return max(fewest, needed), most


def _needed(share: float | None, context: SpaceContext) -> int:
    """Return how many layers must go for any choice of them to leave at most this share of the weights."""
    if share is None:
        return 0
    layout, sizes = context.layout, context.sizes
    layers = sorted(
        sum(sizes[layout.layer_tensor(at, name)] for name in names) for at, names in enumerate(layout.layers)
    )
    total = sum(sizes[name] for name in layout.tensors())
    left = [total - sum(layers[:count]) for count in range(len(layers))]  # the smallest layers go
    fitting = [count for count, weights in enumerate(left) if weights <= share * total]
    if not fitting:
        raise RecipeError(
            f"space.max_parameters: {share} of the weights cannot be met: with one layer left, {left[-1] / total:.3f} "
            f"remain; write at least {-(-1000 * left[-1] // total) / 1000}"
        )
    return fitting[0]
