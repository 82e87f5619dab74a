"""Greedy soups and greedy pairs: what joins, who is merged with whom, and when it ends."""

import numpy as np
import pytest

from evomerge.strategies import Evaluated, GreedyConfig
from evomerge.testing.planted import reals
from fitness.results import Evaluation
from search_spaces.spaces.wrappers import FoundedSpace

EXPERTS = [*np.eye(4)]


def search(config, fitness, sources=EXPERTS, most=60, seed=0):
    """Search the space of four weights whose founders are `sources`; its own start is one of them."""
    space = FoundedSpace(reals(4).starting_at(sources[0]), list(sources[1:]))
    strategy = config.build(space, seed)
    asked = []
    while len(asked) < most and not strategy.finished:
        (candidate,) = strategy.ask(1)
        asked.append(candidate)
        value = fitness(candidate.genotype)
        result = Evaluation.failed("no") if value is None else Evaluation("ok", (value,), (0.0,))
        strategy.tell([Evaluated(candidate.id, result)])
    return asked, strategy


def test_a_soup_keeps_what_does_not_lower_the_score():
    """Experts 2 and 0 help each other, 1 harms, 3 changes nothing; the order is that of their own scores."""
    own = np.array([0.5, 0.4, 0.6, 0.3])

    def fitness(weights):
        if np.count_nonzero(weights) == 1:
            return float(own @ weights)
        return 0.6 + 0.1 * (weights[0] > 0) - 0.5 * (weights[1] > 0)

    asked, strategy = search(GreedyConfig(merge="soup"), fitness)
    tried = [np.flatnonzero(candidate.genotype).tolist() for candidate in asked[4:]]
    assert tried == [[0, 2], [0, 1, 2], [0, 2, 3]]
    assert np.allclose(asked[-1].genotype, [1 / 3, 0, 1 / 3, 1 / 3])
    assert np.allclose(strategy.recommend(), [1 / 3, 0, 1 / 3, 1 / 3]) and strategy.finished
    assert asked[5].parents == (2, 0, 1)


def test_a_failed_source_is_no_ingredient():
    asked, strategy = search(GreedyConfig(merge="soup"), lambda w: None if w[3] > 0 else float(w[:2].sum()))
    assert strategy.recommend()[3] == 0.0 and len(asked) == 4 + 2


def test_pairs_of_the_best_and_the_least_akin():
    """The first round merges all pairs of the two best sources, and the best with the one that is most unlike it."""
    sources = [np.array(point, float) for point in ([1, 0, 0, 0], [0.9, 0.3, 0, 0], [0.5, 0.5, 0, 0], [-0.4, 0, 1, 0])]
    value = {0: 0.9, 1: 0.8, 2: 0.5, 3: 0.1}

    def fitness(weights):
        for at, source in enumerate(sources):
            if np.allclose(weights, source):
                return value[at]
        return 0.2

    asked, _ = search(GreedyConfig(top=2), fitness, sources)
    assert [candidate.parents for candidate in asked[4:6]] == [(0, 1), (0, 3)]
    assert np.allclose(asked[4].genotype, (sources[0] + sources[1]) / 2)
    alone, _ = search(GreedyConfig(top=2, explore="none", stop=0.0), fitness, sources)
    assert len(alone) == 4 + 1  # the best stay the best, and are alike
    drawn = [search(GreedyConfig(top=2, explore="random"), fitness, sources, seed=seed)[0][4:6] for seed in range(9)]
    partners = {candidates[-1].parents for candidates in drawn}
    assert {(0, 2), (0, 3)} <= partners  # with the second best it is the pair that is there already


def test_it_ends_when_the_best_are_alike_and_not_before():
    """Merges of merges draw together; the kinship at which it stops decides how many rounds there are."""

    def fitness(weights):
        return 1.0 - float(((weights - 0.25) ** 2).sum())

    lengths = [len(search(GreedyConfig(stop=stop), fitness)[0]) for stop in (0.3, 0.9, 0.9999)]
    assert 4 < lengths[0] < lengths[1] < lengths[2] < 60
    best = max(fitness(candidate.genotype) for candidate in search(GreedyConfig(), fitness)[0])
    assert best > 0.9 > fitness(EXPERTS[0])


def test_sources_of_another_cluster_are_left_out():
    """Two pairs of similar sources; the best one is merged with its like only."""
    sources = [np.array(point, float) for point in ([1, 0, 0, 0], [1, 0.2, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0.2])]
    asked, _ = search(GreedyConfig(mergeable=0.5, merge="soup"), lambda w: float(w[0] + w[2]), sources)
    assert [candidate.parents for candidate in asked[4:]] == [(0, 1)]


def test_one_source_cannot_be_merged():
    with pytest.raises(ValueError, match=r"merges sources and this space has one; write strategy.samples: 8"):
        GreedyConfig().build(reals(4), 0)
