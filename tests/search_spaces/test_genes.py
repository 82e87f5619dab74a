import math

import pytest

from search_spaces.errors import RecipeError
from search_spaces.genes import Real


@pytest.mark.parametrize(
    ("low", "high", "start", "message"),
    [
        (1.0, 1.0, 1.0, r"gene g: \[1.0, 1.0\] is no range; write low < high"),
        (0.0, math.inf, 1.0, "is no range; write low < high"),
        (math.nan, 1.0, 1.0, "is no range; write low < high"),
        (0.0, 1.0, 2.0, r"gene g: start 2.0 is not in \[0.0, 1.0\]; write one inside"),
    ],
)
def test_impossible_ranges(low, high, start, message):
    with pytest.raises(RecipeError, match=message):
        Real("g", low, high, start)
