"""The field's programs, written again from their sources with the settings that they ship with.

All search the genes of the problem: weights of experts by group. What they leave to the user (ranges) is that of
the problem; what they decide (first point, step, population, items, estimator, which recipe is handed over) is theirs.

- mergekit-evolve (arcee-ai/mergekit a6e4028, `mergekit/scripts/evolve.py`, `mergekit/evo/genome.py`): pycma's `fmin2`
  from 1/K for every weight, sigma 1/6, pycma's own population and stopping rules, absolute values of weights, all items
  of every task, and the best candidate ever scored is written after each generation.
- Mergenetic (tommasomncttn/mergenetic d35ff9e, `experiments/evolutionary-merging`): pymoo's GA with 25 individuals
  (its notebooks; the scripts' own files say 1), integer sampling of 0 to 10 tenths of the range, SBX and PM; 20 random
  items, kept for the whole search, and gmp-IRT of their answers. With several tasks pymoo's NSGA-II with 7 individuals
  (`experiments/evolutionary-merging-lm-harness/multiobjective`), 20 items a task and their means.
- GENOME+ (ZhangYiqun018/GENOME d514ab9, `scripts/genomeplus.sh`, `src/genomeplus`): ten individuals from pairs of
  experts, a swarm step, then crossover weighted by fitness, and roulette back to ten; 200 items. As in the program,
  random factors are drawn once, lambda shrinks with every individual, and an individual's own best is where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import combinations, cycle, islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from experiments.search_efficiency.metering import BudgetSpent, Curve, Meter
from experiments.search_efficiency.ours import random_items
from experiments.search_efficiency.problems import Problem
from fitness.estimation.estimators import gmp_irt
from fitness.estimation.inputs import EstimatorInputs
from fitness.estimation.irt import ItemBank
from fitness.estimation.item_banks import Responses, fit_item_banks
from fitness.items import positions_by_task
from search_spaces.spaces.space import Genotype

Array = NDArray[np.float64]

SCALES = tuple(round(0.1 * step, 1) for step in range(1, 13))
"""Scales of task arithmetic that the grid tries."""
LONGER = (8000, 16_000)
CALIBRATION = 40
"""Models whose answers gmp-IRT's items are calibrated with; they cost the contender nothing, like published ones."""


@dataclass(frozen=True)
class Program:
    """A contender that buys answers from a meter.

    Attributes
    ----------
    name
        In the table.
    run
        Searches with a seed until the meter has no more answers.
    deterministic
        Whether every seed gives the same search.
    tasks
        Fewest tasks that it is made for.
    prepare
        What is done before the first answer and takes none of the program's seconds.
    longer
        Checkpoints beyond the problem's, for a program whose generations cost more answers than the budget has.
    """

    name: str
    run: Callable[[Meter, int], None]
    deterministic: bool = False
    tasks: int = 1
    prepare: Callable[[Problem], object] | None = None
    longer: tuple[int, ...] = ()
    most_genes: ClassVar[int] = 10**9
    settings: ClassVar[str] = "as shipped"

    def search(self, problem: Problem, seed: int) -> Curve:
        """Search once until the last checkpoint."""
        if self.prepare is not None:
            self.prepare(problem)
        last = problem.checkpoints[-1]
        meter = Meter(problem, (*problem.checkpoints, *(at for at in self.longer if at > last)))
        with suppress(BudgetSpent):
            self.run(meter, seed)
        return meter.curve(self.name, seed)


def grid(meter: Meter, seed: int) -> None:
    """Task arithmetic with one scale for everything, on all items; the best scale is handed over."""
    best = -np.inf
    for scale in SCALES:
        genotype = np.full(meter.problem.space.dimension, scale)
        fitness = meter.fitness(genotype, meter.problem.search_items)
        if fitness > best:
            best, meter.guess = fitness, genotype
    meter.note()


def mergekit_evolve(meter: Meter, seed: int) -> None:
    """CMA-ES as mergekit-evolve runs it."""
    import cma

    problem = meter.problem
    start = np.full(problem.space.dimension, 1.0 / len(problem.experts))
    meter.guess = start
    best = np.inf

    def costs(genotypes: list[Genotype]) -> list[float]:
        return [-meter.fitness(np.abs(genotype), problem.search_items) for genotype in genotypes]

    def written(search: cma.CMAEvolutionStrategy) -> None:
        nonlocal best
        if search.result.fbest < best:
            best, meter.guess = search.result.fbest, np.abs(search.result.xbest)

    options = {"maxfevals": np.inf, "seed": seed + 1, "verbose": -9}
    cma.fmin2(None, start, 1 / 6, options=options, parallel_objective=costs, callback=written)


# --- Mergenetic ---

SUBSET, POPULATION, POPULATION_SEVERAL = 20, 25, 7


def mergenetic_ga(meter: Meter, seed: int) -> None:
    """The genetic algorithm with gmp-IRT, as Mergenetic's script for one task, by pymoo."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    problem = meter.problem
    subset = random_items(problem, SUBSET, seed)
    experts = np.array([meter.ask(expert, problem.search_items) for expert in problem.experts])
    inputs = _irt_inputs(problem, experts)
    places = positions_by_task(problem.search_items)
    total = sum(problem.weights.values())

    def cost(tenths: Array) -> list[float]:
        scores = dict(zip(subset, meter.ask(_in_range(problem, tenths / 10), subset), strict=True))
        value = 0.0
        for task, weight in problem.weights.items():
            items = [problem.search_items[at] for at in places[task]]
            asked = [at for at, item in enumerate(items) if item in scores]
            answers = np.array([scores[items[at]] for at in asked])
            value += weight / total * gmp_irt(answers, np.array(asked), inputs[task]).value
        return [-value]

    algorithm = GA(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(),
        mutation=PM(),
        eliminate_duplicates=True,
    )
    _evolve(meter, algorithm, cost, objectives=1, high=10.0, seed=seed)


def mergenetic_nsga2(meter: Meter, seed: int) -> None:
    """The NSGA-II with means of a subset, as Mergenetic's script for several tasks, by pymoo."""
    from pymoo.algorithms.moo.nsga2 import NSGA2

    problem = meter.problem
    subset = random_items(problem, SUBSET, seed)
    names = np.array([item.rsplit("/", 2)[0] for item in subset])

    def cost(shares: Array) -> list[float]:
        scores = meter.ask(_in_range(problem, shares), subset)
        return [-float(scores[names == task].mean()) for task in problem.weights]

    algorithm = NSGA2(pop_size=POPULATION_SEVERAL, eliminate_duplicates=True)
    _evolve(meter, algorithm, cost, objectives=len(problem.weights), high=1.0, seed=seed)


def _in_range(problem: Problem, shares: Array) -> Genotype:
    low, high = problem.space.low, problem.space.high
    return low + np.clip(shares, 0.0, 1.0) * (high - low)


def _evolve(
    meter: Meter, algorithm: object, cost: Callable[[Array], list[float]], *, objectives: int, high: float, seed: int
) -> None:
    """Run an algorithm of pymoo; after each generation the guess is the best of what it would return."""
    from pymoo.core.callback import Callback
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    shares = np.array(list(meter.problem.weights.values()))

    class Merges(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=meter.problem.space.dimension, n_obj=objectives, xl=0.0, xu=high)

        def _evaluate(self, x: Array, out: dict[str, object], *args: object, **more: object) -> None:
            out["F"] = cost(np.asarray(x, np.float64))

    class Written(Callback):
        def notify(self, search: Any) -> None:
            best = search.opt
            values = best.get("F") @ (shares if objectives > 1 else np.ones(1))
            meter.guess = _in_range(meter.problem, np.asarray(best[int(np.argmin(values))].X, np.float64) / high)

    minimize(Merges(), algorithm, ("n_iter", 10**6), seed=seed, verbose=False, callback=Written())


@cache
def calibrated(problem: Problem) -> Mapping[str, ItemBank]:
    """Fit the items of each task to the answers of other merges of the same experts, once in a process."""
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(CALIBRATION):
        weights = rng.uniform(0.0, 1.2, len(problem.experts))
        answers.append(problem.scores(np.tensordot(weights, np.array(problem.experts), 1), problem.search_items))
    models = tuple(f"calibration {number}" for number in range(CALIBRATION))
    banks = {}
    for task, places in positions_by_task(problem.search_items).items():
        items = tuple(problem.search_items[at] for at in places)
        banks[task] = fit_item_banks(Responses(models, items, np.array(answers)[:, places]))[-1]
    return banks


def _irt_inputs(problem: Problem, experts: Array) -> dict[str, EstimatorInputs]:
    banks = calibrated(problem)
    return {
        task: EstimatorInputs(len(places), parents=experts[:, places], banks=(banks[task],))
        for task, places in positions_by_task(problem.search_items).items()
    }


# --- GENOME+ ---

INDIVIDUALS, VALIDATION = 10, 200
STEP, DECAY = 0.5, 0.95
PHI = np.array([0.2, 0.2, 0.2, 0.1])
CROSSOVER, ELITE = 0.3, 0.1


def genome_plus(meter: Meter, seed: int) -> None:
    """A swarm step and a genetic step in turn, as GENOME+ runs them; genomes are merges of whole experts."""
    problem, rng = meter.problem, np.random.default_rng(seed)
    items = random_items(problem, max(1, VALIDATION // len(problem.weights)), seed)
    pairs = list(combinations(problem.experts, 2))
    rng.shuffle(pairs)
    genomes, step = [], STEP
    for first, second in islice(cycle(pairs), INDIVIDUALS):
        share = rng.random(2)
        genomes.append((share[0] * first + share[1] * second) / share.sum())
    best, worst = (-np.inf, genomes[0]), (np.inf, genomes[0])

    def scored(genome: Genotype) -> float:
        nonlocal best, worst
        fitness = meter.fitness(genome, items)
        if fitness > best[0]:
            best, meter.guess = (fitness, genome), genome
        if fitness < worst[0]:
            worst = (fitness, genome)
        return fitness

    fitness = [scored(genome) for genome in genomes]
    velocities = [genomes[rng.integers(len(genomes))] - genome for genome in genomes]
    factors = rng.random(4) * PHI
    while True:
        for index, genome in enumerate(genomes):
            pull = factors[0] * velocities[index] + factors[2] * (best[1] - genome) - factors[3] * (worst[1] - genome)
            velocities[index] = pull / factors.sum()
        for index in range(len(genomes)):
            step *= DECAY
            genomes[index] = genomes[index] + step * velocities[index]
        fitness = [scored(genome) for genome in genomes]
        for _ in range(len(genomes) // 2):
            if rng.random() <= CROSSOVER:
                first, second = rng.choice(len(genomes), 2, replace=False, p=_roulette(fitness))
                total = fitness[first] + fitness[second]
                child = (fitness[first] * genomes[first] + fitness[second] * genomes[second]) / total
                velocities.append(genomes[rng.integers(len(genomes))] - child)
                genomes.append(child)
                fitness.append(scored(child))
        kept = _survivors(fitness, rng)
        genomes, velocities, fitness = ([values[at] for at in kept] for values in (genomes, velocities, fitness))


def _roulette(fitness: list[float]) -> Array:
    """Return probabilities in proportion to fitness; a hundredth of an answer more keeps them defined at zero."""
    values = np.array(fitness) + 1e-4
    shares: Array = values / values.sum()
    return shares


def _survivors(fitness: list[float], rng: np.random.Generator) -> list[int]:
    """Return who lives on: a tenth as elites, the rest by roulette, each at most once."""
    if len(fitness) <= INDIVIDUALS:
        return list(range(len(fitness)))
    order = np.argsort(-np.array(fitness), kind="stable")
    elites = round(len(fitness) * ELITE)
    rest = order[elites:]
    chosen = rng.choice(rest, INDIVIDUALS - elites, replace=False, p=_roulette([fitness[at] for at in rest]))
    return [*order[:elites].tolist(), *chosen.tolist()]


FIELD = (
    Program("mergekit-evolve", mergekit_evolve, longer=LONGER),
    Program("Mergenetic, GA with gmp-IRT", mergenetic_ga, prepare=calibrated, longer=LONGER[:1]),
    Program("Mergenetic, NSGA-II", mergenetic_nsga2, tasks=2, longer=LONGER[:1]),
    Program("GENOME+ as published", genome_plus, longer=LONGER[:1]),
    Program("best fixed λ", grid, deterministic=True, longer=LONGER),
)
