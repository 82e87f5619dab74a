import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.genes import Choice, Integer, Real
from search_spaces.spaces.space import SearchSpace

METHODS = ("linear", "ties", "slerp")


class Mixed(SearchSpace):
    """Two reals, a whole number and a choice; the second real only counts for `ties`."""

    genes = (
        Real("weight", -0.5, 1.5, 0.5),
        Integer("repeats", -1, 3, 1),
        Choice("method", METHODS, "ties"),
        Real("density", 0.1, 1.0, 0.5, prior=(0.9, 0.05)),
    )

    def active(self, genotype):
        return np.array([True, True, True, METHODS[int(genotype[2])] == "ties"])

    def decode(self, genotype):
        raise NotImplementedError

    def encode(self, recipe):
        raise NotImplementedError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("low", "high", "start", "message"),
    [
        (1.0, 1.0, 1.0, r"gene g: \[1.0, 1.0\] is not a range; write low < high"),
        (0.0, math.inf, 1.0, "is not a range; write low < high"),
        (math.nan, 1.0, 1.0, "is not a range; write low < high"),
        (0.0, 1.0, 2.0, r"gene g: start 2.0 is not in \[0.0, 1.0\]; write one inside"),
    ],
)
def test_impossible_ranges(low, high, start, message):
    with pytest.raises(RecipeError, match=message):
        Real("g", low, high, start)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Real("g", 0.0, 1.0, 0.5, prior=(2.0, 0.1)), r"prior's mean 2.0 is not in \[0.0, 1.0\]; write one"),
        (lambda: Real("g", 0.0, 1.0, 0.5, prior=(0.5, 0.0)), "standard deviation is 0.0; write one above 0"),
        (lambda: Integer("g", 3, 3, 3), "gene g: 3 to 3 is not a range; write low < high"),
        (lambda: Integer("g", 0, 3, 4), r"gene g: start 4 is not in \[0, 3\]; write one inside"),
        (lambda: Choice("g", ("a",), "a"), r"gene g: \['a'\] is not a choice; write two or more options, each once"),
        (lambda: Choice("g", ("a", "a"), "a"), "is not a choice; write two or more options, each once"),
        (lambda: Choice("g", METHODS, "tie"), "gene g: start 'tie' is not an option; did you mean 'ties'"),
        (lambda: Choice("g", METHODS, "ties", (0.5, 0.5)), "does not fit; write 3 probabilities that sum to one"),
        (lambda: Choice("g", METHODS, "ties", (0.9, 0.9, -0.8)), "write 3 probabilities that sum to one"),
        (lambda: Choice("g", METHODS, "ties").coordinate("slrp"), "'slrp' is not an option; did you mean 'slerp'"),
    ],
)
def test_impossible_genes(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_coordinates_and_values():
    repeats, method = Integer("repeats", -1, 3, 1), Choice("method", METHODS, "ties")
    assert (repeats.low, repeats.high, repeats.start) == (-1.5, 3.5, 1)
    assert (method.low, method.high, method.start) == (0.0, 3.0, 1.5)
    assert [repeats.value(x) for x in (-1.5, -0.51, -0.5, 0.49, 3.5)] == [-1, -1, 0, 0, 3]
    assert [method.value(x) for x in (0.0, 0.99, 1.0, 2.0, 3.0)] == ["linear", "linear", "ties", "slerp", "slerp"]
    assert all(repeats.value(repeats.coordinate(number)) == number for number in range(-1, 4))
    assert all(method.value(method.coordinate(option)) == option for option in METHODS)
    assert Real("weight", 0.0, 1.0, 0.5).coordinate(1.2) == 1.0


@given(data=st.data())
def test_settling_changes_no_value(data):
    space = Mixed()
    point = np.array([data.draw(st.floats(gene.low, gene.high)) for gene in space.genes])
    settled = space.settled(point)
    assert [gene.value(x) for gene, x in zip(space.genes, point, strict=True)] == [
        gene.value(x) for gene, x in zip(space.genes, settled, strict=True)
    ]
    assert settled[[0, 3]].tolist() == point[[0, 3]].tolist()
    assert settled[1] == space.genes[1].value(point[1])
    assert settled[2] % 1 == 0.5


def test_samples_follow_the_priors(rng):
    samples = np.array([Mixed().sample(rng) for _ in range(400)])
    assert abs(samples[:, 3].mean() - 0.9) < 0.02
    assert samples[:, 3].max() <= 1.0
    assert np.all(np.unique(samples[:, 1]) == np.arange(-1, 4))
    assert np.bincount((samples[:, 2] - 0.5).astype(int)).min() > 100  # three options, about 133 each
    skewed = Choice("method", METHODS, "ties", (0.0, 0.25, 0.75))
    drawn = np.bincount([skewed.index(skewed.sample(rng)) for _ in range(400)], minlength=3)
    assert drawn[0] == 0
    assert 250 < drawn[2] < 350


def test_a_prior_far_from_the_bounds_stays_inside(rng):
    gene = Real("g", 0.0, 1.0, 0.5, prior=(1.0, 100.0))
    drawn = [gene.sample(rng) for _ in range(300)]
    assert min(drawn) >= 0.0
    assert max(drawn) <= 1.0
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.06)  # so wide a normal is flat on the range


def test_crossover_takes_discrete_genes_from_a_parent(rng):
    space = Mixed()
    a, b = np.array([0.0, -1.0, 0.5, 0.2]), np.array([1.0, 3.0, 2.5, 0.8])
    children = np.array([space.crossover(a, b, rng) for _ in range(200)])
    assert set(children[:, 1]) == {-1.0, 3.0}
    assert set(children[:, 2]) == {0.5, 2.5}
    assert len(set(zip(children[:, 1], children[:, 2], strict=True))) == 4
    assert len(np.unique(children[:, 0])) == 200


def test_mutation_moves_discrete_genes_to_another_value(rng):
    space, parent = Mixed(), Mixed().start
    children = np.array([space.mutate(parent, rng) for _ in range(400)])
    for index in (1, 2):
        moved = children[children[:, index] != parent[index], index]
        assert 100 < len(moved) < 250  # one of four always, and each with probability 1/4
        values = {space.genes[index].value(x) for x in moved}
        assert values == ({0, 2} if index == 1 else {"linear", "slerp"})


@pytest.mark.parametrize("value", [0, 1])
def test_a_mutated_bit_is_the_other_bit(rng, value):
    bit = Integer("bit", 0, 1, 0)
    assert {bit.another(value, rng) for _ in range(50)} == {1 - value}


def test_mutation_in_a_long_range_takes_steps_both_ways(rng):
    steps = np.array([Integer("n", 0, 100, 50).another(50.0, rng) - 50 for _ in range(400)])
    assert np.all(steps != 0)
    assert abs(steps).mean() == pytest.approx(10 * math.sqrt(2 / math.pi), rel=0.15)
    assert 150 < np.count_nonzero(steps > 0) < 250


def test_mutation_is_not_spent_on_inactive_genes(rng):
    space = Mixed()
    parent = np.array([0.5, 1.0, 0.5, 0.5])  # linear: density is inactive
    assert space.active(parent).tolist() == [True, True, True, False]
    children = np.array([space.mutate(parent, rng) for _ in range(300)])
    assert np.all((children != parent)[:, :3].any(axis=1))


def test_options_of_probability_zero_are_still_options(rng):
    sure = Choice("method", ("linear", "ties"), "ties", (0.0, 1.0))
    assert sure.another(sure.coordinate("ties"), rng) == sure.coordinate("linear")
