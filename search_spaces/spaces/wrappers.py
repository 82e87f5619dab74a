"""Spaces around another space: genes with a fixed value, genes that share one, recipes with further settings.

`WrappedSpace` forwards the whole interface of `SearchSpace` to the inner space, its operators included, so that a
wrapper only says what it changes: genotypes, recipes, or both. Legend: G genes of the wrapper, I of the inner space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.genes import Choice, Gene
from search_spaces.spaces.space import Genotype, SearchSpace

Value = TypeVar("Value", bound=np.generic)


class WrappedSpace(SearchSpace):
    """Another space's points, recipes and operators; a base for wrappers.

    A subclass overrides what it changes: `_inward` and `_outward` for genotypes, `_dressed` and `_undressed` for
    recipes.
    An operator that the inner space does not define itself works on the wrapper's genes, as `SearchSpace` has it.

    Parameters
    ----------
    inner
        The space that decodes.
    """

    def __init__(self, inner: SearchSpace) -> None:
        self.inner = inner
        self.genes = self._outer_genes(inner.genes)
        self.notes = inner.notes

    # --- what a wrapper changes ---

    def _outer_genes(self, genes: tuple[Gene, ...]) -> tuple[Gene, ...]:
        """Return those of the inner space's genes that are the wrapper's."""
        return genes

    def _inward(self, points: Genotype) -> Genotype:
        """Return the inner space's genotypes float64[..., I] for the wrapper's, float64[..., G]."""
        return points

    def _outward(self, points: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """Return the wrapper's values [..., G], one per gene, for the inner space's, [..., I]."""
        return points

    def _dressed(self, recipe: Recipe) -> Recipe:
        """Return the wrapper's recipe for one of the inner space."""
        return recipe

    def _undressed(self, recipe: Recipe) -> Recipe:
        """Return the inner space's recipe for one of the wrapper."""
        return recipe

    # --- the interface, forwarded ---

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What each gene is in the inner space."""
        return tuple(self._outward(np.array(self.inner.coefficients, dtype=np.str_)).tolist())

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of the inner space's point, as the wrapper has it."""
        return self._dressed(self.inner.decode(self._inward(self._checked(genotype))))

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of the inner space's point for the recipe."""
        return self._outward(self.inner.encode(self._undressed(recipe)))

    def starting_at(self, genotype: Genotype) -> Self:
        """Return the same space with its searches beginning at `genotype` (float64[G], inside the box)."""
        moved = copy(self)
        moved.__dict__.pop("start", None)  # cached
        moved.inner = self.inner.starting_at(self._inward(self._checked(genotype)))
        moved.genes = moved._outer_genes(moved.inner.genes)
        return moved

    def structures(self) -> tuple[Recipe, ...]:
        """Return the inner space's, as the wrapper has them."""
        return tuple(map(self._dressed, self.inner.structures()))

    def shortfall(self, recipe: Recipe) -> str | None:
        """Return what the inner space says."""
        return self.inner.shortfall(self._undressed(recipe))

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part in the recipe, bool[G]."""
        return self._outward(self.inner.active(self._inward(genotype)))

    def observation(self, genotype: Genotype) -> Genotype:
        """Return what the inner space shows."""
        return self.inner.observation(self._inward(genotype))

    def settled(self, points: Genotype) -> Genotype:
        """Settle as the inner space does."""
        return self._outward(self.inner.settled(self._inward(points)))

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return the inner space's founders."""
        return tuple(self._outward(point) for point in self.inner.initial_population())

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw as the inner space does."""
        if not self._has_own("sample"):
            return super().sample(rng)
        return self._outward(self.inner.sample(rng))

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Cross as the inner space does."""
        if not self._has_own("crossover"):
            return super().crossover(a, b, rng)
        return self._outward(self.inner.crossover(self._inward(a), self._inward(b), rng))

    def recombine(
        self, point: Genotype, donors: Sequence[Genotype], shares: Sequence[float], rng: np.random.Generator
    ) -> Genotype:
        """Recombine as the inner space does."""
        if not self._has_own("recombine"):
            return super().recombine(point, donors, shares, rng)
        inner = [self._inward(donor) for donor in donors]
        return self._outward(self.inner.recombine(self._inward(point), inner, shares, rng))

    def similarity(self, a: Genotype, b: Genotype) -> float:
        """Compare as the inner space does."""
        return self.inner.similarity(self._inward(a), self._inward(b))

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Mutate as the inner space does."""
        if not self._has_own("mutate"):
            return super().mutate(a, rng)
        return self._outward(self.inner.mutate(self._inward(a), rng))

    def _has_own(self, operator: str) -> bool:
        """Whether the inner space, or one that it wraps, has an operator of its own in place of the general one."""
        if isinstance(self.inner, WrappedSpace):
            return self.inner._has_own(operator)
        return getattr(type(self.inner), operator) is not getattr(SearchSpace, operator)


class FixedGenesSpace(WrappedSpace):
    """The recipes of another space in which some genes have a fixed value; the others are this space's genes.

    Parameters
    ----------
    inner
        Any space.
    values
        Value (a number, or a choice's option) by the gene's name, in which ``*`` stands for any text; where several
        fit, the last decides.

    Raises
    ------
    RecipeError
        If a name fits no gene, a value is outside of its gene's range, or no gene is left.
    """

    def __init__(self, inner: SearchSpace, values: Mapping[str, Any]) -> None:
        self._fixed = np.zeros(inner.dimension, dtype=np.bool_)
        self._values = np.array(inner.start)
        for pattern, value in values.items():
            self._fix(inner.genes, pattern, value)
        if self._fixed.all():
            raise RecipeError("space.fixed: every gene has a fixed value; remove an entry")
        super().__init__(inner)

    def _fix(self, genes: tuple[Gene, ...], pattern: str, value: Any) -> None:
        for index in _called(pattern, genes, "space.fixed"):
            gene = genes[index]
            wanted: Any = value
            if isinstance(gene, Choice) and isinstance(value, bool):
                wanted = "on" if value else "off"  # YAML reads on and off as truth values
            try:
                x: float = gene.coordinate(wanted)
                fits = gene.value(x) == wanted
            except (TypeError, ValueError):  # text for a number, or no option of a choice
                fits = False
            if not fits:
                known = (
                    f"of {', '.join(gene.options)}" if isinstance(gene, Choice) else f"from {gene.low} to {gene.high}"
                )
                raise RecipeError(f"space.fixed: {wanted} is not in {gene.name}'s range; write one {known}")
            self._fixed[index], self._values[index] = True, x

    def _outer_genes(self, genes: tuple[Gene, ...]) -> tuple[Gene, ...]:
        return tuple(gene for gene, fixed in zip(genes, self._fixed, strict=True) if not fixed)

    def _inward(self, points: Genotype) -> Genotype:
        whole: Genotype = np.broadcast_to(self._values, (*np.shape(points)[:-1], len(self._values))).copy()
        whole[..., ~self._fixed] = points
        return whole

    def _outward(self, points: npt.NDArray[Value]) -> npt.NDArray[Value]:
        free: npt.NDArray[Value] = points[..., ~self._fixed]
        return free


class TiedGenesSpace(WrappedSpace):
    """The recipes of another space in which some genes are equal; each such set is one gene of this space.

    Parameters
    ----------
    inner
        Any space.
    ties
        Patterns of the genes' names, in which ``*`` stands for any text, by the name of the joint gene.

    Raises
    ------
    RecipeError
        If a pattern fits fewer than two genes, two patterns fit one gene, or tied genes have other ranges.
    """

    def __init__(self, inner: SearchSpace, ties: Mapping[str, Sequence[str]]) -> None:
        owners = np.full(inner.dimension, -1)
        for number, (name, patterns) in enumerate(ties.items()):
            place = f"space.tie.{name}"
            found = [index for pattern in patterns for index in _called(pattern, inner.genes, place)]
            if len(found) < 2:
                only = f"only {inner.genes[found[0]].name} is called so" if found else "there is no pattern"
                raise RecipeError(f"{place}: {only}; write a pattern of several")
            for index in found:
                if owners[index] >= 0:
                    raise RecipeError(f"{place}: {inner.genes[index].name} is tied twice; name it in one tie")
                owners[index] = number
            _check_alike([inner.genes[index] for index in found], place)
        firsts = [int(np.argmax(owners == number)) if number >= 0 else index for index, number in enumerate(owners)]
        self._names = {firsts[int(np.argmax(owners == number))]: name for number, name in enumerate(ties)}
        self._heads = np.unique(firsts)
        """First gene of each set, in the inner space's order."""
        self._set_of = np.searchsorted(self._heads, firsts)
        super().__init__(inner)
        self.genes = self._outer_genes(inner.starting_at(self._inward(self._means(inner.start))).genes)
        names = [gene.name for gene in self.genes]
        taken = next((name for name in ties if not name or names.count(name) > 1), None)
        if taken is not None:
            raise RecipeError(f"space.tie: '{taken}' is the name of another gene or empty; give the joint gene its own")

    def _outer_genes(self, genes: tuple[Gene, ...]) -> tuple[Gene, ...]:
        return tuple(replace(genes[head], name=self._names.get(head, genes[head].name)) for head in self._heads)

    def _inward(self, points: Genotype) -> Genotype:
        whole: Genotype = np.asarray(points, dtype=np.float64)[..., self._set_of]
        return whole

    def _outward(self, points: npt.NDArray[Value]) -> npt.NDArray[Value]:
        heads: npt.NDArray[Value] = points[..., self._heads]
        return heads

    def _means(self, point: Genotype) -> Genotype:
        """Return each set's mean, float64[G], exactly the common value if all are equal; of choices the first."""
        return np.array(
            [
                point[head] if self.inner.genes[head].discrete or (own == own[0]).all() else own.mean()
                for number, head in enumerate(self._heads)
                for own in (point[self._set_of == number],)
            ]
        )

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of the nearest recipe: tied genes have their mean."""
        return self._means(self.inner.encode(self._undressed(recipe)))

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G]: those of which one member does."""
        active = np.zeros(self.dimension, dtype=np.bool_)
        active[self._set_of[self.inner.active(self._inward(genotype))]] = True
        return active


def _called(pattern: str, genes: Sequence[Gene], place: str) -> list[int]:
    """Return the indices of the genes whose names fit a pattern; `RecipeError` if there is none."""
    matches = re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch
    names = [gene.name for gene in genes]
    # A joint gene without a name of its own is called like its pattern, which fits others, too.
    found = [index for index, name in enumerate(names) if (name == pattern if pattern in names else matches(name))]
    if not found:
        raise RecipeError(f"{place}: no gene is called '{pattern}'; write a name such as {genes[0].name}")
    return found


def _check_alike(genes: Sequence[Gene], place: str) -> None:
    first = genes[0]
    for gene in genes[1:]:
        options = getattr(first, "options", None), getattr(gene, "options", None)
        if (
            type(gene) is not type(first)
            or (gene.low, gene.high) != (first.low, first.high)
            or options[0] != options[1]
        ):
            raise RecipeError(
                f"{place}: {first.name} and {gene.name} have different ranges; tie genes that mean the same"
            )


class FoundedSpace(WrappedSpace):
    """Another space whose first population has given points, besides its start and its own.

    Parameters
    ----------
    inner
        Any space.
    founders
        Its points, float64[G] each.
    """

    def __init__(self, inner: SearchSpace, founders: Sequence[Genotype]) -> None:
        self._founders = tuple(founders)
        super().__init__(inner)

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return the start, the founders, and the inner space's own founders, each point once."""
        points = (self.start.copy(), *self._founders, *self.inner.initial_population())
        return tuple({point.tobytes(): point for point in points}.values())


class RecipeSettingsSpace(WrappedSpace):
    """Another space's points and operators; its recipes with settings written into them.

    Parameters
    ----------
    inner
        The space that decodes.
    settings
        Fields of `Recipe` and their values: whose vocabulary the result has, how adapters are merged.
    """

    def __init__(self, inner: SearchSpace, **settings: Any) -> None:
        self._settings = settings
        super().__init__(inner)

    def _dressed(self, recipe: Recipe) -> Recipe:
        return replace(recipe, **self._settings).canonical()

    def _undressed(self, recipe: Recipe) -> Recipe:
        cleared: dict[str, Any] = dict.fromkeys(self._settings)  # the settings say nothing about the point
        return replace(recipe, **cleared)
