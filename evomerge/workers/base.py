"""What the driver asks of workers, whether they live in its process or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe

OUT_OF_MEMORY = "out of memory"
"""How the reason of an evaluation begins that failed for want of memory: another worker may have more."""

LONGEST_REASON = 300
"""Characters of an exception's text that a message holds."""


class WorkerError(RuntimeError):
    """No worker can go on, whatever the candidate; the message says what to do. Nothing is recorded."""


class BrokenWorker(WorkerError):
    """One worker's process can score nothing more; a new one may."""


class Pool(Protocol):
    """Workers that build a recipe's model and score it on items.

    A pool never raises for a candidate: one that cannot be built or scored comes back as a failed evaluation
    with the reason. What no candidate is to blame for is a `WorkerError`.
    """

    @property
    def free(self) -> int:
        """How many more recipes may be submitted now; at least 1 when none is in flight."""

    def submit(self, tag: int, recipe: Recipe, items: Sequence[str], answers: bool = False) -> None:
        """Queue a recipe; `tag` comes back with its evaluation, which holds the answers where they are wanted."""

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Block until a submitted recipe is scored, or a worker becomes free; return what is scored, with tags."""

    def close(self) -> None:
        """Stop the workers that this pool has started, and nothing else; may be called twice."""


def one_line(error: BaseException) -> str:
    """Return an exception's type and text, on one line and cut to `LONGEST_REASON`."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) < LONGEST_REASON else text[:LONGEST_REASON] + ' ...'}"
