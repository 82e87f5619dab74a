"""The verdict of a search: whether the found recipe is better than the alternatives, and which recipe to take.

The found recipe is compared with every source, every baseline and the search's own start by paired tests on the same
held-out items. The p-values are corrected for the number of comparisons by Holm's method, so that the chance of any
wrong "better" or "worse" is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fitness.estimation.intervals import holm

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """The found recipe against one alternative.

    Attributes
    ----------
    name
        The alternative, as the table calls it.
    difference
        Score of the found recipe minus that of the alternative, on the held-out items.
    p_value
        Of the paired test, after Holm's correction over all comparisons.
    """

    name: str
    difference: float
    p_value: float


@dataclass(frozen=True)
class Verdict:
    """What a search has achieved, in one sentence, and which recipe to take.

    Attributes
    ----------
    outcome
        ``better`` than every alternative, ``worse`` than one of them, or ``indistinguishable`` from one.
    recommended
        Row of the table whose recipe is `best.yaml`.
    sentence
        For people.
    comparisons
        With each alternative.
    """

    outcome: Literal["better", "indistinguishable", "worse"]
    recommended: str
    sentence: str
    comparisons: tuple[Comparison, ...]


def verdict(
    found: str,
    alternatives: Sequence[str],
    difference: Callable[[str], float],
    p_value: Callable[[str], float],
    *,
    same: str | None = None,
    missed: str | None = None,
) -> Verdict:
    """Compare the found recipe with all alternatives.

    Parameters
    ----------
    found
        What the table calls the found recipe.
    alternatives
        What it calls the others that keep all minimum scores.
    difference
        Of an alternative: the found recipe's score minus its score.
    p_value
        Of an alternative: the p-value of the paired test, not corrected.
    same
        The alternative that the found recipe is; None: it is none of them.
    missed
        Which minimum score the found recipe misses; None: none.
    """
    if not alternatives:
        return _alone(found, missed)
    adjusted = holm([p_value(name) for name in alternatives])
    made = tuple(Comparison(name, difference(name), p) for name, p in zip(alternatives, adjusted, strict=True))
    closest = min(made, key=lambda one: one.difference)
    if missed is not None:
        sentence = (
            f"The found recipe has {missed}, on the held-out items: take {closest.name}, the best alternative that "
            "keeps the minimum scores (best.yaml)."
        )
        return Verdict("worse", closest.name, sentence, made)
    worse = [one for one in made if one.difference < 0 and one.p_value < SIGNIFICANT]
    if worse:
        better = min(worse, key=lambda one: one.difference)
        which = f", which is {same}," if same is not None else ""
        sentence = (
            f"The found recipe{which} is worse than {better.name} on the held-out items ({_numbers(better)}): take "
            f"{better.name} (best.yaml)."
        )
        return Verdict("worse", better.name, sentence, made)
    if same is not None:
        return _nothing_found(same, made)
    unclear = [one for one in made if one.p_value >= SIGNIFICANT]
    if not unclear:
        sentence = (
            f"The found recipe is better than every alternative on the held-out items: {_numbers(closest)} against "
            f"{closest.name}, the best of {len(made)}."
        )
        return Verdict("better", found, sentence, made)
    names = ", ".join(one.name for one in unclear)
    closest = min(unclear, key=lambda one: one.difference)
    taken = closest.name if closest.difference < 0 else found
    which = f"{closest.name} scores higher and is best.yaml" if taken != found else "best.yaml is the found recipe"
    sentence = (
        f"The found recipe is not significantly different from {names} on the held-out items "
        f"({_numbers(closest)} against {closest.name}); {which}."
    )
    return Verdict("indistinguishable", taken, sentence, made)


def verdict_without_test(
    found: str,
    alternatives: Sequence[str],
    difference: Callable[[str], float],
    *,
    same: str | None = None,
    missed: str | None = None,
) -> Verdict:
    """Compare scores of models as wholes, which a function gives: nothing is held out, and there is nothing to test.

    The outcome is never ``better``: the number that is compared is the number that the recipe was chosen for.
    Parameters are those of `verdict`.
    """
    if not alternatives:
        return replace(_alone(found, missed, ""), outcome="indistinguishable")
    made = tuple(Comparison(name, difference(name), 1.0) for name in alternatives)
    closest = min(made, key=lambda one: one.difference)
    if missed is not None:
        sentence = (
            f"The found recipe has {missed}: take {closest.name}, the best alternative that keeps the minimum scores "
            "(best.yaml)."
        )
        return Verdict("worse", closest.name, sentence, made)
    if same is not None:
        return Verdict("indistinguishable", same, f"The search found nothing better than {same} (best.yaml).", made)
    higher = closest.difference > 0
    taken = found if higher else closest.name
    said = f"{closest.difference:+.3g} above" if higher else "no higher than"
    sentence = (
        f"The found recipe scores {said} {closest.name}, the best of {len(made)} alternatives; best.yaml is {taken}. "
        "The function scores a model as a whole, so nothing is held out: there is no interval and no test, and the "
        "score is the one that the recipe was chosen for, which is biased upward. Score the recipe on data that "
        "the function does not read."
    )
    return Verdict("indistinguishable", taken, sentence, made)


def _alone(found: str, missed: str | None, where: str = " on the held-out items") -> Verdict:
    nobody = f"No source or baseline keeps the minimum scores{where}"
    if missed is None:
        return Verdict("better", found, f"{nobody}; best.yaml is the found recipe.", ())
    sentence = f"{nobody}, and the found recipe has {missed}; best.yaml is the found recipe."
    return Verdict("indistinguishable", found, sentence, ())


def _nothing_found(same: str, made: tuple[Comparison, ...]) -> Verdict:
    """Judge a search whose best recipe on the search items is one that needs no search, and no worse than others."""
    better = min((one for one in made if one.name != same), key=lambda one: one.difference, default=None)
    sentence = f"The search found nothing better than {same}"
    if better is None or better.difference >= 0:
        return Verdict("indistinguishable", same, f"{sentence} (best.yaml).", made)
    sentence += (
        f", which is not significantly different from {better.name} on the held-out items "
        f"({_numbers(better)}); {better.name} scores higher and is best.yaml."
    )
    return Verdict("indistinguishable", better.name, sentence, made)


def _numbers(one: Comparison) -> str:
    shown = f"p = {one.p_value:.2g}" if one.p_value >= 1e-4 else "p < 1e-4"
    return f"{one.difference:+.3f}, {shown}"
