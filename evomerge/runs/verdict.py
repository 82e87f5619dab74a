"""The verdict of a search: whether the found recipe is better than what one has without a search, and which to take.

The found recipe is compared with every source, every baseline and the search's own start by paired tests on the same
held-out items. The p-values are corrected for the number of comparisons by Holm's method, so that the chance of any
wrong "better" or "worse" is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    found: str, alternatives: Sequence[str], difference: Callable[[str], float], p_value: Callable[[str], float]
) -> Verdict:
    """Compare the found recipe with all alternatives.

    Parameters
    ----------
    found
        What the table calls the found recipe.
    alternatives
        What it calls the others.
    difference
        Of an alternative: the found recipe's score minus its score.
    p_value
        Of an alternative: the p-value of the paired test, not corrected.
    """
    if not alternatives:
        sentence = (
            "No source or baseline keeps the minimum scores on the held-out items; best.yaml is the found recipe."
        )
        return Verdict("better", found, sentence, ())
    adjusted = holm([p_value(name) for name in alternatives])
    made = tuple(Comparison(name, difference(name), p) for name, p in zip(alternatives, adjusted, strict=True))
    closest = min(made, key=lambda one: one.difference)
    worse = [one for one in made if one.difference < 0 and one.p_value < SIGNIFICANT]
    if worse:
        better = min(worse, key=lambda one: one.difference)
        sentence = (
            f"The found recipe is worse than {better.name} on the held-out items ({_numbers(better)}): take "
            f"{better.name}, which best.yaml is."
        )
        return Verdict("worse", better.name, sentence, made)
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
    which = f"{closest.name} scores higher, and best.yaml is it" if taken != found else "best.yaml is the found recipe"
    sentence = (
        f"The found recipe cannot be told from {names} on the held-out items ({_numbers(closest)} against "
        f"{closest.name}); {which}."
    )
    return Verdict("indistinguishable", taken, sentence, made)


def _numbers(one: Comparison) -> str:
    shown = f"p = {one.p_value:.2g}" if one.p_value >= 1e-4 else "p < 1e-4"
    return f"{one.difference:+.3f}, {shown}"
