"""Genes: what one coordinate of a genotype may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from search_spaces.errors import RecipeError


@dataclass(frozen=True)
class Real:
    """A real number in ``[low, high]``; searches begin at `start`.

    Raises
    ------
    RecipeError
        If a bound is not finite, the range is empty, or `start` lies outside of it.
    """

    name: str
    low: float
    high: float
    start: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise RecipeError(f"gene {self.name}: [{self.low}, {self.high}] is no range; write low < high")
        if not self.low <= self.start <= self.high:
            raise RecipeError(
                f"gene {self.name}: start {self.start} is not in [{self.low}, {self.high}]; write one inside"
            )


# A coordinate of any kind. Integer, Choice and Order join this union when a space needs them; operators that
# treat a genotype as a box ask for `Real`.
Gene: TypeAlias = Real
