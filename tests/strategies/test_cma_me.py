"""CMA-ME: the ranking by what candidates do to the grid, restarts around elites, and how it fills the grid."""

import numpy as np

from evomerge.strategies import CmaMeConfig, Evaluated, RandomConfig
from evomerge.strategies.score_grid import EliteGrid
from evomerge.testing.planted import reals
from fitness.results import Evaluation
from tests.strategies.test_map_elites import scored

SPACE = reals(20)


def task_scores(genotype):
    """Two tasks; both scores depend on means of genes, which are hardly ever extreme in random samples."""
    unit = (genotype - SPACE.low) / (SPACE.high - SPACE.low)
    return {"a": [float(unit[:10].mean())], "b": [float(unit[10:].mean())]}


def generation(strategy, score):
    """Ask a whole generation, and tell it the last candidate first."""
    asked = strategy.ask(strategy.population)
    for candidate in reversed(asked):
        strategy.tell([Evaluated(candidate.id, score(candidate))])
    return asked


def test_who_fills_a_cell_is_ranked_before_who_improves_one(monkeypatch):
    strategy = CmaMeConfig(population=4, emitters=1, cells=2).build(SPACE, 0)
    asked = strategy.ask(100)
    for candidate in asked:
        strategy.tell([Evaluated(candidate.id, scored(0.5, a=[0.1], b=[0.1]))])
    told = []
    monkeypatch.setattr(strategy._emitters[0], "tell", lambda fitness: told.append(fitness.tolist()))
    results = [
        scored(0.9, a=[0.1], b=[0.1]),  # improves by 0.4
        scored(0.2, a=[0.9], b=[0.1]),  # fills a cell
        Evaluation.failed("no"),
        scored(0.3, a=[0.9], b=[0.1]),  # improves by 0.1 on the one that has just filled it
    ]
    candidates = strategy.ask(4)
    for candidate, result in zip(candidates, results, strict=True):
        strategy.tell([Evaluated(candidate.id, result)])
    assert told == [[6.0, 7.0, 4.0, 5.0]]
    assert strategy.grid.fitness == [0.9, 0.3]


def test_an_emitter_that_changes_nothing_begins_again_around_an_elite():
    strategy = CmaMeConfig(population=4, emitters=2, cells=2).build(SPACE, 0)
    (first,) = strategy.ask(100)
    strategy.tell([Evaluated(first.id, scored(0.5, a=[0.1], b=[0.1]))])
    before = list(strategy._emitters)
    generation(strategy, lambda candidate: scored(0.4, a=[0.1], b=[0.1]))
    assert strategy._emitters[0] is not before[0] and strategy._emitters[1] is before[1]
    assert np.allclose(strategy._emitters[0].mean, before[0].mean)  # the only elite is the start


def test_it_fills_more_cells_than_random_search():
    """After some dozen generations of each emitter: about 50 against 30; after ten they are about equal."""

    def filled(strategy):
        grid = EliteGrid(CmaMeConfig())
        for _ in range(800):
            (candidate,) = strategy.ask(1)
            scores = task_scores(candidate.genotype)
            result = scored(1 - float(np.var(candidate.genotype)), **scores)
            grid.take(candidate.genotype, result)
            strategy.tell([Evaluated(candidate.id, result)])
        return len(grid.cells)

    config = CmaMeConfig().resolved(SPACE, noise=0.0, evaluations=800)
    counts = np.array([(filled(config.build(SPACE, s)), filled(RandomConfig().build(SPACE, s))) for s in range(2)])
    assert (counts[:, 0] > 1.2 * counts[:, 1]).all(), counts
