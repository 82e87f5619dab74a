"""What a candidate was made of: strategies say it, and the ids are right inside of other strategies as well."""

from typing import Any

import numpy as np
import pytest

from evomerge.strategies import Evaluated
from evomerge.strategies.founded import Founded
from evomerge.strategies.genetic import GeneticConfig
from evomerge.strategies.gradient import GradientConfig
from evomerge.strategies.m2n2 import M2n2Config
from evomerge.strategies.map_elites import MapElitesConfig
from evomerge.strategies.nsga2 import Nsga2Config
from evomerge.strategies.random import RandomConfig
from evomerge.testing.planted import PlantedSpace, reals
from fitness.results import Evaluation

ITEMS = ("a/test/0", "b/test/0")
CONFIGS = [
    M2n2Config(archive=4, warm_up=3),
    MapElitesConfig(cells=4, warm_up=3),
    GeneticConfig(population=6, crossover=1.0, mutation=0.0),
    Nsga2Config(population=6, crossover=1.0),
]


class Recording(PlantedSpace):
    """A space that remembers which parents each child had; mutation changes nothing."""

    def __init__(self) -> None:
        super().__init__(reals(4).genes)
        self.children: dict[bytes, list[bytes]] = {}

    def crossover(self, a: Any, b: Any, rng: Any) -> Any:
        child = super().crossover(a, b, rng)
        self.children[child.tobytes()] = [a.tobytes(), b.tobytes()]
        return child

    def mutate(self, a: Any, rng: Any) -> Any:
        return np.array(a)


def scored(genotype: Any) -> Evaluation:
    scores = np.array([genotype[0], 1 - genotype[1]], np.float32)
    return Evaluation("ok", tuple(scores.tolist()), (0.1, 0.1), ITEMS, scores, shares=(0.5, 0.5))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@pytest.mark.parametrize("founded", [False, True])
def test_a_child_names_the_candidates_that_were_crossed(config: Any, founded: bool) -> None:
    space = Recording()
    rng = np.random.default_rng(0)
    founders = [space.start.copy(), space.sample(rng), space.sample(rng)]
    strategy = Founded(space, 1, config, founders) if founded else config.build(space, 1)
    genotypes, children = {}, 0
    for _ in range(60):
        (candidate,) = strategy.ask(1)
        genotypes[candidate.id] = candidate.genotype.tobytes()
        known = space.children.get(candidate.genotype.tobytes())
        if known is not None and candidate.kind == "sample":
            children += 1
            assert {genotypes[parent] for parent in candidate.parents} == set(known) & set(genotypes.values())
            assert candidate.parents
        strategy.tell([Evaluated(candidate.id, scored(candidate.genotype))])
    assert children > 20


def test_a_step_follows_the_one_before_and_a_sample_nothing() -> None:
    space = reals(3)
    config = GradientConfig(steps=3, items=1, then=RandomConfig())
    strategy, parents = config.build(space, 0), []
    for _ in range(6):
        (candidate,) = strategy.ask(1)
        parents.append((candidate.kind, candidate.parents))
        gradient = tuple(np.zeros(3)) if candidate.kind == "gradient" else ()
        status = "step" if candidate.kind == "gradient" else "ok"
        strategy.tell([Evaluated(candidate.id, Evaluation(status, (0.5,), (0.1,), gradient=gradient))])
    steps = [("gradient", ()), ("gradient", (0,)), ("gradient", (1,))]
    assert parents == [*steps, ("mean", (2,)), ("sample", ()), ("sample", ())]
