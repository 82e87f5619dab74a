"""The tables: estimators × subset sizes, each with its own way to choose calibration and tested models."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.fitness_accuracy.data import Benchmark
from fitness.estimation import ESTIMATORS, EstimatorInputs
from fitness.estimation.irt import ItemBank, fit_2pl, fit_mirt
from fitness.estimation.irt_predictions import validation_error
from fitness.estimation.subset import (
    Anchors,
    anchors,
    by_difficulty,
    default_subset,
    generator,
    neyman,
    parent_strata,
    random,
)
from fitness.results import Estimate

DIMENSIONS = 5


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    sizes
        Items asked.
    draws
        Repetitions, each with its own calibration models and subsets.
    calibration, few
        Calibration models; of the table with few.
    tested
        Models held out, where no merges are tested.
    """

    sizes: tuple[int, ...] = (10, 20, 30, 50, 100)
    draws: int = 8
    calibration: int = 300
    few: int = 20
    tested: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """An estimator on a kind of subset; `bank` False hides the item bank from it."""

    label: str
    estimator: str
    subset: str = "random"
    bank: bool = True


ARBITRARY = (
    Method("mean", "mean"),
    Method("p-IRT, MLE (published)", "p_irt"),
    Method("p-IRT, MAP", "p_irt_map"),
    Method("ridge", "ridge"),
    Method("BLUP", "blup"),
    Method("stratified mean (difficulty)", "stratified_mean", "difficulty"),
    Method("BLUP, difficulty-stratified items", "blup", "difficulty"),
    Method("anchor mean (IRT)", "anchor_mean", "anchor_irt"),
    Method("anchor mean (correctness)", "anchor_mean", "anchor_correctness"),
    Method("gp-IRT (published), IRT anchors", "gp_irt", "anchor_irt"),
    Method("default without parents, random items", "inherited"),
    Method("default without parents", "inherited", "default"),
)
MERGES = (
    Method("parents' mean score (nothing asked)", "parents"),
    Method("mean", "mean"),
    Method("p-IRT, MLE (published)", "p_irt"),
    Method("p-IRT, MAP", "p_irt_map"),
    Method("mp-IRT (published)", "mp_irt"),
    Method("gmp-IRT (published)", "gmp_irt"),
    Method("mp-IRT, λ-MAP", "mp_irt_map"),
    Method("ridge", "ridge"),
    Method("BLUP", "blup"),
    Method("parent post-stratification", "parent_post_stratification"),
    Method("parent post-stratification, Neyman items", "parent_post_stratification", "neyman"),
    Method("stratified difference, Neyman items", "stratified_difference", "neyman"),
    Method("default, random items", "inherited"),
    Method("default, Neyman items", "inherited", "neyman"),
    Method("default, no bank", "inherited", "default", bank=False),
    Method("**default**", "inherited", "default"),
)

PUBLISHED = tuple(method for method in MERGES if "(published)" in method.label)


@dataclass(frozen=True)
class Record:
    """One estimate: of which model, from how many items, and what was true."""

    table: str
    benchmark: str
    label: str
    items: int
    draw: int
    model: int
    truth: float
    estimate: Estimate


Choice = Callable[[Benchmark, Plan, np.random.Generator], tuple[np.ndarray, list[tuple[int, tuple[int, ...]]]]]
"""(benchmark, plan, rng) -> rows of the calibration models, and (row, rows of the parents) of the tested ones."""


def _others(benchmark: Benchmark) -> np.ndarray:
    return np.array([row for row in range(len(benchmark.scores)) if row not in benchmark.family])


def _draw(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(rows)[:count]


def _arbitrary(benchmark: Benchmark, plan: Plan, rng: np.random.Generator, calibration: int | None = None):
    rows = rng.permutation(_others(benchmark))
    tested = [(int(row), ()) for row in rows[: plan.tested]]
    return rows[plan.tested :][: calibration or plan.calibration], tested


def _few(benchmark: Benchmark, plan: Plan, rng: np.random.Generator):
    return _arbitrary(benchmark, plan, rng, plan.few)


def _upward(benchmark: Benchmark, plan: Plan, rng: np.random.Generator):
    rows = _others(benchmark)
    full = benchmark.scores[rows].mean(1)
    bar = np.quantile(full, 0.75)
    tested = _draw(rows[full > bar], plan.tested, rng)
    return _draw(rows[full <= bar], plan.calibration, rng), [(int(row), ()) for row in tested]


def _merges(benchmark: Benchmark, plan: Plan, rng: np.random.Generator):
    return _draw(_others(benchmark), plan.calibration, rng), list(benchmark.merges)


def _merges_below(benchmark: Benchmark, plan: Plan, rng: np.random.Generator):
    rows = _others(benchmark)
    below = benchmark.scores[rows].mean(1) < np.median(benchmark.scores.mean(1))
    return _draw(rows[below], plan.calibration, rng), list(benchmark.merges)


@dataclass(frozen=True)
class Table:
    """Methods and the models they are tested on, with `repeats` times as many draws as the plan has."""

    title: str
    choose: Choice
    methods: tuple[Method, ...]
    repeats: float = 1.0


TABLES: Mapping[str, Table] = {
    "merges": Table("real merges with known parents, calibration on random models", _merges, MERGES),
    "merges_below": Table("the same, calibration on models below the median", _merges_below, MERGES),
    "published": Table("the published estimators on the merges, four times as many draws", _merges, PUBLISHED, 4.0),
    "arbitrary": Table("arbitrary models", _arbitrary, ARBITRARY, 0.5),
    "upward": Table("the best quarter, calibration on the other three", _upward, ARBITRARY, 0.5),
    "few": Table("arbitrary models, few calibration models", _few, ARBITRARY, 0.5),
}


def measure(table: str, benchmarks: Sequence[Benchmark], plan: Plan, only: str = "") -> Iterator[Record]:
    """Yield all estimates of one table, or those of the methods whose label contains `only`."""
    found = TABLES[table]
    methods = tuple(method for method in found.methods if only in method.label)
    if not methods:
        return
    for benchmark in benchmarks:
        for draw in range(math.ceil(plan.draws * found.repeats)):
            # crc32: the same numbers whatever other benchmarks are in the folder
            rng = np.random.default_rng([plan.seed, draw, zlib.crc32(f"{table}/{benchmark.name}".encode())])
            calibration, tested = found.choose(benchmark, plan, rng)
            if len(calibration) >= 2:
                yield from _one_draw(table, benchmark, plan, draw, calibration, tested, methods)


def _one_draw(
    table: str,
    benchmark: Benchmark,
    plan: Plan,
    draw: int,
    calibration: np.ndarray,
    tested: list[tuple[int, tuple[int, ...]]],
    methods: Sequence[Method],
) -> Iterator[Record]:
    items = benchmark.scores.shape[1]
    scores = benchmark.scores[calibration]
    banks = (fit_2pl(scores), fit_mirt(scores, min(DIMENSIONS, len(scores))))
    shared = EstimatorInputs(items, banks=banks, other_models=scores)
    if any(method.estimator == "gp_irt" for method in methods):
        shared = replace(shared, p_irt_error=validation_error(shared.bank, shared.other_models_scores))
    without_parents = _variants(shared)
    for size in (size for size in plan.sizes if size < items):
        cached: dict[str, Anchors] = {}
        for number, (row, parents) in enumerate(tested):
            # merges have other parents, so each is another search with subsets of its own; other models share one
            generation = draw * len(tested) + number if parents else draw
            variants = (
                _variants(replace(shared, parents=benchmark.scores[list(parents)])) if parents else without_parents
            )
            answers = benchmark.scores[row]
            for method in methods:
                known = variants[method.bank]
                if method.estimator == "parents":
                    estimate = Estimate(float(known.parent_scores.mean()), 0.0)
                else:
                    chosen, known = _ask(method.subset, known, size, plan.seed, generation, cached)
                    estimate = ESTIMATORS[method.estimator].estimate(answers[chosen], chosen, known)
                yield Record(table, benchmark.name, method.label, size, draw, row, float(answers.mean()), estimate)


def _variants(known: EstimatorInputs) -> dict[bool, EstimatorInputs]:
    """Return what is known with and without the item banks."""
    return {True: known, False: replace(known, banks=())}


def _ask(
    kind: str, known: EstimatorInputs, size: int, seed: int, generation: int, cached: dict[str, Anchors]
) -> tuple[np.ndarray, EstimatorInputs]:
    """Return the positions of one kind of subset, and what is known about it."""
    rng = generator(seed, generation)
    if kind == "default":
        return default_subset(known.prior, size, seed, generation), known
    if kind == "neyman":
        return neyman(parent_strata(known.parent_scores), size, rng), known
    if kind == "difficulty":
        difficulty = -known.other_models_scores.mean(0)
        strata = np.argsort(np.argsort(difficulty, kind="stable"), kind="stable") * size // known.items
        return by_difficulty(difficulty, size, rng), replace(known, strata=strata)
    if kind == "random":
        return random(known.items, size, rng), known
    if kind not in cached:
        bank: ItemBank = known.bank
        points = {
            "anchor_irt": np.column_stack((bank.discrimination, bank.difficulty)),
            "anchor_correctness": known.other_models_scores.T,
        }[kind]
        cached[kind] = anchors(points, size, rng)
    chosen = cached[kind]
    weights = {int(position): float(weight) for position, weight in zip(chosen.positions, chosen.weights, strict=True)}
    return chosen.positions, replace(known, weights=weights)


@dataclass(frozen=True)
class Row:
    """What one method achieved at one size, averaged over the benchmarks; percentage points, except `rank`.

    Attributes
    ----------
    error
        Mean absolute error.
    rank
        Spearman correlation of estimated and true scores, over the models of a benchmark.
    regret
        True score of the best model minus that of the apparent best.
    optimism
        Estimate minus true score of the apparent best.
    coverage
        Share of the true scores inside the 95 % interval.
    by_benchmark
        Mean absolute error of each.
    """

    error: float
    rank: float
    regret: float
    optimism: float
    coverage: float
    by_benchmark: Mapping[str, float]


def summarise(records: Sequence[Record]) -> dict[str, dict[int, Row]]:
    """Return, by label and number of items, what was achieved."""
    groups: dict[tuple[str, int], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.label, record.items][record.benchmark].append(record)
    table: dict[str, dict[int, Row]] = defaultdict(dict)
    for (label, size), benchmarks in groups.items():
        parts = {name: _figures(found) for name, found in benchmarks.items()}
        averages = np.mean(list(parts.values()), axis=0)
        table[label][size] = Row(*map(float, averages), {name: float(part[0]) for name, part in parts.items()})
    return dict(table)


def _figures(records: Sequence[Record]) -> np.ndarray:
    """Return error, rank, regret, optimism and coverage on one benchmark."""
    from scipy import stats

    truth = np.array([record.truth for record in records])
    value = np.array([record.estimate.value for record in records])
    error = np.array([record.estimate.standard_error for record in records])
    draw = np.array([record.draw for record in records])
    inside = np.abs(value - truth) <= 1.96 * error + 1e-12
    winners = []
    for one in np.unique(draw):
        found, true = value[draw == one], truth[draw == one]
        best = int(found.argmax())
        varied = len(true) > 2 and np.ptp(found) > 0 and np.ptp(true) > 0
        rank = float(stats.spearmanr(found, true).statistic) if varied else 0.0
        winners.append((rank, 100 * (true.max() - true[best]), 100 * (found[best] - true[best])))
    return np.array([100 * np.abs(value - truth).mean(), *np.mean(winners, axis=0), 100 * inside.mean()])
