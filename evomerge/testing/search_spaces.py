"""Conformance tests for search spaces, as a suite to subclass.

::

    from evomerge.testing import SearchSpaceSuite

    class TestMine(SearchSpaceSuite):
        def space(self):
            return MySpace(...)

pytest then runs the suite on random points, corners and the start of each space that the class gives. If the points of
a space are not recipes, set ``has_recipes = False``: tests of recipes are skipped, and the others compare the points
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.space import Genotype, SearchSpace

POINTS = 8
"""Random points per test; one for the large space."""
MANY = 500
"""Least number of genes of the large space."""

of_recipes = pytest.mark.usefixtures("recipes")


class SearchSpaceSuite:
    """Tests that every search space passes; subclass it as ``Test...`` and give the space.

    Attributes
    ----------
    has_recipes
        Whether its points are recipes.
    """

    has_recipes: ClassVar[bool] = True

    def space(self) -> SearchSpace:
        """Return the space to test: small, with every kind of gene that it can have."""
        raise NotImplementedError("give a space")

    def one_gene(self) -> SearchSpace:
        """Return a space with a single gene. Do not override it if the space always has more."""
        raise NotImplementedError("the suite is run on this space only if the class overrides the method")

    def many_genes(self) -> SearchSpace:
        """Return a space with 500 genes or more. Do not override it if the space cannot have as many."""
        raise NotImplementedError("the suite is run on this space only if the class overrides the method")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test on every space that the class gives."""
        if "subject" in metafunc.fixturenames:
            given = [
                name
                for name in ("space", "one_gene", "many_genes")
                if name == "space" or getattr(type(self), name) is not getattr(SearchSpaceSuite, name)
            ]
            metafunc.parametrize("subject", given, indirect=True)

    @pytest.fixture
    def subject(self, request: pytest.FixtureRequest) -> SearchSpace:
        """One of the spaces that the class gives."""
        space: SearchSpace = getattr(self, request.param)()
        if request.param == "one_gene":
            assert space.dimension == 1
        if request.param == "many_genes":
            assert space.dimension >= MANY
        return space

    @pytest.fixture
    def recipes(self) -> None:
        """Skip a test of recipes if there are none."""
        if not self.has_recipes:
            pytest.skip("its points are not recipes")

    def meaning(self, space: SearchSpace, point: Genotype) -> str | list[float]:
        """Return a value equal for equivalent points: the recipe's hash, or without recipes 9 digits of the genes."""
        return space.decode(point).hash if self.has_recipes else np.round(point, 9).tolist()

    @staticmethod
    def points(space: SearchSpace, seed: int = 0) -> Iterator[Genotype]:
        """Yield the start, corners of the box, the initial population, uniform points, samples and offspring."""
        rng = np.random.default_rng(seed)
        yield space.start
        if space.dimension < MANY:
            yield space.low
            yield space.high
        yield from space.initial_population()
        for _ in range(POINTS if space.dimension < MANY else 1):
            yield rng.uniform(space.low, space.high)
        a, b = space.sample(rng), space.sample(rng)
        yield a
        yield space.mutate(a, rng)
        yield space.crossover(a, b, rng)

    # --- the box ---

    def test_genes_make_a_box(self, subject: SearchSpace) -> None:
        """Names are unique, bounds in order, and the start is inside."""
        assert subject.dimension == len(subject.genes) > 0
        assert len({gene.name for gene in subject.genes}) == subject.dimension
        assert bool((subject.low < subject.high).all())
        assert bool(((subject.low <= subject.start) & (subject.start <= subject.high)).all())

    @of_recipes
    def test_wrong_genotypes_are_refused(self, subject: SearchSpace) -> None:
        """A wrong shape, a coordinate out of bounds, or NaN gives an error that says what to pass."""
        for index in {0, subject.dimension - 1}:
            margin = 0.01 * (subject.high[index] - subject.low[index])
            for value in (subject.low[index] - margin, subject.high[index] + margin, np.nan, np.inf):
                point = np.array(subject.start)
                point[index] = value
                with pytest.raises(RecipeError, match=r"is outside .*; pass a number from"):
                    subject.decode(point)
        with pytest.raises(RecipeError, match="pass an array of shape"):
            subject.decode(np.append(subject.start, 0.0))

    def test_some_gene_is_active(self, subject: SearchSpace) -> None:
        """At every point, `active` returns bool[G] with at least one true."""
        for point in self.points(subject):
            active = subject.active(point)
            assert active.shape == point.shape
            assert active.dtype == np.bool_
            assert bool(active.any())

    # --- genotype and recipe ---

    @of_recipes
    def test_decode_is_total(self, subject: SearchSpace) -> None:
        """Every point decodes to a recipe in canonical form, and `decode` does not change the point."""
        for point in self.points(subject):
            before = np.array(point)
            recipe = subject.decode(point)
            assert recipe.canonical().hash == recipe.hash == subject.decode(point).hash
            assert np.array_equal(point, before)

    @of_recipes
    def test_recipes_survive_yaml(self, subject: SearchSpace) -> None:
        """A recipe written to YAML or plain data reads back equal."""
        for point in self.points(subject):
            recipe = subject.decode(point)
            assert mergekit_yaml.parse(mergekit_yaml.dump(recipe)).hash == recipe.hash
            assert mergekit_yaml.build(mergekit_yaml.as_dict(recipe)) == recipe

    @of_recipes
    def test_encode_inverts_decode(self, subject: SearchSpace) -> None:
        """For every recipe in the space."""
        for point in self.points(subject):
            recipe = subject.decode(point)
            again = subject.encode(mergekit_yaml.parse(mergekit_yaml.dump(recipe)))
            assert subject.decode(again).hash == recipe.hash

    @of_recipes
    def test_encode_refuses_other_models(self, subject: SearchSpace) -> None:
        """A recipe from models that are not in the space has no genotype."""
        recipe = subject.decode(subject.start)
        with pytest.raises(RecipeError):
            subject.encode(recipe.with_models({model: f"{model}-other" for model in recipe.models}))

    @of_recipes
    def test_inactive_genes_have_no_effect(self, subject: SearchSpace) -> None:
        """Points that differ only in inactive genes decode to the same recipe."""
        rng = np.random.default_rng(1)
        for point in self.points(subject):
            other = np.where(subject.active(point), point, rng.uniform(subject.low, subject.high))
            assert subject.decode(other).hash == subject.decode(point).hash

    @of_recipes
    def test_mergekit_gets_it_or_a_reason(self, subject: SearchSpace) -> None:
        """Each thing that mergekit cannot do is named in a sentence, and the rounded recipe needs none of them."""
        for point in self.points(subject):
            recipe = subject.decode(point)
            obstacles = mergekit_export.obstacles(recipe)
            assert all(isinstance(sentence, str) and sentence for sentence in obstacles)
            if not recipe.spec.in_mergekit:
                continue
            rounded, given_up = mergekit_export.rounded(recipe)
            assert bool(given_up) == bool(obstacles)
            assert rounded.mixture is None
            assert rounded.path is None
            assert mergekit_yaml.parse(mergekit_yaml.dump(rounded)) == rounded

    # --- variation ---

    def test_variation_stays_in_the_space(self, subject: SearchSpace) -> None:
        """Samples, children and mutants are in the box, and parents do not change."""
        rng = np.random.default_rng(2)
        parents = [np.array(subject.start), *map(np.array, subject.initial_population()), subject.sample(rng)]
        for _ in range(POINTS):
            a, b = (parents[index] for index in rng.integers(len(parents), size=2))
            before = a.copy(), b.copy()
            children = [subject.crossover(a, b, rng), subject.mutate(a, rng), subject.sample(rng)]
            assert np.array_equal(a, before[0])
            assert np.array_equal(b, before[1])
            for child in children:
                assert child.shape == (subject.dimension,)
                assert child.dtype == np.float64
                assert bool(((child >= subject.low) & (child <= subject.high)).all())
                self.meaning(subject, child)
            parents += children

    def test_discrete_genes_are_copied_and_never_averaged(self, subject: SearchSpace) -> None:
        """`recombine` turns computed coordinates into a recipe whose discrete genes come from the donors."""
        rng = np.random.default_rng(8)
        donors = [subject.mutate(np.array(subject.start), rng), subject.mutate(subject.sample(rng), rng)]
        mean = 0.5 * donors[0] + 0.5 * donors[1]
        for _ in range(POINTS):
            child = subject.recombine(mean, donors, (0.3, 0.7), rng)
            assert child.shape == (subject.dimension,)
            assert bool(((child >= subject.low) & (child <= subject.high)).all())
            taken = (child == donors[0]) | (child == donors[1])
            assert bool(taken[subject.discrete].all())
            self.meaning(subject, child)
        for chosen, shares in enumerate(((1.0, 0.0), (0.0, 1.0))):
            child = subject.recombine(donors[chosen], donors, shares, rng)
            assert self.meaning(subject, child) == self.meaning(subject, donors[chosen])
        if not subject.discrete.any():
            before = rng.bit_generator.state
            assert np.array_equal(subject.recombine(mean, donors, (0.3, 0.7), rng), subject.settled(mean))
            assert rng.bit_generator.state == before

    def test_the_generator_decides(self, subject: SearchSpace) -> None:
        """Equal generators give equal offspring: there is no other source of random numbers."""
        a, b = (subject.sample(np.random.default_rng(seed)) for seed in (3, 4))
        operators = (lambda rng: subject.crossover(a, b, rng), lambda rng: subject.mutate(a, rng), subject.sample)
        for vary in operators:
            first, second = (vary(np.random.default_rng(5)) for _ in range(2))
            assert np.array_equal(first, second)

    def test_mutation_mostly_changes_the_recipe(self, subject: SearchSpace) -> None:
        """A mutant that decodes to its parent's recipe would waste an evaluation."""
        rng = np.random.default_rng(6)
        origin = self.meaning(subject, subject.start)
        mutants = [self.meaning(subject, subject.mutate(np.array(subject.start), rng)) for _ in range(10)]
        assert sum(found != origin for found in mutants) >= 5

    def test_children_of_one_parent_are_that_parent(self, subject: SearchSpace) -> None:
        """Crossing a point with itself gives an equivalent point."""
        rng = np.random.default_rng(7)
        for point in (np.array(subject.start), subject.sample(rng)):
            child = subject.crossover(point, point.copy(), rng)
            assert self.meaning(subject, child) == self.meaning(subject, point)
