"""What every strategy must do, whatever its algorithm."""

import math

import numpy as np
import pytest

from evomerge.strategies import AskTellError, CmaEsConfig, Evaluated, RandomConfig
from fitness.evaluation import Evaluation

CONFIGS = {"cma_es": CmaEsConfig(population=6, mean_every=2), "random": RandomConfig(population=6)}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def evaluation(fitness: float) -> Evaluation:
    if math.isnan(fitness):
        return Evaluation.failed("injected")
    return Evaluation("ok", (fitness,), (0.01,))


def drive(strategy, fitness_of, count):
    """Ask and tell one by one; return the proposals."""
    proposals = []
    for _ in range(count):
        (candidate,) = strategy.ask(1)
        proposals.append(candidate)
        strategy.tell([Evaluated(candidate.id, evaluation(fitness_of(candidate.genotype)))])
    return proposals


def test_ids_count_from_zero_and_genotypes_stay_in_the_box(config, make_space, fitness_of):
    space = make_space(5)
    proposals = drive(config.build(space, seed=1), fitness_of, 60)
    assert [candidate.id for candidate in proposals] == list(range(60))
    for candidate in proposals:
        assert candidate.genotype.shape == (5,)
        assert np.all(candidate.genotype >= space.low) and np.all(candidate.genotype <= space.high)
        space.decode(candidate.genotype)


def test_the_seed_decides(config, make_space, fitness_of):
    runs = [drive(config.build(make_space(4), seed), fitness_of, 40) for seed in (3, 3, 4)]
    genotypes = [np.array([candidate.genotype for candidate in run]) for run in runs]
    assert np.array_equal(genotypes[0], genotypes[1])
    assert not np.array_equal(genotypes[0], genotypes[2])


def test_the_global_generator_is_neither_read_nor_moved(config, make_space, fitness_of):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = drive(config.build(make_space(4), 0), fitness_of, 30)
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(99)
    second = drive(config.build(make_space(4), 0), fitness_of, 30)
    assert all(np.array_equal(a.genotype, b.genotype) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_asking_many_at_once_equals_asking_one_by_one(config, make_space, fitness_of, batch):
    expected = drive(config.build(make_space(4), 0), fitness_of, 40)
    strategy = config.build(make_space(4), 0)
    proposals = []
    while len(proposals) < 40:
        asked = strategy.ask(batch)
        proposals += asked
        strategy.tell(Evaluated(c.id, evaluation(fitness_of(c.genotype))) for c in reversed(asked))
    for a, b in zip(expected, proposals[:40], strict=True):
        assert (a.id, a.kind, a.generation) == (b.id, b.kind, b.generation)
        assert np.array_equal(a.genotype, b.genotype)


def test_an_unknown_id_is_an_error_that_names_the_call(config, make_space):
    strategy = config.build(make_space(3), 0)
    with pytest.raises(AskTellError, match=r"candidate 7 was never asked; tell each candidate once"):
        strategy.tell([Evaluated(7, evaluation(0.5))])


def test_a_second_tell_is_an_error(config, make_space):
    strategy = config.build(make_space(3), 0)
    (candidate,) = strategy.ask(1)
    strategy.tell([Evaluated(candidate.id, evaluation(0.5))])
    with pytest.raises(AskTellError, match="candidate 0 has been told already"):
        strategy.tell([Evaluated(candidate.id, evaluation(0.5))])


def test_asking_for_nothing_is_an_error(config, make_space):
    with pytest.raises(AskTellError, match="at least one"):
        config.build(make_space(3), 0).ask(0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_failed_candidates_do_not_stop_it(config, make_space, fitness_of, share):
    rng = np.random.default_rng(0)
    proposals = drive(
        config.build(make_space(4), 0),
        lambda genotype: math.nan if rng.random() < share else fitness_of(genotype),
        80,
    )
    assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)


def test_constant_fitness_does_not_stop_it(config, make_space):
    proposals = drive(config.build(make_space(4), 0), lambda genotype: 0.5, 200)
    assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)


def test_five_hundred_genes(config, make_space, fitness_of):
    proposals = drive(config.build(make_space(500), 0), fitness_of, 30)
    assert proposals[-1].genotype.shape == (500,)


def test_a_callers_change_to_a_genotype_changes_nothing(config, make_space, fitness_of):
    expected = drive(config.build(make_space(4), 0), fitness_of, 40)
    strategy = config.build(make_space(4), 0)
    for reference in expected:
        (candidate,) = strategy.ask(1)
        assert np.array_equal(candidate.genotype, reference.genotype)
        value = fitness_of(candidate.genotype)
        candidate.genotype[:] = 0.0
        strategy.tell([Evaluated(candidate.id, evaluation(value))])
