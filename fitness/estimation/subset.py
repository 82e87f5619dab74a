"""Subsets: which items to ask a candidate.

Every function except `fresh_first` returns positions among the task's I items, sorted and distinct. All candidates of a
generation are asked the same subset, so that they are compared on the same items; the next generation is asked another
one, so that a search does not overfit one subset. Everything is determined by (seed, generation).

Letters: T parents, J other models, I items, S asked items, F columns of a prior's design, K strata.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import check_scores
from fitness.estimation.parent_prior import Prior
from fitness.estimation.regression import RegressionPrior
from fitness.items import positions_by_task

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

STRATUM_PROBABILITY = (0.22, 0.55, 0.92)
"""Of a right answer if no, some, all parents are right; from published merges of 7B models."""
CHECKS, MOST_CHECKS_FROM = {0: 0.25, 2: 0.45}, 30  # `checks`: each stratum's share, and from how many items on it falls
SUREST = {0: 0.3, 2: 0.2}  # share of each stratum, the surest of which its checks are drawn from
CHOICE_SCALE = 2.75  # κ of the prior for which `greedy` chooses
SLACK = 0.2  # how much less than the best item another may reduce the variance and be chosen as well
SMALLEST_NOISE = 1e-3


@dataclass(frozen=True, eq=False)
class Anchors:
    """Representative items and the share of the task that each represents.

    Attributes
    ----------
    positions
        int[S], sorted.
    weights
        float64[S], positive, summing to 1.
    """

    positions: Positions
    weights: Array


def generator(seed: int, generation: int = 0) -> np.random.Generator:
    """Return the random generator for one generation's subset."""
    if seed < 0 or generation < 0:
        raise ValueError(f"seed {seed}, generation {generation}: give numbers >= 0")
    return np.random.default_rng([seed, generation])


class FreshItems:
    """Random items for successive steps, in rounds: no item twice in a round, and another order in the next.

    A round has as many steps as a task has items for; what is left over is asked in other rounds.

    Parameters
    ----------
    items
        All search items, of all tasks.
    seed
        Decides their order.
    """

    def __init__(self, items: Sequence[str], seed: int) -> None:
        self._tasks = [[items[at] for at in places] for places in positions_by_task(items).values()]
        self._seed = seed

    def __call__(self, count: int, step: int) -> tuple[str, ...]:
        """Return `count` items of each task, or all if it has fewer, for step `step` (from 0)."""
        return tuple(item for names in self._tasks for item in self._of(names, count, step))

    def _of(self, names: Sequence[str], count: int, step: int) -> list[str]:
        epoch, place = divmod(step, max(1, len(names) // count))
        order = generator(self._seed, epoch).permutation(len(names))
        return [names[at] for at in order[place * count : (place + 1) * count]]


def _check_count(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise ValueError(f"{count} items asked of {available}: give 1 to {available}")


def random(items: int, count: int, rng: np.random.Generator) -> Positions:
    """Return `count` of `items` positions, all equally likely."""
    _check_count(count, items)
    return np.sort(rng.choice(items, count, replace=False))


def by_difficulty(difficulty: npt.ArrayLike, count: int, rng: np.random.Generator) -> Positions:
    """Return one random item from each of `count` equally large difficulty classes.

    Parameters
    ----------
    difficulty
        float[I]; only its order matters (IRT difficulty, or the share of wrong answers).
    """
    difficulty_I = np.asarray(difficulty, np.float64).ravel()
    _check_count(count, difficulty_I.size)
    order = np.lexsort((rng.random(difficulty_I.size), difficulty_I))  # ties in random order
    edge = np.arange(count + 1) * difficulty_I.size // count
    return np.sort(order[rng.integers(edge[:-1], edge[1:])])


def parent_strata(parents: npt.ArrayLike) -> Positions:
    """int[I]: 0 where no parent is right, 2 where all are, 1 elsewhere.

    If scores are within (0, 1), a mean up to 1/4 counts as none and a mean from 3/4 as all.
    """
    parent_TI = check_scores(parents)
    if parent_TI.ndim != 2 or not len(parent_TI):
        raise ValueError(f"parents' scores have shape {parent_TI.shape}: give [parents, items], at least one parent")
    share_I = parent_TI.mean(0)
    if np.isin(parent_TI, (0.0, 1.0)).all():
        return np.where(share_I == 0, 0, np.where(share_I == 1, 2, 1)).astype(np.int64)
    return np.where(share_I <= 0.25, 0, np.where(share_I >= 0.75, 2, 1)).astype(np.int64)


def neyman(
    strata: npt.ArrayLike,
    count: int,
    rng: np.random.Generator,
    probability: npt.ArrayLike = STRATUM_PROBABILITY,
) -> Positions:
    """Return random items within strata; the numbers per stratum minimise the variance of the stratified mean.

    n_k ∝ N_k √(π_k (1 − π_k)), rounded by largest remainder (Neyman 1934).

    Parameters
    ----------
    strata
        int[I], 0 to K − 1.
    probability
        float[K], the expected score π_k in each stratum.
    """
    stratum_I, probability_K = np.asarray(strata, np.int64), np.asarray(probability, np.float64)
    _check_count(count, stratum_I.size)
    size_K = np.bincount(stratum_I, minlength=probability_K.size)
    if size_K.size > probability_K.size:
        raise ValueError(f"{size_K.size} strata and {probability_K.size} probabilities: give one for each stratum")
    ideal_K = size_K * np.sqrt(np.maximum(probability_K * (1 - probability_K), 1e-6))
    ideal_K *= count / ideal_K.sum()
    taken_K = np.minimum(np.floor(ideal_K).astype(np.int64), size_K)
    while taken_K.sum() < count:
        taken_K[np.argmax(np.where(taken_K < size_K, ideal_K - taken_K, -np.inf))] += 1
    chosen = [rng.choice(np.flatnonzero(stratum_I == k), n, replace=False) for k, n in enumerate(taken_K)]
    return np.sort(np.concatenate(chosen).astype(np.int64))


def checks(given: Prior, count: int, rng: np.random.Generator) -> Positions:
    """Return the first of `count` items: those that show a candidate which is unlike its parents.

    They are drawn from the surest items that all parents answer right, or none does (`SUREST`). A merge like published
    ones answers nearly all of the former right and of the latter wrong. So these answers say little about it, but
    few that are otherwise already show a merge that can do less, or more, than its parents; without them the estimate
    would be wrong, and sure of itself. Their number grows with the square root of such items' share of the task.
    """
    if given.strata is None:
        return np.empty(0, np.int64)
    doubt_I = np.minimum(given.probability, 1 - given.probability)
    found = []
    for stratum, rate in CHECKS.items():
        inside = rng.permutation(np.flatnonzero(given.strata == stratum))
        wanted = round(rate * min(count, MOST_CHECKS_FROM) * (inside.size / doubt_I.size) ** 0.5)
        surest = inside[np.argsort(doubt_I[inside], kind="stable")]
        found.append(rng.permutation(surest[: max(wanted, math.ceil(SUREST[stratum] * inside.size))])[:wanted])
    return np.concatenate(found)[:count]


def greedy(given: Prior, count: int, rng: np.random.Generator, first: npt.ArrayLike = ()) -> Positions:
    """Return items that, chosen one by one, much reduce the expected variance of the estimated full score.

    The prior (1) in `fitness.estimation.parent_prior` is linearised at its mean: the answers yᵢ = pᵢ + wᵢ xᵢ·z + eᵢ
    with z ~ N(0, κΛ), wᵢ = pᵢ(1 − pᵢ) and independent eᵢ of variance wᵢ. An answer reduces the variance of the sum of
    all answers by Cov(yᵢ, Σ y)² / Var(yᵢ). Each step takes a random one of the items that reduce it nearly as much as
    the best (`SLACK`), so that generations are asked different items wherever that costs little.

    Parameters
    ----------
    first
        int[], positions that are chosen already.
    """
    _check_count(count, len(given.design))
    plan = _VariancePlan(given)
    for item in np.asarray(first, np.int64).tolist():
        plan.ask(item)
    while len(plan.asked) < count:
        gain_I = plan.gain()
        plan.ask(int(rng.choice(np.flatnonzero(gain_I >= (1 - SLACK) * gain_I.max()))))
    return np.sort(np.array(plan.asked, np.int64))


class _VariancePlan:
    """The variance of the sum of all answers, in the linear model of `greedy`, while items are asked."""

    def __init__(self, given: Prior) -> None:
        wide = replace(given, covariance=CHOICE_SCALE * given.covariance)
        self.noise_I = np.maximum(wide.probability * (1 - wide.probability), SMALLEST_NOISE)
        self.shift_IF = self.noise_I[:, None] * given.design
        self.total_F = self.shift_IF.sum(0)  # of the items not asked
        self.covariance_FF = wide.covariance  # of z, after the answers
        self.asked: list[int] = []

    def gain(self) -> Array:
        """float64[I]: by how much asking each item reduces the variance; minus infinity for those asked."""
        projected_IF = self.shift_IF @ self.covariance_FF
        with_total_I = projected_IF @ self.total_F + self.noise_I
        own_I = (projected_IF * self.shift_IF).sum(1) + self.noise_I
        gain_I: Array = with_total_I**2 / own_I
        gain_I[self.asked] = -np.inf
        return gain_I

    def ask(self, item: int) -> None:
        """Condition on the answer to the item at this position (Sherman-Morrison)."""
        row_F = self.covariance_FF @ self.shift_IF[item]
        spread = float(self.noise_I[item] + self.shift_IF[item] @ row_F)
        self.covariance_FF = self.covariance_FF - np.outer(row_F, row_F) / spread
        self.total_F = self.total_F - self.shift_IF[item]
        self.asked.append(item)


def anchors(points: npt.ArrayLike, count: int, rng: np.random.Generator, restarts: int = 3) -> Anchors:
    """Return anchor points (tinyBenchmarks): the item nearest to each k-means centre, with its cluster's share.

    Parameters
    ----------
    points
        float[I, P]: each item's coordinates: `[a; b]` of a bank ("anchor-IRT"), or its column of other models' scores
        ("anchor-correctness").
    restarts
        Number of k-means++ starts; the one with the smallest sum of squares is kept.
    """
    point_IP = np.asarray(points, np.float64)
    if point_IP.ndim != 2:
        raise ValueError(f"points have shape {point_IP.shape}: give [items, coordinates]")
    _check_count(count, len(point_IP))
    best: tuple[float, Array, Positions] | None = None
    for _ in range(restarts):
        centre_SP, label_I, inertia = _k_means(point_IP, count, rng)
        if best is None or inertia < best[0]:
            best = (inertia, centre_SP, label_I)
    assert best is not None
    _, centre_SP, label_I = best
    chosen: list[int] = []
    mass: list[float] = []
    for cluster in range(count):
        members = np.flatnonzero(label_I == cluster)
        if members.size:  # with fewer distinct points than clusters, some are empty
            offset = ((point_IP[members] - centre_SP[cluster]) ** 2).sum(1)
            chosen.append(int(members[offset.argmin()]))
            mass.append(members.size / len(point_IP))
    order = np.argsort(chosen)
    return Anchors(np.array(chosen, np.int64)[order], np.array(mass)[order])


def _squared_distances(point_IP: Array, centre_SP: Array) -> Array:
    square: Array = (point_IP**2).sum(1)[:, None] - 2 * point_IP @ centre_SP.T + (centre_SP**2).sum(1)
    return square.clip(min=0.0)


def _k_means(point_IP: Array, count: int, rng: np.random.Generator) -> tuple[Array, Positions, float]:
    """Lloyd's algorithm from a k-means++ start: centres, labels, sum of squared distances."""
    centre_SP = point_IP[[int(rng.integers(len(point_IP)))]]
    nearest_I = _squared_distances(point_IP, centre_SP)[:, 0]
    while len(centre_SP) < count:
        total = nearest_I.sum()
        share = nearest_I / total if total > 0 else np.full(len(point_IP), 1 / len(point_IP))
        pick = point_IP[[int(rng.choice(len(point_IP), p=share))]]
        centre_SP = np.concatenate((centre_SP, pick))
        nearest_I = np.minimum(nearest_I, _squared_distances(point_IP, pick)[:, 0])
    label_I = np.full(len(point_IP), -1)
    for _ in range(100):
        distance_IS = _squared_distances(point_IP, centre_SP)
        moved_I = distance_IS.argmin(1)
        if (moved_I == label_I).all():
            break
        label_I = moved_I
        size_S = np.bincount(label_I, minlength=count)
        sum_SP = np.zeros_like(centre_SP)
        np.add.at(sum_SP, label_I, point_IP)
        filled = size_S > 0
        centre_SP[filled] = sum_SP[filled] / size_S[filled, None]
    return centre_SP, label_I.astype(np.int64), float(_squared_distances(point_IP, centre_SP).min(1).sum())


def fresh_first(items: int, asked: npt.ArrayLike, rng: np.random.Generator) -> Positions:
    """Return all positions in the order to ask finalists: at random, those asked before last.

    Parameters
    ----------
    asked
        int[], positions that were used to select the finalists, whose scores on them are biased upward.
    """
    used = np.zeros(items, bool)
    used[np.asarray(asked, np.int64)] = True
    return np.concatenate((rng.permutation(np.flatnonzero(~used)), rng.permutation(np.flatnonzero(used))))


def default_subset(given: Prior | RegressionPrior, count: int | None, seed: int, generation: int = 0) -> Positions:
    """Return the default subset: `checks`, then `greedy`.

    Without parents, the prior has only one or a few ability dimensions, and the items that are most informative about
    these are the least informative about everything else; then, and for scores other than 0 and 1, one item of each
    difficulty class is asked (`by_difficulty`).

    Parameters
    ----------
    given
        The prior of a candidate, from `fitness.estimation.parent_prior.prior` or `learn`.
    count
        Number of items; None, or the number of all items or more, asks all.
    """
    items = len(given.design)
    if count is None or count >= items:
        return np.arange(items)
    rng = generator(seed, generation)
    if isinstance(given, RegressionPrior):
        return by_difficulty(-given.expected, count, rng)
    if given.strata is None:
        return by_difficulty(-given.probability, count, rng)
    return greedy(given, count, rng, checks(given, count, rng))
