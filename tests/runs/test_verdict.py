"""The sentence at the end of a search, and the recipe that it recommends."""

from __future__ import annotations

import pytest

from evomerge.runs.verdict import Verdict, verdict, verdict_without_test


def verdict_of(alternatives: dict[str, tuple[float, float]], **found: str) -> Verdict:
    """Return the verdict on alternatives given by difference and p-value."""
    return verdict(
        "found", list(alternatives), lambda name: alternatives[name][0], lambda name: alternatives[name][1], **found
    )


def test_better_than_all() -> None:
    found = verdict_of({"base": (0.5, 1e-20), "start": (0.2, 0.001)})
    assert (found.outcome, found.recommended) == ("better", "found")
    assert found.sentence == (
        "The found recipe is better than every alternative on the held-out items: +0.200, p = 0.001 against start, the "
        "best of 2."
    )
    assert [one.p_value for one in found.comparisons] == pytest.approx([2e-20, 0.001])


def test_worse_than_one_names_it_and_recommends_it() -> None:
    found = verdict_of({"math": (-0.4, 1e-9), "base": (0.1, 0.01), "ja": (-0.1, 0.001)})
    assert (found.outcome, found.recommended) == ("worse", "math")
    assert found.sentence == (
        "The found recipe is worse than math on the held-out items (-0.400, p < 1e-4): take math (best.yaml)."
    )


def test_worse_names_an_alternative_that_the_tests_say_is_better() -> None:
    found = verdict_of({"noisy": (-0.2, 0.4), "start": (-0.1, 1e-6)})
    assert (found.outcome, found.recommended) == ("worse", "start")
    assert "is worse than start on the held-out items (-0.100, p < 1e-4)" in found.sentence


def test_the_numbers_are_those_of_an_alternative_that_cannot_be_told_apart() -> None:
    found = verdict_of({"base": (0.1, 1e-9), "start": (0.3, 0.2)})
    assert (found.outcome, found.recommended) == ("indistinguishable", "found")
    assert (
        "is not significantly different from start on the held-out items (+0.300, p = 0.2 against start)"
        in found.sentence
    )


@pytest.mark.parametrize(("difference", "taken"), [(0.01, "found"), (-0.01, "start")])
def test_what_cannot_be_told_apart(difference: float, taken: str) -> None:
    found = verdict_of({"base": (0.5, 1e-20), "start": (difference, 0.6)})
    assert (found.outcome, found.recommended) == ("indistinguishable", taken)
    assert "is not significantly different from start" in found.sentence


def test_the_number_of_comparisons_counts() -> None:
    """Five comparisons at p = 0.03 are no evidence that all of them are won."""
    found = verdict_of({f"model {n}": (0.1, 0.03) for n in range(5)})
    assert found.outcome == "indistinguishable"


def test_nothing_keeps_the_minimums() -> None:
    found = verdict_of({})
    assert (found.outcome, found.recommended) == ("better", "found")


def test_a_found_recipe_that_misses_a_minimum_is_not_recommended() -> None:
    missed = "0.310 on chat, where the minimum is 0.400"
    found = verdict_of({"base": (0.5, 1e-20), "start": (0.2, 1e-9)}, missed=missed)
    assert (found.outcome, found.recommended) == ("worse", "start")
    assert found.sentence == (
        "The found recipe has 0.310 on chat, where the minimum is 0.400, on the held-out items: take start, the best "
        "alternative that keeps the minimum scores (best.yaml)."
    )
    alone = verdict_of({}, missed=missed)
    assert (alone.outcome, alone.recommended) == ("indistinguishable", "found")
    assert alone.sentence.endswith(
        "the found recipe has 0.310 on chat, where the minimum is 0.400; best.yaml is the found recipe."
    )


@pytest.mark.parametrize(("difference", "taken"), [(0.1, "math"), (-0.1, "ja")])
def test_a_search_that_found_nothing_new_says_so(difference: float, taken: str) -> None:
    found = verdict_of({"math": (0.0, 1.0), "ja": (difference, 0.5)}, same="math")
    assert (found.outcome, found.recommended) == ("indistinguishable", taken)
    assert found.sentence.startswith("The search found nothing better than math")
    assert taken in found.sentence and "best.yaml" in found.sentence


def test_one_of_the_alternatives_may_be_found_and_be_worse_than_another() -> None:
    found = verdict_of({"math": (0.0, 1.0), "ja": (-0.3, 1e-9)}, same="math")
    assert (found.outcome, found.recommended) == ("worse", "ja")
    assert found.sentence.startswith("The found recipe, which is math, is worse than ja on the held-out items (-0.300")


def test_what_is_not_tested_is_never_better() -> None:
    """Nor is anything held out where models are scored as wholes."""
    found = verdict_without_test("found", [], lambda name: 0.0)
    assert (found.outcome, found.recommended) == ("indistinguishable", "found")
    assert "held-out" not in found.sentence
