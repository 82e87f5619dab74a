"""Every strategy passes the conformance suite, which plug-ins use as well."""

from evomerge.strategies import (
    CatCmaConfig,
    CmaEsConfig,
    CmaMeConfig,
    CycleqdConfig,
    EdaConfig,
    EvoMergingConfig,
    GeneticConfig,
    GreedyConfig,
    GridConfig,
    LeastChangeConfig,
    M2n2Config,
    MapConfig,
    MapElitesConfig,
    NevergradConfig,
    Nsga2Config,
    Nsga3Config,
    PpoConfig,
    RandomConfig,
    StagedConfig,
)
from evomerge.testing import StrategySuite
from evomerge.testing.planted import PlantedSpace, reals
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.genes import Choice, Real
from search_spaces.spaces.two_stage import TwoStageSpace


class TestCmaEs(StrategySuite):
    config = CmaEsConfig(population=6, score_mean_every=2)


class TestCmaEsWithBipop(StrategySuite):
    config = CmaEsConfig(population=4, restarts="bipop")


class TestCmaEsWithAdaptedLearningRate(StrategySuite):
    config = CmaEsConfig(population=6, learning_rate="adapted")
    most_genes = 64


class TestEda(StrategySuite):
    config = EdaConfig(population=6, score_mean_every=2)


class TestCatCma(StrategySuite):
    config = CatCmaConfig(population=6, score_mean_every=2)


class TestM2n2(StrategySuite):
    config = M2n2Config(archive=6, warm_up=4)
    steady_state = True


class TestM2n2FromScratch(StrategySuite):
    config = M2n2Config(archive=6, warm_up=0, mutation=1.0)
    steady_state = True


class TestGenetic(StrategySuite):
    config = GeneticConfig(population=6)


class TestGenome(StrategySuite):
    config = GeneticConfig(preset="genome", population=6)


class TestGenomePlus(StrategySuite):
    config = GeneticConfig(preset="genome_plus", population=6)


class TestModelSwarms(StrategySuite):
    config = GeneticConfig(preset="model_swarms", population=6)


class TestGeneticReplacingTheWorst(StrategySuite):
    config = GeneticConfig(preset="replace_worst", population=6, mutation=0.5)
    steady_state = True


class TestMapElites(StrategySuite):
    config = MapElitesConfig(warm_up=4, mutation=0.5)
    steady_state = True


class TestCmaMe(StrategySuite):
    config = CmaMeConfig(population=6, emitters=2)


class TestCycleqd(StrategySuite):
    config = CycleqdConfig(warm_up=4, mutation=0.5)
    steady_state = True


class TestMap(StrategySuite):
    config = MapConfig(points=15, batch=25, population=12, generations=4, evaluations=200)
    objectives = 2
    most_genes = 15
    kinds_of_genes = (reals,)


class TestNestedMap(TestMap):
    config = MapConfig(points=6, batch=25, population=12, generations=4, evaluations=60, nested=True, block=2)
    most_genes = 500


class TestNsga2(StrategySuite):
    config = Nsga2Config(population=6)
    objectives = 2


class TestNsga3(StrategySuite):
    config = Nsga3Config(population=6)
    objectives = 3


class TestStaged(StrategySuite):
    config = StagedConfig(evaluations=20, first=CmaEsConfig(population=6), second=EdaConfig(population=6))

    def around(self, planted):
        layer = ("input_layernorm.w", "self_attn.o_proj.w", "post_attention_layernorm.w", "mlp.down_proj.w")
        layout = ModelLayout(("embed",), (layer,) * 3, "layers.{}.", ("norm",), None, "self_attn", "mlp")
        models = {"base": "/m/base", "a": "/m/a"}
        return TwoStageSpace(planted, DataFlowConfig(repeats=1), SpaceContext(models, layout, {}))


class TestStagedWithoutAGuess(TestStaged):
    config = StagedConfig(evaluations=20, first=RandomConfig(population=6), second=GeneticConfig(population=6))


class TestEvoMerging(StrategySuite):
    config = EvoMergingConfig(
        evaluations=20, first=CmaEsConfig(population=6), second=CmaEsConfig(population=6, score_mean_every=2)
    )
    kinds_of_genes = (reals,)

    def around(self, planted):
        """A density and a weight for each gene."""
        names = [f"m{at}.{kind}[model]" for at in range(planted.dimension) for kind in ("weight", "density")]
        return PlantedSpace([Real(name, -1.0, 1.0, 0.5) for name in names])


class TestPpo(StrategySuite):
    config = PpoConfig(population=6, epochs=3, score_mean_every=2)
    most_genes = 60

    def around(self, planted):
        """As many choices: a policy chooses among options."""
        return PlantedSpace([Choice(f"choice {at}", ("a", "b", "c"), "a") for at in range(planted.dimension)])


class TestRandom(StrategySuite):
    config = RandomConfig(population=6)


class TestRandomWithSeveralObjectives(StrategySuite):
    config = RandomConfig(population=6)
    objectives = 2


class TestGreedyPairs(StrategySuite):
    config = GreedyConfig(samples=6)


class TestGreedySoup(StrategySuite):
    config = GreedyConfig(samples=6, merge="soup")


class TestLeastChange(StrategySuite):
    config = LeastChangeConfig(points=4)
    steady_state = True
    seeded = False
    kinds_of_genes = (reals,)


class TestGrid(StrategySuite):
    config = GridConfig(points=4)
    seeded = False


class TestTwoPointsDE(StrategySuite):
    config = NevergradConfig(optimizer="TwoPointsDE", budget=200, parallel=3)
    steady_state = True


class TestTBPSA(StrategySuite):
    config = NevergradConfig(optimizer="TBPSA", budget=200, parallel=3)
    steady_state = True


class TestOnePlusOne(StrategySuite):
    config = NevergradConfig(optimizer="OnePlusOne", budget=200, parallel=3)
    steady_state = True
