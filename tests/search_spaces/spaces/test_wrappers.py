"""Spaces around another: fixed genes, and settings in all recipes."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from evomerge.testing.search_spaces import SearchSpaceSuite
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.mixture import MixtureConfig
from search_spaces.spaces.registry import build_space
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.two_stage import TwoStageConfig
from search_spaces.spaces.wrappers import FixedGenesSpace, RecipeSettingsSpace, TiedGenesSpace, WrappedSpace

NOISY = MixtureConfig(chunks=4, crossover="linear", noise={"terms": 2, "sigma": 0.1})


class TestRecipeSettingsAroundAMixture(SearchSpaceSuite):
    @pytest.fixture(autouse=True)
    def _context(self, context):
        self.context = context

    def space(self):
        return RecipeSettingsSpace(build_space(NOISY, self.context), adapters="core")


class TestFixedGenesAroundTwoStages(SearchSpaceSuite):
    @pytest.fixture(autouse=True)
    def _context(self, context):
        self.context = context

    def space(self):
        config = TwoStageConfig(parameters={"layers_per_group": 2}, flow={"repeats": 1, "order": "free"})
        fixed = {"*[final]": 0.25, "use[x.2*": "use", "use[ops.*": "skip"}
        return FixedGenesSpace(build_space(config, self.context), fixed)


class TestBothAroundAMixture(TestRecipeSettingsAroundAMixture):
    def space(self):
        return FixedGenesSpace(super().space(), {"y[*": 0.0})


class Peculiar(CoefficientSpace):
    """A space with operators of its own, which say in every gene that they ran."""

    def sample(self, rng):
        return np.full(self.dimension, 0.1)

    def crossover(self, a, b, rng):
        return np.minimum(a, b) + 0.2

    def recombine(self, point, donors, shares, rng):
        return donors[-1] + 0.3

    def mutate(self, a, rng):
        return a + 0.4

    def initial_population(self):
        return (np.full(self.dimension, 0.5), np.full(self.dimension, 0.6))

    def settled(self, points):
        return np.round(points, 1)


def wrapped(kind, inner):
    return kind(inner, {"*[final]": 0.25}) if kind is FixedGenesSpace else kind(inner, tokenizer_source="union")


@pytest.mark.parametrize("kind", [FixedGenesSpace, RecipeSettingsSpace])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapped_space_keeps_its_own_operators(kind, depth, layout, models):
    space = wrapped(kind, Peculiar(CoefficientConfig(), models, layout))
    for _ in range(depth - 1):
        space = RecipeSettingsSpace(space, adapters="core")
    rng = np.random.default_rng(0)
    a, b = np.full(space.dimension, 0.0), np.full(space.dimension, 0.7)
    assert (space.sample(rng) == 0.1).all()
    assert (space.crossover(a, b, rng) == 0.2).all()
    assert (space.recombine(a, (a, b), (0.5, 0.5), rng) == 0.7 + 0.3).all()
    assert (space.mutate(a, rng) == 0.4).all()
    assert [point[0] for point in space.initial_population()] == [0.5, 0.6]
    assert (space.settled(b + 0.04) == 0.7).all()
    assert all(point.shape == (space.dimension,) for point in (space.sample(rng), *space.initial_population()))


def test_general_operators_work_on_the_free_genes_alone(layout, models):
    """A step of a mutation never goes to a gene with a fixed value, which would be an evaluation for nothing."""
    space = FixedGenesSpace(CoefficientSpace(CoefficientConfig(), models, layout), {"ops.*": 0.5, "x.*": 0.5})
    for seed in range(20):
        assert not np.array_equal(space.mutate(space.start, np.random.default_rng(seed)), space.start)


def test_the_base_class_forwards_every_operation():
    """An operation that is added to `SearchSpace` and not here would be lost when a space is wrapped."""
    operations = {
        name for name, member in vars(SearchSpace).items() if inspect.isfunction(member) and not name.startswith("_")
    }
    assert {"decode", "encode", "crossover", "mutate", "settled"} < operations
    assert operations <= vars(WrappedSpace).keys()


def test_fixed_genes_have_their_values_wherever_the_search_begins(layout, models):
    inner = CoefficientSpace(CoefficientConfig(layers_per_group=4), models, layout)
    space = FixedGenesSpace(inner, {"*[final]": 0.25, "ops.weight[final]": 0.75})
    assert [gene.name for gene in space.genes] == [gene.name for gene in inner.genes if "final" not in gene.name]
    moved = space.starting_at(np.full(space.dimension, 1.0))
    assert (moved.start == 1.0).all()
    found = dict(zip([gene.name for gene in inner.genes], inner.encode(moved.decode(moved.start)), strict=True))
    assert (found["ops.weight[final]"], found["x.weight[final]"], found["x.weight[embeddings]"]) == (0.75, 0.25, 1.0)


def test_a_gene_that_is_called_like_a_pattern_is_fixed_alone(layout, models):
    """A tied gene has the name of its pattern, which `evo_merging` fixes by name."""
    tied = TiedGenesSpace(CoefficientSpace(CoefficientConfig(), models, layout), {"*[final]": ["x.*"]})
    space = FixedGenesSpace(tied, {"*[final]": 0.25})
    assert [gene.name for gene in space.genes] == [gene.name for gene in tied.genes if gene.name != "*[final]"]


def test_fixed_genes_that_do_not_fit(layout, models):
    inner = CoefficientSpace(CoefficientConfig(), models, layout)
    with pytest.raises(RecipeError, match=r"no gene is called 'z\[final\]'; write a name such as ops.weight"):
        FixedGenesSpace(inner, {"z[final]": 1})
    with pytest.raises(RecipeError, match="every gene has a fixed value"):
        FixedGenesSpace(inner, {"*": 1})


@pytest.mark.parametrize(
    "config",
    [CoefficientConfig(method=["ties", "slerp"]), NOISY, TwoStageConfig(parameters={"kind": "mixture", "chunks": 5})],
    ids=lambda config: config.kind,
)
def test_settings_change_recipes_and_nothing_else(config, context):
    inner = build_space(config, context)
    moved = np.where(inner.discrete, inner.start, (inner.start + inner.high) / 2)
    space = RecipeSettingsSpace(inner, tokenizer_source="union")
    assert np.array_equal(space.start, inner.start)
    space, inner = space.starting_at(moved), inner.starting_at(moved)
    assert np.array_equal(space.start, moved)
    assert np.array_equal(space.initial_population(), inner.initial_population())
    assert space.decode(moved) == replace(inner.decode(moved), tokenizer_source="union").canonical()
    assert len(space.structures()) == len(inner.structures())
    assert {recipe.tokenizer_source for recipe in space.structures()} == {"union"}
    rng = np.random.default_rng(0)
    points = rng.uniform(inner.low, inner.high, (8, inner.dimension))
    assert np.array_equal(space.settled(points), inner.settled(points))
    assert all(np.array_equal(space.active(point), inner.active(point)) for point in points)
    for seed in range(5):
        a, b = (inner.sample(np.random.default_rng(10 + seed + index)) for index in (0, 100))
        for operator, points in (("crossover", (a, b)), ("mutate", (a,)), ("sample", ())):
            ours, theirs = (getattr(of, operator)(*points, np.random.default_rng(seed)) for of in (space, inner))
            assert np.array_equal(ours, theirs)
