"""Evo-Merging: densities, then weights with the densities that were found; and its L1 penalty."""

import numpy as np
import pytest

from evomerge.strategies import CmaEsConfig, Evaluated, EvoMergingConfig, NevergradConfig
from evomerge.strategies.penalty import Penalty, genes_of
from evomerge.testing.planted import PlantedSpace, reals
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice, Real
from search_spaces.spaces.wrappers import RecipeSettingsSpace, TiedGenesSpace

NAMES = ("a.weight[model]", "a.density[model]", "b.weight[model]", "b.density[model]", "lambda")
SPACE = PlantedSpace(
    [Real(name, *((0.0, 1.0, 1.0) if "density" in name else (-1.5, 1.5, 0.5))) for name in NAMES],
)
BEST = np.array([0.8, 0.3, -0.6, 0.7, 0.5])


def fitness(genotype):
    return -float(((genotype - BEST) ** 2).sum())


def search(config, score=fitness, count=240, space=SPACE, seed=0):
    strategy = config.resolved(space, noise=0.0, evaluations=count).build(space, seed)
    asked = []
    for _ in range(count):
        (candidate,) = strategy.ask(1)
        asked.append(candidate.genotype.copy())
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", (score(candidate.genotype),), (0.0,)))])
    return np.array(asked), strategy


def test_densities_first_and_weights_second():
    asked, strategy = search(EvoMergingConfig(evaluations=120, l1=0.0))
    first, second = asked[:120], asked[120:]
    assert (first[:, [0, 2, 4]] == 0.5).all() and np.ptp(first[:, 1]) > 0.01
    assert (second[:, [1, 3]] == second[0, [1, 3]]).all() and (second[:, 4] == 0.5).all()
    assert np.allclose(second[0, [1, 3]], BEST[[1, 3]], atol=0.15)
    assert np.allclose(strategy.recommend(), BEST, atol=0.2)  # a negative weight among them


def test_a_stage_without_a_guess_keeps_its_best_sample():
    config = EvoMergingConfig.model_validate({"evaluations": 40, "l1": 0, "first": {"kind": "random"}})
    asked, _ = search(config, count=60)
    assert np.allclose(asked[40:, [1, 3]], max(asked[:40], key=fitness)[[1, 3]])


def test_the_penalty_keeps_coefficients_small():
    """Where the score does not depend on them, only the penalty pulls; without it they stay."""
    for l1, small in ((0.0, False), (0.05, True)):
        _, strategy = search(EvoMergingConfig(evaluations=120, l1=l1), score=lambda x: -float(x[4] ** 2))
        found = np.abs(strategy.recommend()[:4]).mean()
        assert (found < 0.3) == small


def test_the_penalty_is_the_mean_size_of_the_weights():
    space = PlantedSpace([Real("ops[0]", -1, 1, 0.0), Real("ja[0]", -1, 1, 0.0), Real("noise 0[0]", -1, 1, 0.0)])
    told = Penalty(space, 0.5)(np.array([0.4, -0.8, 1.0]), Evaluation("ok", (1.0, 2.0), (0.1, 0.1)))
    assert told.objectives == pytest.approx((0.7, 1.7)) and told.standard_errors == (0.1, 0.1)
    failed = Evaluation.failed("no")
    assert Penalty(space, 0.5)(space.start, failed) is failed
    others = [Real("scale[base.1 #1]", 0, 1, 0.5), Real("lambda[model]", 0, 1, 0.5), Choice("weight", ("x", "y"), "x")]
    assert genes_of(PlantedSpace(others), "weight") == []


def test_tied_genes_are_what_they_join_whatever_their_name():
    tied = TiedGenesSpace(SPACE, {"all": ["*.weight[*]"], "kept": ["*.density[*]"]})
    assert [gene.name for gene in tied.genes] == ["all", "kept", "lambda"]
    assert [genes_of(RecipeSettingsSpace(tied), kind) for kind in ("weight", "density", "lambda")] == [[0], [1], [2]]
    asked, _ = search(EvoMergingConfig(evaluations=20), lambda x: 0.0, count=24, space=tied)
    assert (asked[:20, 0] == 0.5).all() and np.ptp(asked[:20, 1]) > 0


@pytest.mark.parametrize("config", [CmaEsConfig(l1=1.0), NevergradConfig(optimizer="OnePlusOne", l1=1.0)])
def test_other_strategies_take_the_penalty(config):
    """Any weights score the same, so the smallest are the best."""
    space = PlantedSpace([Real("ops[0]", -1.5, 1.5, 1.0), Real("ja[0]", -1.5, 1.5, -1.0)])
    _, strategy = search(config, score=lambda x: 1.0, count=120, space=space)
    assert np.abs(strategy.recommend()).mean() < 0.2
    with pytest.raises(ValueError, match=r"strategy\.l1: this space has no gene for a weight.*remove l1, or write"):
        config.resolved(reals(2), noise=0.0, evaluations=100)


def test_what_it_cannot_search_is_refused():
    for genes in ([SPACE.genes[1], SPACE.genes[3]], [SPACE.genes[0]], list(reals(3).genes)):
        with pytest.raises(ValueError, match=r"densities, then weights.*does not have both; write space.method: bread"):
            EvoMergingConfig(evaluations=10).resolved(PlantedSpace(genes), noise=0.0, evaluations=100)
    with pytest.raises(ValueError, match=r"write strategy.evaluations below 100, or raise budget.evaluations"):
        EvoMergingConfig(evaluations=100).resolved(SPACE, noise=0.0, evaluations=100)
    with pytest.raises(ValueError, match=r"first.warm_start: the stages begin at the space's start; remove it"):
        EvoMergingConfig.model_validate({"first": {"kind": "cma_es", "warm_start": "runs/earlier"}})


def test_what_its_stages_say_is_passed_on():
    """As `staged` does: the larger population, and checks of the tasks."""
    config = EvoMergingConfig.model_validate({"first": {"kind": "cma_es", "population": 8}})
    assert config.places == 20
