"""The methods that are compared, and one run of one: strategies as a search uses them, in the space of raw weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from evomerge.strategies.base import Evaluated, Strategy
from evomerge.strategies.cma_es import CmaEsConfig
from evomerge.strategies.genetic import GeneticConfig
from evomerge.strategies.m2n2 import M2n2, M2n2Config
from evomerge.strategies.map_elites import MapElitesConfig
from experiments.digits_niches.network import TRAINED, WEIGHTS, Exam, random_network, trained_halves
from experiments.digits_niches.raw import RawWeights, slerp_scales
from experiments.digits_niches.unit_covariance import UnitCovarianceConfig

ARCHIVE = 20
CHECKPOINTS = (100, 200, 500, 1000, 2000, 3000, 4000, 6000, 8000, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000)
RATIOS = 2001
SAME = 1e-9  # weights that differ by less are the same to float32

# The box of raw weights is [-10, 10]: a first step of 0.01 is this share of it.
CMA_SIGMA = 0.01 / 20


@dataclass(frozen=True)
class Method:
    """A strategy; `config` gets the probability of mutation: 1 from scratch, 0 for trained halves."""

    name: str
    config: Callable[[float], Any]
    split: bool = True
    best_ever: bool = False
    """Report the best network scored so far, and not the strategy's own recommendation."""


METHODS = {
    method.name: method
    for method in (
        Method("M2N2", lambda mutation: M2n2Config(archive=ARCHIVE, mutation=mutation, warm_up=0)),
        Method(
            "GA",
            lambda mutation: GeneticConfig(preset="replace_worst", population=ARCHIVE, mutation=mutation),
        ),
        Method(
            "M2N2, no attraction",
            lambda mutation: M2n2Config(archive=ARCHIVE, mutation=mutation, warm_up=0, attraction=False),
        ),
        Method(
            "M2N2, no split point",
            lambda mutation: M2n2Config(archive=ARCHIVE, mutation=mutation, warm_up=0),
            split=False,
        ),
        Method(
            "M2N2, no crossover",
            lambda mutation: M2n2Config(archive=ARCHIVE, mutation=mutation, warm_up=0, crossover=0.0),
        ),
        Method(
            "GA, no crossover",
            lambda mutation: GeneticConfig(
                preset="replace_worst", population=ARCHIVE, mutation=mutation, crossover=0.0
            ),
        ),
        Method("MAP-Elites", lambda mutation: MapElitesConfig(cells=10, mutation=mutation, warm_up=0)),
        Method(
            "CMA-ES, separable",
            lambda mutation: CmaEsConfig(population=20, sigma=CMA_SIGMA, diagonal=True, restarts=False),
            best_ever=True,
        ),
        Method("CMA-ES, unit covariance", lambda mutation: UnitCovarianceConfig(), best_ever=True),
    )
}


@dataclass(frozen=True)
class Case:
    """One run; `pair`: seed of the trained halves that it starts from, None: from scratch."""

    method: str
    pair: int | None
    seed: int
    evaluations: int


@dataclass(frozen=True)
class Outcome:
    """Accuracy of the network that a method would return after a number of evaluations.

    Attributes
    ----------
    scored
        Networks scored in `seconds` of searching, without the tests. Fewer than asked for where all members of an
        archive have become the same and are not mutated: nothing changes from there on.
    coverage
        Share of training images that at least one member of the last archive classifies correctly; None where no
        archive has scores per item.
    """

    case: Case
    evaluations: list[int]
    train: list[float]
    test: list[float]
    scored: int
    seconds: float
    coverage: float | None


@dataclass(frozen=True)
class Line:
    """The best single ratio of SLERP between two trained halves, by accuracy on the training images."""

    pair: int
    ratio: float
    train: float
    test: float
    halves: tuple[float, float]
    """Test accuracy of the halves."""


def run(case: Case) -> Outcome:
    """Search, and test at the checkpoints."""
    method = METHODS[case.method]
    exam, final = Exam(slice(TRAINED)), Exam(slice(TRAINED, None))
    founders = trained_halves(case.pair) if case.pair is not None else _random_pair(case.seed)
    space = RawWeights(WEIGHTS, founders=founders, split=method.split)
    strategy = method.config(0.0 if case.pair is not None else 1.0).build(space, case.seed)
    checkpoints = [count for count in CHECKPOINTS if count < case.evaluations] + [case.evaluations]
    best: tuple[float, NDArray[np.float64]] = (-1.0, founders[0])
    train, test, seconds, done = [], [], 0.0, 0
    for checkpoint in checkpoints:
        if case.pair is not None and _collapsed(strategy):  # no child can differ any more: the rest is known
            train.append(train[-1])
            test.append(test[-1])
            continue
        started = time.perf_counter()
        while done < checkpoint:
            done += 1
            (candidate,) = strategy.ask(1)
            evaluation = exam.evaluate(candidate.genotype)
            strategy.tell([Evaluated(candidate.id, evaluation)])
            if method.best_ever and evaluation.fitness > best[0]:
                best = evaluation.fitness, candidate.genotype.copy()
        seconds += time.perf_counter() - started
        network = best[1] if method.best_ever else _recommended(strategy)
        train.append(round(exam.accuracy(network), 5))
        test.append(round(final.accuracy(network), 5))
    coverage = float(strategy.archive.scores.any(axis=0).mean()) if isinstance(strategy, M2n2) else None
    return Outcome(case, checkpoints, train, test, done, round(seconds, 2), coverage)


def best_line(pair: int) -> Line:
    """Try many ratios for a pair."""
    exam, final = Exam(slice(TRAINED)), Exam(slice(TRAINED, None))
    a, b = trained_halves(pair)

    def between(ratio: float) -> NDArray[np.float64]:
        of_a, of_b = slerp_scales(a, b, ratio)
        return of_a * a + of_b * b

    ratios = np.linspace(0.0, 1.0, RATIOS)
    scores = [exam.accuracy(between(ratio)) for ratio in ratios]
    best = float(ratios[int(np.argmax(scores))])
    halves = final.accuracy(a), final.accuracy(b)
    return Line(pair, best, max(scores), final.accuracy(between(best)), halves)


def use_threads(count: int) -> None:
    """Let numpy's products use so many threads; torch, which trains the halves, uses one."""
    threadpool_limits(count)
    torch.set_num_threads(1)


def _collapsed(strategy: Strategy) -> bool:
    """Return whether all members of a full archive are the same network, and so all their children too."""
    if not isinstance(strategy, M2n2) or strategy.archive.size < strategy.archive.places:
        return False
    return float(np.ptp(strategy.archive.genotypes, axis=0).max()) < SAME


def _random_pair(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng([1, seed])
    return random_network(rng), random_network(rng)


def _recommended(strategy: Strategy) -> NDArray[np.float64]:
    network = strategy.recommend()
    if network is None:
        raise RuntimeError("the strategy has nothing to recommend after its first results")
    return network
