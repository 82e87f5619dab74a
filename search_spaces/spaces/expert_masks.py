"""Genes that turn experts on and off, or subtract them, beside the coefficients of another space.

A coefficient near zero is hard to find among many; a choice between leaving an expert out and keeping it is not. Each
expert has such a gene, for the whole merge or for each group of layers. What an expert's own coefficients say is kept
while it is off: they are inactive then.

Letters: G genes, M mask genes (the first ones), I = G - M genes of the inner space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from operator import itemgetter
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice, Source
from search_spaces.recipes.parameter_values import Condition, Parameters, Setting, find
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.layer_groups import LayerGroup, belongs_to, group_label, is_weight_of
from search_spaces.spaces.space import Genotype, SearchSpace

OPTIONS = {"on_off": ("on", "off"), "signed": ("plus", "off", "minus")}
"""Options of a mask, the one without effect first."""
FACTORS = {"on": 1.0, "plus": 1.0, "off": 0.0, "minus": -1.0}
"""What each option multiplies the expert's weights with."""


class ExpertMaskSpace(SearchSpace):
    """The recipes of another space with some experts left out or subtracted; see the module's docstring.

    Parameters
    ----------
    inner
        A space whose recipes weight experts and whose weights are called ``EXPERT.weight[GROUP]``.
    experts
        Name and reference of each expert.
    kind
        Which options a mask has.
    groups
        The layers' groups if each has its own masks; None: one mask per expert.

    Raises
    ------
    RecipeError
        If no weight is searched.
    """

    def __init__(
        self,
        inner: SearchSpace,
        experts: Sequence[tuple[str, str]],
        kind: Literal["on_off", "signed"],
        groups: Sequence[LayerGroup] | None,
    ) -> None:
        self.inner = inner
        self.notes = inner.notes
        options = OPTIONS[kind]
        labels = [""] if groups is None else [group.label for group in groups]
        self._group_of = {i: at for at, group in enumerate(groups or ()) for i in group.slices}
        self._experts = tuple(experts)
        self._masks = tuple(
            Choice(f"{name}.mask[{label}]" if label else f"{name}.mask", options, options[0])
            for label in labels
            for name, _ in experts
        )
        self.genes = (*self._masks, *inner.genes)
        self._owned = self._genes_of(labels, is_weight_of)
        self._all_owned = self._genes_of(labels, belongs_to)
        if not any(len(own) for own in self._owned):
            raise RecipeError("space.masks: no weight is searched that a mask could turn off; remove it")

    def _genes_of(self, labels: Sequence[str], has: Callable[[str, str], bool]) -> list[npt.NDArray[np.int_]]:
        """Return the inner genes that each mask's expert has in the mask's group, by expert and name."""
        owned = []
        for label in labels:
            for name, _ in self._experts:
                own = [
                    index
                    for index, gene in enumerate(self.inner.genes)
                    if has(name, gene.name) and (not label or group_label(gene.name) == label)
                ]
                owned.append(np.array(own, dtype=np.int_))
        return owned

    # --- genotype and recipe ---

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the canonical recipe of `genotype`: the inner one with its weights multiplied by the masks' factors.

        Averages, whose weights are shares, are divided again over the experts that are on.
        """
        point = self._checked(genotype)
        masks, inner = point[: len(self._masks)], point[len(self._masks) :].copy()
        factors = [FACTORS[gene.value(x)] for gene, x in zip(self._masks, masks, strict=True)]
        for own, weights, factor in zip(self._all_owned, self._owned, factors, strict=True):
            if factor == 0.0:
                # Beside a weight of 0, densities count only where experts exclude each other: there the least is taken.
                inner[own] = self.inner.low[own]
                inner[weights] = np.clip(0.0, self.inner.low[weights], self.inner.high[weights])
        recipe = self.inner.decode(inner)
        return _multiplied(recipe, lambda index, model: self._factor(factors, index, model)).canonical()

    def _factor(self, factors: Sequence[float], index: int, model: str) -> float:
        references = [reference for _, reference in self._experts]
        if model not in references:
            return 1.0
        return factors[self._group_of.get(index, 0) * len(self._experts) + references.index(model)]

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`: an expert whose weights are all zero is off, a negative one subtracted.

        Raises
        ------
        RecipeError
            As the inner space's.
        """
        recipe = recipe.canonical()
        weights: list[list[float]] = [[] for _ in self._masks]
        for index, part in enumerate(recipe.slices):
            for mask, source in self._masked_sources(index, part):
                weights[mask] += [float(c.value) for c in _weights(source) if not isinstance(c.value, tuple)]
        chosen = [self._option(mask, own) for mask, own in enumerate(weights)]
        factors = [FACTORS[option] or 1.0 for option in chosen]
        inner = self.inner.encode(_multiplied(recipe, lambda index, model: self._factor(factors, index, model)))
        masks = [gene.coordinate(option) for gene, option in zip(self._masks, chosen, strict=True)]
        return np.concatenate([masks, inner])

    def _masked_sources(self, index: int, part: Slice) -> list[tuple[int, Source]]:
        references = [reference for _, reference in self._experts]
        first = self._group_of.get(index, 0) * len(self._experts)
        return [(first + references.index(s.model), s) for s in part.sources if s.model in references]

    def _option(self, mask: int, weights: Sequence[float]) -> str:
        """Return the option that fits an expert's weights: minus only for what the inner space cannot hold."""
        options, own = self._masks[mask].options, self._owned[mask]
        if not any(weights):
            return "off"
        if "minus" not in options or not len(own):
            return options[0]
        low, high = self.inner.low[own].min(), self.inner.high[own].max()
        plus, minus = (
            np.abs(found - np.clip(found, low, high)).sum() for found in (np.array(weights), -np.array(weights))
        )
        return "minus" if minus < plus else options[0]

    # --- the rest of the interface ---

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G]: the masks, and the coefficients of experts that are on."""
        masks, inner = genotype[: len(self._masks)], genotype[len(self._masks) :]
        active = np.array(self.inner.active(inner))
        for gene, x, own in zip(self._masks, masks, self._all_owned, strict=True):
            if gene.value(x) == "off":
                active[own] = False
        return np.concatenate([np.ones(len(self._masks), dtype=np.bool_), active])

    def starting_at(self, genotype: Genotype) -> Self:
        """Return the same space with its searches beginning at `genotype` (float64[G], inside the box)."""
        moved = copy(self)
        moved.__dict__.pop("start", None)  # cached
        point = self._checked(genotype)
        moved.inner = self.inner.starting_at(point[len(self._masks) :])
        moved._masks = tuple(gene.starting_at(x) for gene, x in zip(self._masks, point.tolist(), strict=False))
        moved.genes = (*moved._masks, *moved.inner.genes)
        return moved

    def structures(self) -> tuple[Recipe, ...]:
        """Return the inner space's: a mask needs nothing more."""
        return self.inner.structures()


def _multiplied(recipe: Recipe, factor: Callable[[int, str], float]) -> Recipe:
    """Return `recipe` (canonical) with each source's weights times ``factor(slice, model)``; averages stay."""
    slices = []
    for index, part in enumerate(recipe.slices):
        if recipe.spec_of(part).weighted_average:
            slices.append(part)
            continue
        sources = [
            source if factor(index, source.model) == 1.0 else _scaled(source, factor(index, source.model))
            for source in part.sources
        ]
        slices.append(replace(part, sources=tuple(sources)))
    return replace(recipe, slices=tuple(slices))


def _scaled(source: Source, factor: float) -> Source:
    scaled = tuple(
        Condition(factor * float(c.value) + 0.0, c.filter)  # -0.0 + 0.0 is 0.0
        for c in _weights(source)
        if not isinstance(c.value, tuple)
    )
    others: Parameters = tuple((name, setting) for name, setting in source.parameters if name != "weight")
    return replace(source, parameters=tuple(sorted((*others, ("weight", scaled)), key=itemgetter(0))))


def _weights(source: Source) -> Setting:
    """Return a canonical source's weights with the default, 1, that its form leaves out."""
    weights = find(source.parameters, "weight")
    return weights if weights and weights[-1].is_catch_all else (*weights, Condition(1.0))
