"""Raw weights: SLERP against its textbook form, split points, noise, and the box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.digits_niches.raw import RawWeights, slerp_scales
from search_spaces.recipes.errors import RecipeError


def slerp(a, b, t):
    """Shoemake's formula on whole vectors, one line."""
    omega = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def parents(seed, length):
    rng = np.random.default_rng(seed)
    return rng.normal(size=length), rng.normal(size=length)


class Draws:
    """A generator that gives a chosen ratio and place."""

    def __init__(self, ratio, place):
        self.ratio, self.place = ratio, place

    def random(self):
        return self.ratio

    def integers(self, high):
        assert self.place < high
        return self.place


@given(seed=st.integers(0, 999), ratio=st.floats(0, 1), place=st.integers(0, 11))
def test_the_angle_of_the_whole_serves_both_parts(seed, ratio, place):
    a, b = parents(seed, 12)
    child = RawWeights(12).crossover(a, b, Draws(ratio, place))
    expected = np.concatenate([slerp(a, b, ratio)[:place], slerp(a, b, 1 - ratio)[place:]])
    assert np.allclose(child, expected, atol=1e-9)


@given(seed=st.integers(0, 999), ratio=st.floats(0, 1), place=st.integers(2, 9))
def test_each_part_has_its_own_angle(seed, ratio, place):
    a, b = parents(seed, 12)
    child = RawWeights(12, angle="part").crossover(a, b, Draws(ratio, place))
    parts = slerp(a[:place], b[:place], ratio), slerp(a[place:], b[place:], 1 - ratio)
    inside = np.clip(np.concatenate(parts), -10.0, 10.0)  # opposite parts give large factors
    assert np.allclose(child, inside, atol=1e-9)


def test_without_a_split_point_one_ratio_serves_the_whole_vector():
    a, b = parents(0, 12)
    rng = np.random.default_rng(5)
    child = RawWeights(12, split=False).crossover(a, b, rng)
    assert np.allclose(child, slerp(a, b, np.random.default_rng(5).random()))


def test_parallel_and_zero_vectors_are_interpolated_linearly():
    a = np.array([1.0, 2.0])
    assert slerp_scales(a, 3 * a, 0.25) == (0.75, 0.25)
    assert slerp_scales(a, -a, 0.25) == (0.75, 0.25)
    assert slerp_scales(a, 0 * a, 0.25) == (0.75, 0.25)


@pytest.mark.parametrize("angle", ["whole", "part"])
def test_children_of_equal_parents_are_their_parents_and_nothing_is_changed_in_place(angle):
    a, b = parents(1, 30)
    before = a.copy(), b.copy()
    space, rng = RawWeights(30, angle=angle), np.random.default_rng(0)
    for _ in range(20):
        assert np.allclose(space.crossover(a, a, rng), a)
        space.crossover(a, b, rng)
        space.mutate(a, rng)
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])


def test_noise_and_random_networks_have_their_standard_deviations():
    space, rng = RawWeights(20_000, spread=0.5, mutation=0.02), np.random.default_rng(0)
    assert np.std(space.sample(rng)) == pytest.approx(0.5, rel=0.03)
    start = np.ones(20_000)
    moved = space.mutate(start, rng) - start
    assert np.std(moved) == pytest.approx(0.02, rel=0.03)
    assert abs(moved.mean()) < 1e-3


def test_nothing_leaves_the_box():
    space, rng = RawWeights(500, spread=5.0, mutation=5.0, bound=1.0), np.random.default_rng(0)
    a, b = space.sample(rng), space.sample(rng)
    for point in (a, b, space.crossover(a, -a, rng), space.mutate(a, rng)):
        assert np.all((space.low <= point) & (point <= space.high))


def test_founders_are_copies_and_the_first_is_the_start():
    networks = [np.full(4, 0.5), np.arange(4.0)]
    space = RawWeights(4, founders=networks)
    space.initial_population()[0][:] = 9.0
    assert np.array_equal(space.initial_population()[0], networks[0])
    assert np.array_equal(space.start, networks[0])
    assert [gene.name for gene in space.genes] == [f"weight[{i}]" for i in range(4)]
    assert space.dimension == 4
    assert np.array_equal(RawWeights(3).start, np.zeros(3))


def test_it_has_no_recipes():
    with pytest.raises(RecipeError, match="score the genotype itself"):
        RawWeights(3).decode(np.zeros(3))
    with pytest.raises(RecipeError, match="search for it in a space of merges"):
        RawWeights(3).encode(None)


def test_founders_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match=r"shape \(2,\); give arrays of shape \(3,\)"):
        RawWeights(3, founders=[np.zeros(2)])
    for bad in (np.nan, 11.0):
        with pytest.raises(RecipeError, match="raise `bound`"):
            RawWeights(3, founders=[np.array([0.0, 0.0, bad])])
