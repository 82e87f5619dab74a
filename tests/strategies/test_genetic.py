"""The genetic algorithm: selection, GENOME's operators against their formulas, presets, a problem with an answer."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from evomerge.strategies.base import Evaluated
from evomerge.strategies.genetic import GeneticConfig, Individual, SuccessionConfig
from evomerge.strategies.m2n2 import M2n2
from evomerge.testing.planted import mixed, reals
from experiments.digits_niches.raw import RawWeights
from fitness.results import INFEASIBLE, Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.mixture import MixtureConfig


def ok(fitness):
    return Evaluation("ok", (float(fitness),), (0.0,))


def search(strategy, fitness_of, evaluations, batch=1):
    proposals = []
    while len(proposals) < evaluations:
        for candidate in strategy.ask(batch):
            proposals.append(candidate.genotype.copy())
            value = fitness_of(candidate.genotype)
            strategy.tell([Evaluated(candidate.id, ok(value) if math.isfinite(value) else Evaluation.failed("x"))])
    return proposals


def population(strategy, fitness, genes=2):
    """Put individuals of this fitness into a strategy; each genotype holds its index."""
    strategy.individuals = [Individual.at_rest(np.full(genes, float(i)), f) for i, f in enumerate(fitness)]


BUDGET = 3000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{}, {"preset": "genome_plus", "mutation": 0.5}], ids=["plain", "genome_plus"])
def test_planted_it_finds_the_optimum_of_a_quadratic(make_space, fitness_of, seed, settings):
    strategy = GeneticConfig(**settings).build(make_space(6), seed)
    search(strategy, fitness_of, BUDGET)
    assert fitness_of(strategy.recommend()) > -0.01


def test_crossover_alone_beats_random_search(make_space, fitness_of):
    for seed in range(3):
        space = make_space(8)
        strategy = GeneticConfig(mutation=0.0, crossover=1.0).build(space, seed)
        best = max(map(fitness_of, search(strategy, fitness_of, 400)))
        rng = np.random.default_rng(seed)
        assert best > max(fitness_of(space.sample(rng)) for _ in range(400))


def test_a_generation_is_learnt_from_when_it_is_complete(make_space, fitness_of):
    strategy = GeneticConfig(population=6).build(make_space(3), 0)
    asked = strategy.ask(100)
    assert [candidate.generation for candidate in asked] == [0] * 6
    assert np.array_equal(asked[0].genotype, strategy.space.start)
    strategy.tell(Evaluated(candidate.id, ok(0.5)) for candidate in asked[:-1])
    assert strategy.ask(1) == [] and strategy.individuals == []
    strategy.tell([Evaluated(asked[-1].id, ok(0.5))])
    assert len(strategy.individuals) == 6
    assert {candidate.generation for candidate in strategy.ask(3)} == {1}


def test_the_elites_survive_and_nobody_twice():
    strategy = GeneticConfig(population=5, elite=0.4, tournament=2).build(RawWeights(2), 0)
    pool = [Individual.at_rest(np.zeros(2), fitness) for fitness in np.linspace(0, 1, 12)]
    for _ in range(30):
        chosen = strategy._survivors(pool)
        assert [individual.fitness for individual in chosen[:2]] == [1.0, pool[-2].fitness]
        assert len({id(individual) for individual in chosen}) == 5
    assert len(strategy._survivors(pool[:3])) == 3


def test_the_best_of_a_small_population_always_survives():
    """A fraction of the population below one individual is rounded up to one."""
    strategy = GeneticConfig(population=4, elite=0.1, tournament=1).build(RawWeights(2), 0)
    pool = [Individual.at_rest(np.zeros(2), fitness) for fitness in np.linspace(0, 1, 8)]
    assert all(pool[-1] in strategy._survivors(pool) for _ in range(20))


def test_survivors_by_roulette_are_mostly_the_fitter():
    strategy = GeneticConfig(population=2, elite=0, survivors="roulette").build(RawWeights(2), 0)
    pool = [Individual.at_rest(np.zeros(2), fitness) for fitness in (0.0, 1.0, 9.0)]
    counts = sum(np.bincount([pool.index(i) for i in strategy._survivors(pool)], minlength=3) for _ in range(200))
    assert counts.tolist() == [0, 200, 200]  # a weight of zero is drawn only when nothing else is left


def test_a_weighted_child_is_the_mean_by_fitness():
    strategy = GeneticConfig(weighted=True).build(RawWeights(2), 0)
    population(strategy, [0.0, 0.6, 0.2])
    assert np.allclose(strategy._crossed(1, 2), (0.6 * 1 + 0.2 * 2) / 0.8)
    assert np.allclose(strategy._crossed(2, 0), 2.0)
    population(strategy, [0.0, 0.0])
    assert np.allclose(strategy._crossed(0, 1), 0.5)


@pytest.mark.parametrize(
    ("fitness", "share"),
    [
        ([-1.0, -1.1, -2.0], 1.0 / 1.9),  # log-likelihoods
        ([-0.1, 0.2, -0.5], 0.4 / 1.1),
        ([INFEASIBLE - 0.1, INFEASIBLE - 0.3, INFEASIBLE - 0.5], 0.4 / 0.6),
        ([INFEASIBLE - 0.1, INFEASIBLE - 0.3, 0.7], 0.5),
        ([0.7, INFEASIBLE - 0.3, INFEASIBLE - 0.5], 1.0),
    ],
)
def test_what_parents_weigh_depends_on_the_whole_population(fitness, share):
    strategy = GeneticConfig(weighted=True).build(RawWeights(2), 0)
    population(strategy, fitness)
    assert np.allclose(strategy._crossed(0, 1), 1.0 - share)


def test_a_weighted_child_has_each_choice_from_one_parent():
    """As often as that parent weighs; the mean of `linear` and `ties` is no `slerp`."""
    space = mixed(6)  # real, choice, whole number, and once more
    a = np.array([0.0, 0.5, 1.0, 0.0, 2.5, 6.0])
    b = np.array([1.0, 2.5, 3.0, 1.0, 0.5, 0.0])
    strategy = GeneticConfig(weighted=True).build(space, 0)
    strategy.individuals = [Individual.at_rest(a, 0.6), Individual.at_rest(b, 0.2)]
    children = np.array([strategy._crossed(0, 1) for _ in range(400)])
    assert np.allclose(children[:, [0, 3]], 0.25)
    discrete = children[:, space.discrete]
    from_a = discrete == a[space.discrete]
    assert (from_a | (discrete == b[space.discrete])).all()
    assert np.allclose(from_a.mean(axis=0), 0.75, atol=0.08)
    assert not (from_a[:, 0] == from_a[:, 1]).all()  # each for itself


def noise_of(space, genotype):
    """Return the seeds of a mixture's noise, each with its deviation in every chunk."""
    table = space.decode(genotype).mixture
    count = len(table.noises)
    return {seed: tuple(row[index - count] for row in table.rows) for index, seed in enumerate(table.noises)}


@pytest.mark.parametrize("preset", [None, "genome_plus"])
def test_a_mixtures_noise_is_that_of_an_individual(preset):
    layout = ModelLayout(("embed",), (("self_attn.w", "mlp.w"),) * 4, "layers.{}.", ("norm",), None, "self_attn", "mlp")
    models = {name: f"/m/{name}" for name in ("base", "a", "b")}
    context = SpaceContext(models, layout, dict.fromkeys(layout.tensors(), 9))
    space = MixtureConfig(chunks=2, crossover="linear", noise={"terms": 2, "sigma": 0.1}).build(context)
    strategy = GeneticConfig(preset=preset, weighted=True).build(space, 0)
    rng = np.random.default_rng(1)
    founders = [space.mutate(space.mutate(founder, rng), rng) for founder in space.initial_population()]
    strategy.individuals = [Individual.at_rest(f, 0.5 + 0.1 * index) for index, f in enumerate(founders)]
    known = [noise_of(space, founder) for founder in founders]
    assert all(len(noise) == 2 for noise in known)
    if preset is None:
        children = [strategy._crossed(0, 1) for _ in range(40)]
        known = known[:2]
    else:
        children = [strategy._moved(strategy.config.succession)[0].genotype for _ in range(40)]
        known = [known[0], known[2]]  # its own, and that of the best
    assert not any(np.array_equal(child, founder) for child in children for founder in founders)
    found = [noise_of(space, child) for child in children]
    assert all(noise in known for noise in found) and all(noise in found for noise in known)


def test_couples_are_two_different_individuals():
    for parents in ("roulette", "tournament"):
        strategy = GeneticConfig(parents=parents).build(RawWeights(2), 0)
        pairs = [strategy._couple(np.array([0.2, 0.9, 0.4])) for _ in range(300)]
        assert all(a != b and {a, b} <= {0, 1, 2} for a, b in pairs)
        assert sum(1 in pair for pair in pairs) > 200


class Ones:
    """A generator whose uniform numbers are all one."""

    def random(self, size):
        return np.ones(size)

    def integers(self, below):
        return 1


def test_succession_is_the_published_step():
    strategy = GeneticConfig(preset="genome_plus").build(RawWeights(2), 0)
    population(strategy, [0.1, 0.9, 0.5])
    mover = strategy.individuals[2]
    mover.velocity, mover.best, mover.best_fitness = np.array([1.0, -1.0]), np.array([3.0, 4.0]), 0.7
    strategy.rng = Ones()
    swarm = SuccessionConfig()
    for step in range(2):
        x, v, p, g, w = mover.genotype, mover.velocity, mover.best, np.ones(2), np.zeros(2)
        expected = (0.2 * v + 0.2 * (p - x) + 0.2 * (g - x) - 0.1 * (w - x)) / 0.7
        assert np.allclose(strategy._moved(swarm)[2].genotype, x + 0.5 * 0.95**step * expected)
        assert np.allclose(mover.velocity, expected)


def test_the_preset_moves_as_the_published_program_does():
    """First velocities, a length that shrinks with every individual, and the worst point ever."""
    strategy = GeneticConfig(preset="genome_plus").build(RawWeights(2), 0)
    population(strategy, [0.1, 0.9, 0.5])
    strategy._worst = (0.05, np.array([-4.0, 2.0]))
    positions = [individual.genotype.copy() for individual in strategy.individuals]
    strategy.rng = Ones()  # draws the individual at 1 wherever one is drawn
    moved = [child.genotype for child in strategy._moved(strategy.config.succession)]
    for at, x in enumerate(positions):
        v, best = positions[1] - x, positions[1]
        expected = (0.2 * v + 0.2 * (best - x) - 0.1 * (np.array([-4.0, 2.0]) - x)) / 0.7
        assert np.allclose(moved[at], x + 0.5 * 0.95 ** (at + 1) * expected)


def test_a_generation_without_children_is_left_out():
    """GENOME+ crosses with probability 0.3: where no child is drawn the next swarm step follows at once."""
    config = GeneticConfig(preset="genome_plus", population=2, crossover=1e-9)
    strategy = config.build(RawWeights(3), 0)
    for number in range(6):
        asked = strategy.ask(100)
        assert len(asked) == 2 and all(candidate.generation == number for candidate in asked)
        strategy.tell(Evaluated(c.id, ok(-np.sum((c.genotype - 1) ** 2))) for c in asked)


def test_the_swarm_alone_has_no_children_and_returns_to_its_best_points():
    """Model Swarms: every generation is a step of all; after five steps without a better point an individual rests."""
    config = GeneticConfig(preset="model_swarms", population=3)
    strategy = config.build(RawWeights(2), 0)
    for number in range(7):
        asked = strategy.ask(100)
        assert [candidate.generation for candidate in asked] == [number] * 3
        fitness = 1.0 if number == 0 else 0.5  # the first points are the best ones
        strategy.tell(Evaluated(candidate.id, ok(fitness)) for candidate in asked)
        if number in (4, 5):
            resting = [np.array_equal(one.genotype, one.best) for one in strategy.individuals]
            assert all(resting) == (number == 5) and any(resting) == (number == 5)
    strategy._decays = 1000
    swarm = strategy.config.succession
    assert swarm.least_step == 0.1
    before = [individual.genotype.copy() for individual in strategy.individuals]
    steps = [child.genotype - x for child, x in zip(strategy._moved(swarm), before, strict=True)]
    for step, individual in zip(steps, strategy.individuals, strict=True):
        assert np.allclose(step, 0.1 * individual.velocity)


def test_in_succession_a_choice_stays_or_is_taken_over():
    """From one's own best, and from the best of all, by their shares of the step."""
    space = mixed(300)
    choices = np.array([hasattr(gene, "options") for gene in space.genes])
    strategy = GeneticConfig(preset="genome_plus").build(space, 0)
    here, own, best = (np.where(choices, option + 0.5, space.start) for option in range(3))
    mover = Individual(here, 0.2, own, 0.3, np.zeros(300))
    strategy.individuals = [mover, Individual.at_rest(best, 0.9), Individual.at_rest(here, 0.1)]

    def moved(**swarm):
        return (
            np.bincount(strategy._moved(SuccessionConfig(**swarm))[0].genotype[choices].astype(int), minlength=3) / 100
        )

    equal = {"inertia": 0.0, "worst": 0.0, "decay": 1.0, "own_best": 1.0, "best": 1.0}
    sums = np.mean([moved(step=0.5, **equal) for _ in range(300)], axis=0)
    assert np.allclose(sums, [0.5, 0.25, 0.25], atol=0.04)
    assert moved(step=9.0, **equal)[0] == 0.0  # a long step takes over at most everything
    assert moved(step=0.5, **equal | {"own_best": 0.0})[1] == 0.0
    assert np.mean([moved(step=0.5)[0] for _ in range(20)]) > 0.5  # inertia and flight move no choice


def test_succession_and_children_take_turns_and_draw_anew():
    strategy = GeneticConfig(preset="genome_plus", population=4, crossover=1.0).build(RawWeights(3), 0)
    sizes = []
    for _ in range(6):
        asked = strategy.ask(100)
        sizes.append(len(asked))
        strategy.tell(Evaluated(c.id, ok(-np.sum((c.genotype - 1) ** 2))) for c in asked)
    assert sizes[0] == sizes[1] == sizes[3] == sizes[5] == 4  # founders, then every second one a swarm step
    assert all(1 <= size <= 2 for size in sizes[2::2])
    velocities = [individual.velocity / np.linalg.norm(individual.velocity) for individual in strategy.individuals]
    assert not np.allclose(velocities[0], velocities[1])


def test_who_fails_on_the_way_stays_where_it_was():
    strategy = GeneticConfig(preset="genome_plus", population=3).build(RawWeights(2), 0)
    for candidate in strategy.ask(3):
        strategy.tell([Evaluated(candidate.id, ok(candidate.id))])
    before = [individual.genotype.copy() for individual in strategy.individuals]
    for candidate in strategy.ask(3):
        strategy.tell([Evaluated(candidate.id, Evaluation.failed("injected"))])
    assert all(np.array_equal(a, i.genotype) for a, i in zip(before, strategy.individuals, strict=True))
    assert all(not individual.velocity.any() for individual in strategy.individuals)


def test_after_a_first_generation_that_failed_whole_it_samples_anew(make_space):
    strategy = GeneticConfig(population=4).build(make_space(3), 0)
    proposals = search(strategy, lambda genotype: math.nan, 12)
    assert len({proposal.tobytes() for proposal in proposals}) == 12
    assert strategy.recommend() is None


def test_the_presets():
    genome = GeneticConfig(preset="genome")
    assert (genome.population, genome.crossover, genome.mutation, genome.succession) == (10, 0.0, 0.1, None)
    plus = GeneticConfig(preset="genome_plus", population=12)
    assert (plus.population, plus.crossover, plus.weighted) == (12, 0.3, True)
    assert plus.succession.step == 0.5 and plus.succession.worst == 0.1
    baseline = GeneticConfig(preset="replace_worst", population=7, mutation=1.0).build(RawWeights(3), 0)
    assert isinstance(baseline, M2n2)
    assert baseline.config.model_dump() == {
        "kind": "m2n2",
        "archive": 7,
        "alpha": 0.0,
        "attraction": False,
        "crossover": 1.0,
        "mutation": 1.0,
        "warm_up": 0,
        "relative": False,
        "warm_start": None,
    }
    for config in (genome, plus, GeneticConfig(preset="replace_worst")):
        assert GeneticConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"replace": "worst"}, "parents: roulette"),
        ({"preset": "replace_worst", "weighted": True}, "neither weighted nor succession"),
        ({"crossover": 0, "mutation": 0}, "raise one of them"),
        ({"preset": "genomes"}, "genome_plus"),
        ({"population": 1}, "greater than or equal to 2"),
    ],
)
def test_bad_settings_are_refused(bad, message):
    with pytest.raises(ValidationError, match=message):
        GeneticConfig(**bad)


def asked_by_turns(elite_again):
    """Return the best and the first population of a search whose generations answer other items."""
    strategy = GeneticConfig(population=4, elite=0.25).build(reals(2), 0)
    first = strategy.ask(4)
    strategy.tell([Evaluated(one.id, on("ab", 0.9 - one.id / 10)) for one in first])
    strategy.tell([Evaluated(one.id, on("cd", 0.2)) for one in strategy.ask(20)])
    asked = strategy.ask(20)
    (again,) = [one for one in asked if one.kind == "again"]
    np.testing.assert_array_equal(again.genotype, first[0].genotype)
    strategy.tell([Evaluated(one.id, elite_again if one is again else on("ef", 0.2)) for one in asked])
    return strategy.recommend(), [one.genotype for one in first]


def on(items, value):
    return Evaluation("ok", (value,), (0.1,), tuple(items), np.full(len(items), value, np.float32))


def test_elites_are_asked_again_and_a_lucky_score_does_not_stay():
    best, (first, *_) = asked_by_turns(on("abcdef", 0.1))
    assert not np.array_equal(best, first)


def test_an_elite_that_fails_when_asked_again_keeps_its_score():
    best, (first, *_) = asked_by_turns(Evaluation.failed("no"))
    np.testing.assert_array_equal(best, first)


def test_elites_that_have_answered_everything_are_not_asked_again():
    strategy = GeneticConfig(population=4, elite=0.25).build(reals(2), 0)
    strategy.tell([Evaluated(one.id, on("ab", 0.9 - one.id / 10)) for one in strategy.ask(4)])
    assert {one.kind for one in strategy.ask(20)} == {"sample"}


def test_more_answers_change_the_best_fitness_of_who_is_at_its_best_point():
    here, elsewhere = np.zeros(3), np.ones(3)
    resting, mover = Individual.at_rest(here, 0.5), Individual(here, 0.2, elsewhere, 0.9, np.zeros(3))
    resting.rescore(0.4)
    mover.rescore(0.1)
    assert (resting.fitness, resting.best_fitness) == (0.4, 0.4)
    assert (mover.fitness, mover.best_fitness) == (0.1, 0.9)


@pytest.mark.parametrize("preset", ["genome", "genome_plus"])
def test_the_published_populations_have_ten_members(preset):
    strategy = GeneticConfig(preset=preset).build(RawWeights(2), 0)
    first = strategy.ask(100)
    assert len(first) == 10
    assert {candidate.generation for candidate in first} == {first[0].generation}
