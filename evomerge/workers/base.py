"""What the driver asks of workers, whether they live in its process or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fitness.evaluation import Evaluation
from search_spaces.recipe import Recipe


class Pool(Protocol):
    """Workers that build a recipe's model and score it on items.

    A pool never raises for a candidate: one that cannot be built or scored comes back as a failed evaluation
    with the reason.
    """

    @property
    def free(self) -> int:
        """How many more recipes may be submitted now."""

    def submit(self, tag: int, recipe: Recipe, items: Sequence[str]) -> None:
        """Queue a recipe; `tag` comes back with its evaluation."""

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Block until at least one submitted recipe is scored; return all that are, with their tags."""
