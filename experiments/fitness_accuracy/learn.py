"""``python -m experiments.fitness_accuracy.learn --responses DIR`` writes ``fitness/estimation/learnt_prior.py``.

A merge's coefficients u of (1) in `fitness.estimation.parent_prior` are known well from its answers to all items of a
benchmark. Their distribution over merges is fitted by EM: a scale mixture of normals, u = m₀ + s₀·z with
z ~ N(μ, κΛ), where m₀ and s₀ are the rough guess that depends on the parents, and κ is one of a few scales. μ, Λ, the
shares of the scales and the spread of the parents' coefficients are estimated, from banks calibrated on random models
and on models below the median; each merge and benchmark has the same weight. Λ is then narrowed (`NARROWED`), because
`fitness.estimation.posterior` has other explanations for merges that differ more: the factor was chosen among 1, 0.7,
0.6, 0.5, 0.35 and 0.2 by the cross-validation of ``experiments.fitness_accuracy.validation``. Published
merges are the good ones of those that somebody made; a search's candidates vary more. So the wide scales get more
weight (`WIDER`).

Letters: G columns that all merges have, K scales, F columns of a merge's design.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.fitness_accuracy.calibration import Kind, calibrate
from experiments.fitness_accuracy.data import Benchmark, load
from fitness.estimation import learnt_prior, parent_prior
from fitness.estimation.irt import ItemBank
from fitness.estimation.laplace import Answers, laplace
from fitness.estimation.learnt_prior import SCALES, LearntPrior

Array = npt.NDArray[np.float64]

ITERATIONS = 15
MEAN_STRENGTH, COVARIANCE_STRENGTH = 1.0, 6.0  # weight of the start, in merges
START_VARIANCE, START_PARENT_VARIANCE = 0.35, 0.15
START_SHARES = (0.1, 0.4, 0.4, 0.08, 0.02)
SHARE_STRENGTH = 1.0  # merges that the start of the shares is worth
NARROWED = 0.6  # what Λ is multiplied by
WIDER = (0.0, 0.0, 0.0, 0.1, 0.02)  # added to the shares
CALIBRATION, SEED = 300, 0
KINDS: tuple[Kind, ...] = ("merges", "merges_below")


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge's answers to all items, its parents' and the item banks; `weight`: 1 divided by its copies."""

    answers: Array
    parents: Array
    banks: Sequence[ItemBank]
    weight: float

    @cached_property
    def guess(self) -> parent_prior.Guess:
        """The columns of its design, and their rough prior."""
        return parent_prior.guess(self.parents, self.banks)


@dataclass
class _Sums:
    """What one E step adds up over merges."""

    mean: Array
    precision: float
    scatter: list[tuple[float, Array, Array]]
    parents: float
    parent_count: float
    shares: Array


def learn(merges: Sequence[Merge]) -> tuple[LearntPrior, tuple[float, ...]]:
    """Return the distribution of the merges' coefficients, and the shares of the scales."""
    columns = merges[0].guess.mean.size
    mean, covariance = np.zeros(columns), START_VARIANCE * np.eye(columns)
    parent_variance, shares = START_PARENT_VARIANCE, np.array(START_SHARES)
    total = sum(merge.weight for merge in merges)
    for _ in range(ITERATIONS):
        sums = _Sums(np.zeros(columns), 0.0, [], 0.0, 0.0, np.zeros(len(SCALES)))
        for merge in merges:
            _add(sums, merge, mean, covariance, parent_variance, shares)
        mean = sums.mean / (sums.precision + MEAN_STRENGTH)
        scatter = COVARIANCE_STRENGTH * START_VARIANCE * np.eye(columns)
        for weight, z_G, covariance_GG in sums.scatter:
            scatter += weight * (np.outer(z_G - mean, z_G - mean) + covariance_GG)
        covariance = scatter / (total + COVARIANCE_STRENGTH)
        parent_variance = (sums.parents + COVARIANCE_STRENGTH * START_PARENT_VARIANCE) / (
            sums.parent_count + COVARIANCE_STRENGTH
        )
        shares = (sums.shares + SHARE_STRENGTH * np.array(START_SHARES)) / (total + SHARE_STRENGTH)
    learnt = LearntPrior(
        tuple(mean.round(3).tolist()),
        tuple(tuple(row) for row in (NARROWED * covariance).round(4).tolist()),
        round(float(np.sqrt(NARROWED * parent_variance)), 3),
    )
    shares = ((1 - sum(WIDER)) * shares + WIDER).round(3)
    shares[shares.argmax()] += 1 - shares.sum()  # what rounding has taken or added
    return learnt, tuple(shares.round(3).tolist())


def _add(sums: _Sums, merge: Merge, mean: Array, covariance: Array, parent_variance: float, shares: Array) -> None:
    """Add the posterior moments of one merge's standardised coefficients z, for each scale."""
    guessed = merge.guess
    learnt = LearntPrior(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())), float(np.sqrt(parent_variance)))
    given = parent_prior.from_guess(guessed, merge.parents, learnt)
    every = np.arange(merge.answers.size)
    found = laplace(
        given.mean, given.covariance, SCALES, Answers.of(given.design, given.offset, [(merge.answers, every)])
    )
    share_K = found.share(shares)[0]
    sums.shares += merge.weight * share_K
    common = mean.size
    for share, scale, u_F, covariance_FF in zip(share_K, SCALES, found.mean[0], found.covariance[0], strict=True):
        weight = merge.weight * share / scale
        z_G = (u_F - given.mean)[:common] / guessed.sd + mean
        sums.mean += weight * z_G
        sums.precision += weight
        sums.scatter.append((weight, z_G, covariance_FF[:common, :common] / np.outer(guessed.sd, guessed.sd)))
        sums.parents += weight * float((u_F[common:] ** 2).sum() + np.trace(covariance_FF[common:, common:]))
        sums.parent_count += merge.weight * share * len(merge.parents)


@dataclass(frozen=True)
class Learnt:
    """What is learnt from some merges: the priors with and without a bank, and the shares of the scales."""

    with_bank: LearntPrior
    without_bank: LearntPrior
    shares: tuple[float, ...]


def all_merges(benchmark: Benchmark) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Return all merges of a benchmark with their parents."""
    return (*benchmark.merges, *benchmark.named)


def learn_from(
    benchmarks: Sequence[Benchmark],
    draws: Sequence[int],
    keep: Callable[[Benchmark, tuple[int, ...]], bool] = lambda benchmark, parents: True,
) -> Learnt:
    """Learn from the merges for whose benchmark and parents `keep` holds, with these draws of calibrations."""
    banked, bare = [], []
    for benchmark in benchmarks:
        for row, parents in all_merges(benchmark):
            if not keep(benchmark, parents):
                continue
            answers, parent_TI = benchmark.scores[row], benchmark.scores[list(parents)]
            bare.append(Merge(answers, parent_TI, (), 1.0))
            for draw in draws:
                for kind in KINDS:
                    banks = calibrate(kind, benchmark, CALIBRATION, SEED, draw).banks
                    banked.append(Merge(answers, parent_TI, banks, 1 / len(draws) / len(KINDS)))
    with_bank, shares = learn(banked)
    return Learnt(with_bank, learn(bare)[0], shares)


def module_text(learnt: Learnt) -> str:
    """Return the source text of `fitness.estimation.learnt_prior` with these numbers."""
    text = Path(learnt_prior.__file__).read_text(encoding="utf-8")
    start = text.index("SHARES = ")
    lines = [
        f"SHARES = {learnt.shares}",
        '"""Of the merges that have each scale."""',
        f"WITH_BANK = {_call(learnt.with_bank)}",
        f"WITHOUT_BANK = {_call(learnt.without_bank)}",
    ]
    return text[:start] + "\n".join(lines) + "\n"


def _call(prior: LearntPrior) -> str:
    rows = "".join(f"        {row},\n" for row in prior.covariance)
    return f"LearntPrior(\n    {prior.mean},\n    (\n{rows}    ),\n    {prior.parent_sd},\n)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn from all merges and write the module."""
    parser = ArgumentParser(prog="python -m experiments.fitness_accuracy.learn", description=__doc__)
    parser.add_argument("--responses", type=Path, required=True, help="folder with *.npz matrices and merges.json")
    parser.add_argument("--draws", type=int, default=2, help="draws of calibration models")
    given = parser.parse_args(arguments)
    learnt = learn_from(load(given.responses), range(given.draws))
    Path(learnt_prior.__file__).write_text(module_text(learnt), encoding="utf-8")
    print(learnt)


if __name__ == "__main__":
    main()
