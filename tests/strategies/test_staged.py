"""Two searches in a row over a two-stage space."""

import numpy as np
import pytest

from evomerge.strategies import CmaEsConfig, EdaConfig, Evaluated, GeneticConfig, RandomConfig, StagedConfig
from evomerge.strategies.founded import Founded
from fitness.results import Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.two_stage import TwoStageSpace
from search_spaces.spaces.wrappers import RecipeSettingsSpace

LAYER = ("input_layernorm.w", "self_attn.o_proj.w", "post_attention_layernorm.w", "mlp.down_proj.w")
LAYOUT = ModelLayout(("embed",), (LAYER,) * 4, "layers.{}.", ("norm",), None, "self_attn", "mlp")
MODELS = {"base": "m/base", "a": "m/a", "b": "m/b"}
CONFIG = StagedConfig(evaluations=24, first=CmaEsConfig(population=6), second=EdaConfig(population=8))


@pytest.fixture
def space():
    parameters = CoefficientSpace(CoefficientConfig(layers_per_group=4), MODELS, LAYOUT)
    return TwoStageSpace(parameters, DataFlowConfig(repeats=1), SpaceContext(MODELS, LAYOUT, {}))


def evaluation(fitness, status="ok"):
    if status == "failed":
        return Evaluation.failed("planted", {})
    return Evaluation("ok", (fitness,), (0.0,), ("i",), np.array([fitness], dtype=np.float32), {})


def planted(space, genotype):
    """Score a merge by its distance to weights of one, and a path that has layer 1 of `a` and not of the merge."""
    parameters, flow = space.split(genotype)
    path = [(stop.model, stop.layer) for stop in space.flow.path(flow)]
    wanted = (("m/a", 1) in path) + ((None, 1) not in path)
    return float(wanted - np.square(parameters - 1).mean())


def drive(strategy, space, evaluations, at_once=1):
    asked, told = [], []
    while len(asked) < evaluations:
        new = strategy.ask(min(at_once, evaluations - len(asked)))
        asked += new
        for candidate in new:
            told.append(planted(space, candidate.genotype))
            strategy.tell([Evaluated(candidate.id, evaluation(told[-1]))])
    return asked, told


def test_settings_of_the_recipes_change_nothing(space):
    plain, _ = drive(CONFIG.build(space, 0), space, 60)
    stamped, _ = drive(CONFIG.build(RecipeSettingsSpace(space, tokenizer_source="union"), 0), space, 60)
    assert all(np.array_equal(a.genotype, b.genotype) for a, b in zip(plain, stamped, strict=True))


def test_the_flow_is_searched_around_the_first_strategys_guess(space):
    asked, told = drive(CONFIG.build(space, 0), space, 200)
    first, second = asked[:24], asked[24:]
    assert all(np.array_equal(space.split(c.genotype)[1], space.flow.start) for c in first)
    alone = CONFIG.first.build(space.parameters, 0)
    for fitness in told[:24]:
        alone.tell([Evaluated(alone.ask(1)[0].id, evaluation(fitness))])
    guess = alone.recommend()
    assert all(np.array_equal(space.split(c.genotype)[0], guess) for c in second)
    assert len({space.decode(c.genotype).hash for c in second}) > 50
    begun = planted(space, space.join(guess, space.flow.start))
    assert max(told[24:]) - begun == pytest.approx(2)  # both of the flow's switches were found


def test_a_lucky_score_is_not_built_upon(space):
    strategy = CONFIG.build(space, 0)
    for index in range(24):
        (candidate,) = strategy.ask(1)
        luck = 5.0 if index == 9 else 0.0
        strategy.tell([Evaluated(candidate.id, evaluation(planted(space, candidate.genotype) + luck))])
        if luck:
            lucky = space.split(candidate.genotype)[0]
    (second,) = strategy.ask(1)
    assert np.abs(space.split(second.genotype)[0] - lucky).max() > 0.1
    assert np.array_equal(space.split(strategy.recommend())[0], space.split(second.genotype)[0])


def test_generations_go_on_counting(space):
    asked, _ = drive(CONFIG.build(space, 0), space, 60)
    generations = [candidate.generation for candidate in asked]
    assert generations == sorted(generations)
    assert generations[24] > generations[23]


def test_a_replay_asks_the_same(space):
    asked, told = drive(CONFIG.build(space, 3), space, 70)
    again = CONFIG.build(space, 3)
    for candidate, fitness in zip(asked, told, strict=True):
        (repeated,) = again.ask(1)
        assert np.array_equal(repeated.genotype, candidate.genotype)
        again.tell([Evaluated(repeated.id, evaluation(fitness))])


def test_the_second_stage_waits_for_the_first(space):
    strategy = StagedConfig(evaluations=4, first=RandomConfig(), second=RandomConfig()).build(space, 0)
    first = strategy.ask(10)
    assert len(first) == 4
    strategy.tell([Evaluated(c.id, evaluation(0.0)) for c in first[1:]])
    assert strategy.ask(1) == []
    strategy.tell([Evaluated(first[0].id, evaluation(1.0))])
    (second,) = strategy.ask(1)
    assert np.array_equal(space.split(second.genotype)[0], space.split(first[0].genotype)[0])


def test_failed_candidates_are_not_built_upon(space):
    strategy = StagedConfig(evaluations=3, first=RandomConfig(), second=RandomConfig()).build(space, 0)
    first = strategy.ask(3)
    for candidate, status in zip(first, ("failed", "ok", "failed"), strict=True):
        strategy.tell([Evaluated(candidate.id, evaluation(-1.0, status))])
    (second,) = strategy.ask(1)
    assert np.array_equal(space.split(second.genotype)[0], space.split(first[1].genotype)[0])


def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match=r"is for space.kind two_stage; write strategy.kind: cma_es"):
        CONFIG.build(space.parameters, 0)

        CONFIG.resolved(space.parameters, noise=0.02, evaluations=300)


def test_auto_is_resolved_for_each_stage_by_its_own_genes(space):
    wide = TwoStageSpace(space.parameters, DataFlowConfig(repeats=8), SpaceContext(MODELS, LAYOUT, {}))
    assert (wide.parameters.dimension, wide.flow.dimension) == (6, 161)
    for stacked in (wide, RecipeSettingsSpace(wide, tokenizer_source="union")):
        resolved = StagedConfig().resolved(stacked, noise=0.0, evaluations=3000)
        assert resolved.first == CmaEsConfig().resolved(wide.parameters, noise=0.0, evaluations=150)
        assert resolved.second == EdaConfig().resolved(wide.flow, noise=0.0, evaluations=2850)
        assert resolved.resolved(stacked, noise=0.5, evaluations=300) == resolved


def test_settings_for_few_genes_are_refused_for_their_own_stage_only(space):
    wide = TwoStageSpace(space.parameters, DataFlowConfig(repeats=8), SpaceContext(MODELS, LAYOUT, {}))
    adapted = CmaEsConfig(learning_rate="adapted")
    StagedConfig(first=adapted).resolved(wide, noise=0.0, evaluations=300).build(wide, 0)
    with pytest.raises(ValueError, match=r"up to 64 genes and the space has 161; write fixed"):
        StagedConfig(second=adapted).resolved(wide, noise=0.0, evaluations=300)


def test_a_strategy_that_finishes_cannot_be_a_stage():
    with pytest.raises(
        ValueError, match=r"no strategy for a stage 'grid'; valid: catcma, cma_es, eda, genetic, m2n2, ppo, random "
    ):
        StagedConfig.model_validate({"kind": "staged", "first": {"kind": "grid"}})


@pytest.mark.parametrize("budget", [100, 150])
def test_a_budget_without_a_second_stage_is_refused(space, budget):
    with pytest.raises(ValueError, match=rf"takes 150 candidates, .*; write strategy.evaluations below {budget}, or"):
        StagedConfig().resolved(space, noise=0.1, evaluations=budget)
    StagedConfig().resolved(space, noise=0.1, evaluations=151)


def test_the_first_stage_begins_at_the_best_founder(space):
    """As a search of the merge alone: CMA-ES around it, a population with all of them."""
    better = [space.join(np.full(space.parameters.dimension, weight), space.flow.start) for weight in (0.9, 0.2)]
    founders = [*better, np.array(space.start)]
    for first in (CmaEsConfig(population=6, sigma=1e-6), GeneticConfig(population=4)):
        config = CONFIG.model_copy(update={"first": first})
        strategy = Founded(RecipeSettingsSpace(space, tokenizer_source="union"), 0, config, founders)
        asked, _ = drive(strategy, space, 9)
        assert [candidate.kind for candidate in asked[:3]] == ["founder"] * 3
        if isinstance(first, CmaEsConfig):
            assert np.allclose(asked[3].genotype, better[0], atol=1e-4)
        else:
            ids = {founder for candidate in asked[4:] for founder in candidate.parents}
            assert {0, 1} < ids
