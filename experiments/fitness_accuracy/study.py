"""``python -m experiments.fitness_accuracy.study --responses DIR``: ideas for a smaller error, and what each costs.

Priors are learnt from the other half of the merges, as in ``experiments.fitness_accuracy.validation``. *Linear*: the
answers are normal, with the prior's probabilities as their mean, and with the covariance

    Cov = w w' ∘ (X Λ X') + a·C + diag(noise),   w = p(1 − p),

where C is the covariance of other models' answers, scaled to the same variances, and a its share (0: none). Items are
chosen one by one: a random one of those that reduce the variance of the sum at least 0.8 times as much as the best.
*For unlike candidates*: two more columns, of broken answers (p) and of emerged ones (1 − p where no parent is right).

The third table has merges that are simulated from the learnt prior (``experiments.fitness_accuracy.simulated``), each
half's from the prior of the other.

Letters: I items, J other models, S asked items.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.fitness_accuracy.calibration import calibrate
from experiments.fitness_accuracy.data import Benchmark, load, simulate
from experiments.fitness_accuracy.learn import CALIBRATION, SEED, learn_from
from experiments.fitness_accuracy.simulated import as_learnt, items_by_simulation, probabilities
from experiments.fitness_accuracy.validation import (
    CHANGES,
    SIZES,
    Case,
    Record,
    cases,
    half,
    record_of,
    summarise,
    using,
)
from experiments.harness import Experiment, Results
from fitness.estimation import posterior as explanations
from fitness.estimation.learnt_prior import SCALES
from fitness.estimation.parent_prior import Prior
from fitness.estimation.posterior import posterior
from fitness.estimation.subset import CHOICE_SCALE, SLACK, default_subset, greedy
from fitness.results import Estimate

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

ROBUST_SIZE = 20  # items, for candidates unlike their parents
WIDTH = CHOICE_SCALE  # of the linear model's prior, in Λ
BROKEN_VARIANCE, EMERGED_VARIANCE = 0.003, 0.03
WIDEST = 4.0  # κ
KEPT = 0.95  # share of other models' covariances that is kept
SMALLEST_NOISE = 0.1  # of an item's variance, whatever its covariances
SIMULATED = 4  # merges simulated for each published one


@dataclass(frozen=True, eq=False)
class Linear:
    """Normal answers: float64[I] means and float64[I, I] covariance."""

    mean: Array
    covariance: Array

    def choose(self, count: int, rng: np.random.Generator, slack: float = 0.0) -> Positions:
        """Return the items that, asked one by one, leave the sum of all answers the smallest variance."""
        left_II = self.covariance.copy()
        free_I, chosen = np.ones(len(left_II), bool), []
        for _ in range(count):
            with_sum_I, own_I = left_II.sum(1), np.maximum(left_II.diagonal(), 1e-9)
            gain_I = np.where(free_I, with_sum_I**2 / own_I, -np.inf)
            item = int(rng.choice(np.flatnonzero(gain_I >= (1 - slack) * gain_I.max())))
            left_II = left_II - np.outer(left_II[:, item], left_II[item]) / own_I[item]
            free_I[item] = False
            chosen.append(item)
        return np.sort(np.array(chosen, np.int64))

    def estimate(self, score_S: Array, asked_S: Positions) -> Estimate:
        """Return the mean of all answers, given some."""
        items, sum_S = len(self.mean), self.covariance[asked_S].sum(1)
        gain_S = np.linalg.solve(self.covariance[np.ix_(asked_S, asked_S)], sum_S)
        variance = float(self.covariance.sum() - gain_S @ sum_S)
        value = float(self.mean.sum() + gain_S @ (score_S - self.mean[asked_S])) / items
        return Estimate(value, max(variance, 1e-9) ** 0.5 / items)


@dataclass(frozen=True, eq=False)
class Setting:
    """What is known before a merge answers: the prior, and other models' answers."""

    given: Prior
    other_JI: Array

    @cached_property
    def covariance_of_others(self) -> Array:
        """float64[I, I], shrunk towards its diagonal."""
        covariance_II = np.cov(self.other_JI, rowvar=False)
        own_I = np.maximum(covariance_II.diagonal(), 1e-4)
        shrunk_II = KEPT * covariance_II
        np.fill_diagonal(shrunk_II, own_I)
        return np.asarray(shrunk_II, np.float64)

    def others(self) -> Linear:
        """Return the model that knows other models and no parents (BLUP)."""
        return Linear(self.other_JI.mean(0), self.covariance_of_others)

    def linear(self, share: float = 0.0, width: float | None = None, unlike: bool = False) -> Linear:
        """Return the linear model of the prior; `width`: of Λ, by default the average of the learnt scales."""
        given = self.given
        covariance_FF = (float(np.dot(SCALES, given.shares)) if width is None else width) * given.covariance
        p_I = Prior(given.design, given.offset, given.mean, covariance_FF).probability
        own_I = np.maximum(p_I * (1 - p_I), 1e-3)
        shift_IF = own_I[:, None] * given.design
        known_II = shift_IF @ covariance_FF @ shift_IF.T
        noise_I = own_I
        if share:
            scale_I = np.sqrt(own_I / self.covariance_of_others.diagonal())
            known_II = known_II + share * self.covariance_of_others * np.outer(scale_I, scale_I)
            noise_I = np.maximum((1 - share) * own_I, SMALLEST_NOISE * own_I)
        if unlike and given.strata is not None:
            emerged_I = np.where(given.strata == 0, 1 - p_I, 0.0)
            known_II = known_II + BROKEN_VARIANCE * np.outer(p_I, p_I)
            known_II = known_II + EMERGED_VARIANCE * np.outer(emerged_I, emerged_I)
        return Linear(p_I, known_II + np.diag(noise_I))


Choose = Callable[[Setting, int, int], Positions]
"""(setting, number of items, generation) to the asked positions."""
Judge = Callable[[Setting, Array, Positions], Estimate]
"""(setting, scores, asked positions) to the estimate."""


@dataclass(frozen=True)
class Idea:
    """A way to choose the items and to judge the answers; `robust`: whether its second table is measured."""

    choose: Choose
    judge: Judge
    robust: bool = False


@contextmanager
def _alike() -> Iterator[None]:
    """Leave candidates that are unlike their parents out of account."""
    before = dict(explanations.CHANCES)
    explanations.CHANCES.update(dict.fromkeys(before, 1e-9))
    try:
        yield
    finally:
        explanations.CHANCES.update(before)


def shipped_items(setting: Setting, count: int, generation: int) -> Positions:
    """Return the default's items."""
    return default_subset(setting.given, count, SEED, generation)


def no_checks(setting: Setting, count: int, generation: int) -> Positions:
    """Return the items for candidates like their parents."""
    return greedy(setting.given, count, np.random.default_rng([SEED, generation]))


def linear_items(
    setting: Setting, count: int, generation: int, *, share: float = 0.0, slack: float = 0.0, unlike: bool = False
) -> Positions:
    """Return the best items of the linear model."""
    rng = np.random.default_rng([SEED, generation])
    return setting.linear(share, WIDTH, unlike).choose(count, rng, slack)


def simulated_items(setting: Setting, count: int, generation: int) -> Positions:
    """Return the items that are best for candidates simulated from all explanations."""
    return items_by_simulation(setting.given, count, np.random.default_rng([SEED, generation]))


def others_items(setting: Setting, count: int, generation: int) -> Positions:
    """Return the best items by other models' covariances alone."""
    return setting.others().choose(count, np.random.default_rng([SEED, generation]))


def shipped(setting: Setting, score_S: Array, asked_S: Positions) -> Estimate:
    """Return the default's estimate."""
    return posterior(setting.given, score_S, asked_S)


def alike(setting: Setting, score_S: Array, asked_S: Positions) -> Estimate:
    """Return the default's estimate without any explanation but that the candidate is like its parents."""
    with _alike():
        return posterior(setting.given, score_S, asked_S)


def alike_narrow(setting: Setting, score_S: Array, asked_S: Positions) -> Estimate:
    """Return the same without the widest scales of the prior."""
    share_K = np.where(np.array(SCALES) <= WIDEST, setting.given.shares, 0.0)
    narrow = replace(setting.given, shares=tuple((share_K / share_K.sum()).tolist()))
    return alike(replace(setting, given=narrow), score_S, asked_S)


def linear(setting: Setting, score_S: Array, asked_S: Positions, *, share: float = 0.0) -> Estimate:
    """Return the linear model's estimate."""
    return setting.linear(share).estimate(score_S, asked_S)


def others(setting: Setting, score_S: Array, asked_S: Positions) -> Estimate:
    """Return the estimate by other models' covariances alone."""
    return setting.others().estimate(score_S, asked_S)


IDEAS: Mapping[str, Idea] = {
    "the default, as shipped": Idea(shipped_items, shipped, robust=True),
    "its items, candidates like their parents only": Idea(shipped_items, alike),
    "no checks, candidates like their parents only": Idea(no_checks, alike),
    "the same with κ at most 4": Idea(no_checks, alike_narrow),
    "the same, linear": Idea(no_checks, linear),
    "linear, other models' covariances, share 0.05": Idea(
        partial(linear_items, share=0.05, slack=SLACK), partial(linear, share=0.05)
    ),
    "linear, other models' covariances, share 0.3": Idea(
        partial(linear_items, share=0.3, slack=SLACK), partial(linear, share=0.3)
    ),
    "other models' covariances alone, no parents": Idea(others_items, others),
    "no checks, with the other explanations": Idea(no_checks, shipped, robust=True),
    "items for unlike candidates, with the other explanations": Idea(
        partial(linear_items, slack=SLACK, unlike=True), shipped, robust=True
    ),
    "items by simulated candidates, with the other explanations": Idea(simulated_items, shipped, robust=True),
}

IDEAL = {
    "like its parents, and the estimator knows that and the prior": Idea(no_checks, alike),
    "the same, items by simulated candidates": Idea(simulated_items, alike),
    "the default": Idea(shipped_items, shipped),
}
"""For simulated merges. The first two are given the distribution that the merges are drawn from."""


def measure(benchmarks: Sequence[Benchmark], sizes: Sequence[int]) -> tuple[dict[str, list[Record]], ...]:
    """Return records of published merges, of candidates unlike their parents at 20 items, and of simulated merges.

    Keys of the first are ideas, of the second ``idea / kind of candidate``, and of the third those of `IDEAL`.
    """
    published: dict[str, list[Record]] = {name: [] for name in IDEAS}
    robust: dict[str, list[Record]] = {}
    ideal: dict[str, list[Record]] = {name: [] for name in IDEAL}
    for side in (0, 1):
        with using(learn_from(benchmarks, (0,), lambda *merge, side=side: half(*merge) != side)):
            for number, case in enumerate(cases(benchmarks, 1)):
                if half(case.benchmark, case.parents) != side:
                    continue
                others = calibrate("merges", case.benchmark, CALIBRATION, SEED, case.draw).scores
                setting = Setting(case.prior(), others)
                for name, idea in IDEAS.items():
                    found, unlike = _of_case(case, number, setting, idea, sizes)
                    published[name] += found
                    for kind, record in unlike.items():
                        robust.setdefault(f"{name} / {kind}", []).append(record)
                for name, records in _of_simulated(case, number, setting, sizes).items():
                    ideal[name] += records
    return published, robust, ideal


def _of_simulated(case: Case, number: int, setting: Setting, sizes: Sequence[int]) -> dict[str, list[Record]]:
    """Return the records of merges simulated from what is learnt, with the parents of this merge."""
    learnt = replace(setting, given=as_learnt(setting.given))
    rng = np.random.default_rng([SEED, number])
    right_MI = probabilities(learnt.given, SIMULATED, rng)
    answers_MI = (rng.random(right_MI.shape) < right_MI).astype(float)
    found: dict[str, list[Record]] = {}
    for name, idea in IDEAL.items():
        known = setting if idea.judge is shipped else learnt
        for size in (size for size in sizes if size < case.answers.size):
            asked_S = idea.choose(known, size, number)
            found.setdefault(name, []).extend(_judged(case, each, known, idea, asked_S) for each in answers_MI)
    return found


def _of_case(
    case: Case, number: int, setting: Setting, idea: Idea, sizes: Sequence[int]
) -> tuple[list[Record], dict[str, Record]]:
    """Return an idea's records of a merge, and those of the candidates made from it."""
    asked = {size: idea.choose(setting, size, number) for size in sizes if size < case.answers.size}
    found = [_judged(case, case.answers, setting, idea, asked_S) for asked_S in asked.values()]
    unlike: dict[str, Record] = {}
    if idea.robust:
        for kind in (kind for kind in CHANGES if kind != "as published"):
            rng = np.random.default_rng([SEED, number, ROBUST_SIZE])
            answers = CHANGES[kind](case.answers, case.parent_scores, rng)
            unlike[kind] = _judged(case, answers, setting, idea, asked[ROBUST_SIZE])
    return found, unlike


def _judged(case: Case, answers: Array, setting: Setting, idea: Idea, asked_S: Positions) -> Record:
    size = int(asked_S.size)
    rng = np.random.default_rng([SEED, case.row, size])
    return record_of(case, answers, idea.judge(setting, answers[asked_S], asked_S), size, rng)


def tables(results: Results) -> list[str]:
    """Return the tables of ideas on published merges, on candidates unlike their parents, and on simulated merges."""
    by_idea: dict[str, dict[str, Mapping[str, float]]] = {}
    for key, cell in results["robustness"].items():
        name, kind = key.split(" / ")
        by_idea.setdefault(kind, {})[name] = cell
    names = list(dict.fromkeys(key.split(" / ")[0] for key in results["robustness"]))
    robust = ["| candidates | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for kind, cells in by_idea.items():
        shown = [
            f"{cells[name]['error']:.2f} ({cells[name]['mean_error']:.2f}), {cells[name]['coverage']:.0f} %"
            for name in names
        ]
        robust.append(f"| {kind} | " + " | ".join(shown) + " |")
    return [_by_size(results, "published", "idea"), "\n".join(robust), _by_size(results, "ideal", "simulated merges")]


def _by_size(results: Results, which: str, heading: str) -> str:
    """Return a table with a column for each number of items."""
    sizes = [str(size) for size in results["sizes"]]
    lines = [f"| {heading} | " + " | ".join(f"n={size}" for size in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
    for name, cells in results[which].items():
        shown = [
            f"{cells[size]['error']:.2f} ± {cells[size]['spread']:.2f}, {cells[size]['coverage']:.0f} %"
            for size in sizes
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="simulated responses unless --responses is given; 20 items")
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    benchmarks = load(given.responses) if given.responses else simulate(SEED)
    sizes = (ROBUST_SIZE,) if given.quick else SIZES
    out, start = EXPERIMENT.destination(given), time.perf_counter()
    published, robust, ideal = measure(benchmarks, sizes)
    results: Results = {
        "sizes": list(sizes),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        **{
            which: {
                name: {str(size): asdict(summarise([one for one in records if one.items == size])) for size in sizes}
                for name, records in found.items()
            }
            for which, found in (("published", published), ("ideal", ideal))
        },
        "robustness": {name: asdict(summarise(records)) for name, records in robust.items()},
    }
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, module="study", file="study.json", marker="study")

if __name__ == "__main__":
    main()
