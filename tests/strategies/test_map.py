"""MAP: surrogates that are right where the metrics are quadratic, fronts without evaluations, nested blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.strategies import Evaluated, MapConfig
from evomerge.strategies.map import Frame, gene_blocks
from evomerge.strategies.nsga2 import by_crowding
from evomerge.strategies.nsga3 import ByReferencePoints
from evomerge.strategies.quadratic import coefficients_of, fitted
from evomerge.strategies.surrogate_front import crossed, mutated, predicted_front, spread_out
from evomerge.testing.planted import mixed, reals
from fitness.pareto import hypervolume
from fitness.results import Evaluation

PEAKS = np.array([[0.2, 0.7, 0.5], [0.7, 0.3, 0.5]])
"""Best point of each of two tasks, in the unit box."""


def task_scores(unit):
    """Return two metrics whose logits are quadratic forms."""
    return 1 / (1 + np.exp(-(1.5 - 9 * ((unit - PEAKS) ** 2).sum(axis=1))))


def search(config, space, evaluations, seed=0, scores=task_scores):
    strategy = config.resolved(space, noise=0.0, evaluations=evaluations).build(space, seed)
    found = []
    for _ in range(evaluations):
        (candidate,) = strategy.ask(1)
        values = scores((candidate.genotype - space.low) / (space.high - space.low))
        found.append(values)
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", tuple(values), (0.0, 0.0), shares=(0.5, 0.5)))])
    return np.array(found), strategy


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_quadratic_form_is_found_from_as_many_points_as_it_has_coefficients(coordinates, seed):
    """On both scales, a little more than the fewest points give the metric at other points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (coefficients_of(coordinates) + 6, coordinates))
    shape, slope = rng.normal(size=(coordinates, coordinates)), rng.normal(size=coordinates)

    def form(at):
        return 0.3 + at @ slope + np.einsum("nk,kl,nl->n", at, shape, at)

    exact = np.zeros(len(points))
    others = rng.uniform(-0.5, 0.5, (20, coordinates))
    plain = fitted(points, 5 + form(points), exact, np.ones(len(points)))
    assert not plain.bounded
    assert np.abs(plain.predicted(others) - 5 - form(others)).max() < 0.15 * (1 + np.abs(form(points)).max())
    shares = 1 / (1 + np.exp(-0.3 * form(points)))
    bounded = fitted(points, shares, exact, np.ones(len(points)))
    assert bounded.bounded
    assert np.abs(bounded.predicted(others) - 1 / (1 + np.exp(-0.3 * form(others)))).max() < 0.1


def test_scores_of_few_items_count_less():
    """Of two answers at one place, the fit follows the one from more items."""
    points, values = np.zeros((2, 1)), np.array([0.2, 0.8])
    errors = np.sqrt(0.16 / np.array([400.0, 4.0]))
    assert fitted(points, values, errors, np.ones(2)).predicted(np.zeros((1, 1)))[0] < 0.25


def test_a_prediction_is_cautious_where_nothing_is_known():
    points = np.linspace(-0.2, 0.2, 12)[:, None]
    fit = fitted(points, 0.5 + points[:, 0] + 0.01 * np.cos(40 * points[:, 0]), np.zeros(12), np.ones(12))
    near, far = (fit.predicted(np.array([[x]])) - fit.predicted(np.array([[x]]), 1.0) for x in (0.0, 1.0))
    assert far[0] > 2 * near[0] > 0


@pytest.mark.parametrize("survive", [by_crowding, ByReferencePoints()])
def test_the_front_of_known_metrics(survive):
    """Between two peaks the front is the line that joins them."""

    def predict(points):
        return -((points[:, None, :] - PEAKS) ** 2).sum(axis=2), np.maximum(points[:, 2] - 0.6, 0)

    rng = np.random.default_rng(0)
    points, values, missed = predicted_front(predict, rng.random((60, 3)), 60, survive, rng)
    assert not missed.any() and np.array_equal(values, predict(points)[0])
    along = PEAKS[1] - PEAKS[0]
    share = (points - PEAKS[0]) @ along / (along @ along)
    assert np.abs(points - PEAKS[0] - share[:, None] * along).max() < 0.1
    assert share.min() < 0.1 and share.max() > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_children_stay_in_the_box(coordinates, count, seed):
    rng = np.random.default_rng(seed)
    parents = rng.integers(0, 2, (count, coordinates)).astype(float)
    for children in (crossed(parents, rng), mutated(parents, rng)):
        assert children.shape == parents.shape and children.min() >= 0 and children.max() <= 1


def test_points_are_spread_out():
    line = np.linspace(0, 1, 11)[:, None]
    assert spread_out(line, line[:1], 2) == [10, 5]
    assert sorted(spread_out(line[:3], line, 9)) == [0, 1, 2]


def test_few_dozen_evaluations_give_the_front():
    """From 24 evaluations of three genes, nearly as much volume as the tasks' whole front has."""
    line = PEAKS[0] + np.linspace(0, 1, 200)[:, None] * (PEAKS[1] - PEAKS[0])
    best = hypervolume([task_scores(point) for point in line], (0, 0))
    found, strategy = search(MapConfig(generations=40, population=40), reals(3), 24)
    assert hypervolume(found, (0, 0)) > 0.95 * best
    guess = task_scores((strategy.recommend() - strategy.space.low) / 2.0)
    assert guess.sum() > 0.97 * max(task_scores(point).sum() for point in line)


def test_nested_blocks_get_further_than_their_points_allow_at_once():
    """Twelve genes have 91 coefficients; blocks of three need 10 each, and their mixture 15."""
    space, rng = reals(12), np.random.default_rng(1)
    peaks = np.clip(0.4 + rng.normal(0, 0.25, (2, 12)), 0, 1)

    def scores(unit):
        return 1 / (1 + np.exp(-(1.5 - 4 * ((unit - peaks) ** 2).sum(axis=1))))

    with pytest.raises(ValueError, match=r"raise it by 2 or more, write fewer genes, or strategy.nested: true"):
        MapConfig().resolved(space, noise=0.0, evaluations=90)
    found, strategy = search(MapConfig(nested=True, block=3, generations=20, population=30), space, 90, scores=scores)
    start = scores((space.start - space.low) / (space.high - space.low))
    best = max(scores(peaks[0] + share * (peaks[1] - peaks[0])).sum() for share in np.linspace(0, 1, 50))
    assert found.sum(axis=1).max() - start.sum() > 0.8 * (best - start.sum())
    assert strategy._frame.coordinates == 2  # four blocks, two of their mixtures, the last level


def test_blocks_are_the_box_with_the_other_genes_at_the_start():
    start = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    frames = gene_blocks(start, 2)
    assert [frame.coordinates for frame in frames] == [2, 2, 1]
    assert frames[1].outside(np.array([0.0, 1.0])).tolist() == [0.2, 0.4, 0.0, 1.0, 1.0]
    inside = frames[1].inside(np.array([0.2, 0.4, 0.3, 0.9, 1.0]))
    assert inside is not None and np.allclose(inside, [0.3, 0.9])
    assert frames[1].inside(np.array([0.3, 0.4, 0.3, 0.9, 1.0])) is None
    assert Frame(start, 1.5 * np.eye(5)[:1]).outside(np.array([1.0]))[0] == 1.0


REFUSED = {
    "choices": (mixed(3), {}, 200, r"fits quadratic forms of real genes and method1 is a choice .* write kind: nsga2"),
    "many genes": (reals(31), {}, 5000, r"fits up to 30 genes at once and the space has 31; .* strategy.nested: true"),
    "few points": (reals(3), {"points": 7}, 200, r"points 7 are too few: .* of 3 genes needs 10; write 3 more"),
    "a small budget": (reals(3), {}, 10, r"10 points .* raise it by 1 or more"),
    "nested": (reals(6), {"nested": True, "block": 2}, 30, r"6 points for a quadratic form of 2 genes.*raise it by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_search_is_refused_with_what_it_can(name):
    space, given_settings, evaluations, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        MapConfig(**given_settings).resolved(space, noise=0.0, evaluations=evaluations)


def test_a_front_of_one_point_is_searched_around():
    """Where the tasks agree there is one best point; it is not proposed over and over."""
    space = reals(2)
    found, strategy = search(
        MapConfig(points=8, batch=6, generations=20, population=20),
        space,
        32,
        scores=lambda unit: task_scores(np.append(unit, 0.5))[[0, 0]],
    )
    assert len(np.unique(found[:, 0])) > 24 and strategy._generation.number == 4


def test_a_constraint_keeps_the_front_where_it_is_met():
    """Candidates that violate it rank behind; later ones are proposed where the violation is predicted to be 0."""
    space = reals(2)
    strategy = (
        MapConfig(points=8, batch=4, generations=20, population=30)
        .resolved(space, noise=0.0, evaluations=40)
        .build(space, 0)
    )
    missed = []
    for _ in range(40):
        (candidate,) = strategy.ask(1)
        unit = (candidate.genotype - space.low) / (space.high - space.low)
        values, violation = tuple(task_scores(np.append(unit, 0.5))), max(0.0, float(unit[0]) - 0.4)
        missed.append(violation)
        result = Evaluation("ok", values, (0.0, 0.0), shares=(0.5, 0.5), violation=violation)
        strategy.tell([Evaluated(candidate.id, result)])
    assert np.mean(missed[20:]) < 0.3 * np.mean(missed[:8])
