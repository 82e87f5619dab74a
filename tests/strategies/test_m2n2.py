"""M2N2 against a plain form of its equations, its corner cases, and a problem with a known answer."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.strategies.base import Evaluated
from evomerge.strategies.m2n2 import Archive, M2n2Config, compete
from evomerge.testing.planted import reals
from experiments.digits_niches.raw import RawWeights
from fitness.results import Evaluation


def scored(scores, items=None):
    scores = np.asarray(scores, dtype=np.float32)
    items = tuple(f"item:{j}" for j in range(len(scores))) if items is None else items
    return Evaluation("ok", (float(scores.mean()),), (0.0,), items, scores)


def plain_fitness(scores, alpha):
    """Equations 3 and 5, item by item."""
    fitness = [0.0] * len(scores)
    for j in range(len(scores[0])):
        column = [row[j] for row in scores]
        if sum(column) > 0:
            for i, value in enumerate(column):
                fitness[i] += value * max(column) / sum(column) ** alpha if alpha else value
    return fitness


class PlainArchive:
    """The authors' update: append the child, drop the first of the least fit, the child takes its place."""

    def __init__(self, places):
        self.places, self.rows = places, []

    def take(self, row, alpha):
        if len(self.rows) < self.places:
            self.rows.append(row)
            return
        extended = [*self.rows, row]
        fitness = plain_fitness(extended, alpha)
        worst = fitness.index(min(fitness))
        if worst < self.places:
            self.rows[worst] = row


matrices = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).random((14, 9)))


@given(matrix=matrices, alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]), binary=st.booleans())
def test_fitness_is_that_of_the_equations(matrix, alpha, binary):
    scores = (matrix > 0.6).astype(float) if binary else matrix
    assert np.allclose(compete(scores, alpha).fitness, plain_fitness(scores.tolist(), alpha))


@given(matrix=matrices, alpha=st.sampled_from([0.0, 1.0]))
def test_the_archive_is_that_of_the_authors(matrix, alpha):
    archive, plain = Archive(4, 1, alpha, relative=False), PlainArchive(4)
    # Whole numbers have ties, which must be exact: without competition, as sums of fractions round.
    rows = matrix > 0.5 if alpha == 0 else matrix.astype(np.float32)
    for index, row in enumerate(rows.astype(float)):
        archive.take(np.array([float(index)]), scored(row))
        plain.take(row.tolist(), alpha)
        assert archive.scores.tolist() == plain.rows
        kept, fresh = archive.competition(), compete(archive.scores, alpha)  # `kept` has been asked before
        assert np.array_equal(kept.worth, fresh.worth)
        for first in range(archive.size):
            assert np.array_equal(kept.attraction(first), fresh.attraction(first))


def test_ties_drop_the_first_member_and_keep_the_child():
    archive = Archive(2, 1, 1.0, relative=False)
    for name in range(3):
        archive.take(np.array([float(name)]), scored([1, 0]))
    assert archive.genotypes[:, 0].tolist() == [2.0, 1.0]


def test_a_child_that_brings_nothing_is_dropped():
    archive = Archive(2, 1, 1.0, relative=False)
    for name, row in enumerate([[1, 1], [1, 0], [0, 0]]):
        archive.take(np.array([float(name)]), scored(row))
    assert archive.genotypes[:, 0].tolist() == [0.0, 1.0]


def test_a_specialist_outlives_better_generalists():
    rows = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]
    kept = {}
    for alpha in (0.0, 1.0):
        archive = Archive(2, 1, alpha, relative=False)
        for name, row in enumerate(rows):
            archive.take(np.array([float(name)]), scored(row))
        kept[alpha] = set(archive.genotypes[:, 0])
    assert kept == {0.0: {0.0, 1.0}, 1.0: {0.0, 2.0}}


def test_negative_scores_count_from_the_worst_up():
    scores = np.array([[-3.0, 1.0], [-1.0, 2.0]])
    assert np.allclose(compete(scores, 1.0).scores, [[0.0, 1.0], [2.0, 2.0]])
    assert np.allclose(compete(scores, 1.0, relative=True).scores, [[0.0, 0.0], [2.0, 1.0]])


@given(matrix=matrices, places=st.permutations(range(14)))
def test_equal_members_are_equally_fit_to_the_last_bit(matrix, places):
    scores = np.repeat(matrix[:7], 2, axis=0)[places]
    fitness = compete(scores, 1.0).fitness
    assert all(len(set(fitness[(scores == row).all(axis=1)])) == 1 for row in scores)


def test_scores_are_matched_by_item_and_missing_ones_are_the_mean():
    archive = Archive(3, 1, 1.0, relative=False)
    archive.take(np.zeros(1), scored([1, 0], ("a", "b")))
    archive.take(np.ones(1), scored([0, 1], ("b", "a")))
    assert archive.scores.tolist() == [[1, 0], [1, 0]]
    assert archive.competition().scores.shape == (2, 2)
    archive.take(np.ones(1), scored([1, 1, 0], ("c", "a", "d")))
    assert archive.scores.tolist() == [[1, 0, 0.5, 0.5], [1, 0, 0.5, 0.5], [1, pytest.approx(2 / 3), 1, 0]]
    assert np.array_equal(archive.competition().scores, archive.scores)


def test_whoever_misses_a_floor_is_weakest_and_no_first_parent():
    strategy = M2n2Config(archive=3, warm_up=0).build(RawWeights(1), 0)
    for name, (row, violation) in enumerate([([1, 1], 0.2), ([1, 0], 0.0), ([1, 1], 0.1), ([0, 0], 0.0)]):
        strategy.archive.take(np.array([float(name)]), replace(scored(row), violation=violation))
    assert strategy.archive.genotypes[:, 0].tolist() == [3.0, 1.0, 2.0]
    assert strategy._weights(strategy.archive.competition()).tolist() == [0.0, 0.5, 0.0]
    assert strategy.recommend().tolist() == [1.0]


def partners(strategy, first):
    """How often each member is drawn as the second parent."""
    competition = strategy.archive.competition()
    drawn = [strategy._partner(competition, competition.fitness, first) for _ in range(2000)]
    return np.bincount(drawn, minlength=strategy.archive.size) / len(drawn)


def test_parents_are_drawn_by_fitness_and_by_attraction():
    rows = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    strategy = M2n2Config(archive=4, warm_up=0).build(RawWeights(1), 0)
    for name, row in enumerate(rows):
        strategy.archive.take(np.array([float(name)]), scored(row))
    # z = (2, 2, 1, 1, 0): member 1 is worth 2, of which members 0 and 2 have what it lacks: nothing, and 1.
    assert np.allclose(strategy.archive.competition().fitness, [1, 2, 1, 0])
    assert partners(strategy, 1).tolist() == [0, 0, 1, 0]
    # Member 0 lacks one item that member 1 has and one that member 2 has.
    assert np.allclose(partners(strategy, 0), [0, 0.5, 0.5, 0], atol=0.05)


def test_where_nobody_beats_the_first_parent_the_second_is_drawn_by_fitness():
    strategy = M2n2Config(archive=3, warm_up=0).build(RawWeights(1), 0)
    for row in ([1, 1, 1], [1, 0, 0], [0, 0, 0]):
        strategy.archive.take(np.zeros(1), scored(row))
    assert np.allclose(partners(strategy, 0), [2.5 / 3, 0.5 / 3, 0], atol=0.05)


def segments(segment=6, count=4):
    """Two experts, each right on every other segment of an answer that is all ones."""
    first = np.repeat(np.arange(count) % 2 == 0, segment).astype(float)
    return first, 1.0 - first


def answers(genotype):
    """An item a gene: right above 0.8, which no single ratio of two orthogonal vectors reaches in both."""
    return scored(genotype > 0.8)


def search(strategy, evaluations, answer=answers):
    proposals = []
    for _ in range(evaluations):
        (candidate,) = strategy.ask(1)
        proposals.append(candidate.genotype.copy())
        strategy.tell([Evaluated(candidate.id, answer(candidate.genotype))])
    return proposals


BUDGET = 2000


@pytest.mark.parametrize("seed", range(4))
def test_planted_it_joins_the_segments_of_two_experts(seed):
    experts = segments()
    space = RawWeights(len(experts[0]), founders=experts, mutation=0.03)
    strategy = M2n2Config(warm_up=0, mutation=1.0).build(space, seed)
    search(strategy, BUDGET)
    assert answers(strategy.recommend()).fitness == 1.0


def test_planted_one_ratio_for_all_cannot_find_it():
    experts = segments()
    strategy = M2n2Config(warm_up=0).build(RawWeights(len(experts[0]), founders=experts, split=False), 0)
    search(strategy, BUDGET)
    assert answers(strategy.recommend()).fitness <= 0.5


def test_the_founders_come_first_and_then_random_merges_of_them():
    experts = segments()
    strategy = M2n2Config(archive=10, warm_up=5).build(RawWeights(len(experts[0]), founders=experts), 0)
    asked = strategy.ask(7)  # none told: nothing could be bred
    assert all(np.array_equal(a.genotype, expert) for a, expert in zip(asked, experts, strict=False))
    assert len({a.genotype.tobytes() for a in asked}) == 7
    assert [a.generation for a in strategy.ask(10)] == [0] * 3 + [1] * 7


def test_with_many_in_flight_the_order_of_tells_decides():
    experts = segments()
    space = RawWeights(len(experts[0]), founders=experts)

    def run(order):
        strategy = M2n2Config(archive=4, warm_up=2).build(space, 0)
        proposals = []
        for _ in range(40):
            asked = strategy.ask(5)
            proposals += [candidate.genotype for candidate in asked]
            strategy.tell(Evaluated(c.id, answers(c.genotype)) for c in order(asked))
        return np.array(proposals)

    assert np.array_equal(run(list), run(list))
    assert not np.array_equal(run(list), run(reversed))


def test_failed_candidates_stay_out():
    experts = segments()
    strategy = M2n2Config(archive=6, warm_up=0).build(RawWeights(len(experts[0]), founders=experts), 0)
    rng = np.random.default_rng(0)

    def sometimes(genotype):
        kind = rng.integers(3)
        if kind == 0:
            return Evaluation.failed("injected")
        scores = np.where(genotype > 0.8, 1.0, np.nan if kind == 1 else 0.0)
        return Evaluation("ok", (float(scores.mean()),), (0.0,), tuple(map(str, range(len(scores)))), scores)

    proposals = search(strategy, 200, sometimes)
    assert np.isfinite(np.array(proposals)).all()
    assert np.isfinite(strategy.archive.scores).all()
    assert strategy.archive.size > 0


def test_all_failed_leaves_random_merges():
    strategy = M2n2Config(warm_up=0).build(RawWeights(3), 0)
    assert strategy.recommend() is None
    proposals = search(strategy, 50, lambda genotype: Evaluation.failed("injected"))
    assert len({proposal.tobytes() for proposal in proposals}) == 50
    assert strategy.recommend() is None


def test_it_recommends_the_best_score_and_not_the_best_fitness():
    strategy = M2n2Config(warm_up=0).build(RawWeights(1), 0)
    for name, row in enumerate([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]]):
        strategy.archive.take(np.array([float(name)]), scored(row))
    assert np.argmax(strategy.archive.competition().fitness) == 3
    assert strategy.recommend().tolist() == [0.0]


def test_mutation_only_where_asked_for():
    a, b = segments()
    span = np.linalg.qr(np.array([a, b]).T)[0]
    for rate, inside in ((0.0, True), (1.0, False)):
        space = RawWeights(len(a), founders=(a, b), split=False)
        proposals = search(M2n2Config(warm_up=0, mutation=rate).build(space, 0), 30)
        assert all(np.allclose(span @ (span.T @ p), p) for p in proposals) == inside


def test_without_crossover_a_child_has_one_parent():
    a, b = segments()
    strategy = M2n2Config(warm_up=0, crossover=0.0).build(RawWeights(len(a), founders=(a, b)), 0)
    assert {p.tobytes() for p in search(strategy, 40)} == {a.tobytes(), b.tobytes()}


def test_warm_up_auto():
    config = M2n2Config(archive=15)
    assert config.resolved(reals(9), noise=0.0, evaluations=1000).warm_up == 15
    assert config.resolved(reals(9), noise=0.0, evaluations=100).warm_up == 5
    assert M2n2Config(warm_up=3).resolved(reals(9), noise=0.0, evaluations=100).warm_up == 3
    with pytest.raises(ValueError, match=r"call config\.resolved"):
        config.build(RawWeights(3), 0)


@pytest.mark.parametrize(
    "bad", [{"archive": 1}, {"alpha": -1}, {"mutation": 1.5}, {"split": False}, {"alpha": math.nan}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        M2n2Config(**bad)
