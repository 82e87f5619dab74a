"""What a search asks of its workers, whether they live in its process or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from evomerge.merging.engine.placement import ComputeDtype, Share, SourcePlacement
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe

OUT_OF_MEMORY = "out of memory"
"""First words of the reason of an evaluation that failed because memory ran out: another worker may have more."""


class WorkerError(RuntimeError):
    """No worker can continue, whatever the candidate; the message says what to do. Nothing is recorded."""


class BrokenWorker(WorkerError):
    """One worker's process can score nothing more; a new one may."""


@dataclass(frozen=True)
class Request:
    """A recipe to score.

    Attributes
    ----------
    recipe
        What to build.
    items
        Ids of the items to score it on.
    want_answers
        Whether the evaluation is to hold the model's answers besides their scores.
    gradient_at
        The recipe's genotype, float[G], where the derivatives of the items' loss by the genes are wanted instead of
        scores; None: they are not.
    whole
        For a part of a step that several workers compute: all its items, whose weights the items of the part have.
        Empty: `items` is all.
    unquantized
        Whether the model's weights are not to be quantised, whatever the search does with candidates.
    """

    recipe: Recipe
    items: tuple[str, ...]
    want_answers: bool = False
    gradient_at: tuple[float, ...] | None = None
    whole: tuple[str, ...] = ()
    unquantized: bool = False


class Worker(Protocol):
    """Builds a recipe's model and scores it, one at a time."""

    @property
    def place(self) -> str:
        """Where it computes, for messages: its torch device."""

    def evaluate(self, request: Request) -> Evaluation:
        """Score a recipe; one that cannot be built or scored gives a failed evaluation with the reason.

        Raises
        ------
        WorkerError
            If no recipe can be scored.
        """

    def close(self) -> None:
        """End what was started beside this process; may be called twice."""


class Pool(Protocol):
    """Workers that build a recipe's model and score it on items.

    A pool never raises for a candidate: one that cannot be built or scored comes back as a failed evaluation
    with the reason. What is not a candidate's fault is a `WorkerError`.
    """

    @property
    def free(self) -> int:
        """How many more recipes can be scored now, 0 or more; at least 1 when none is in flight."""

    def submit(self, tag: int, request: Request) -> None:
        """Queue a recipe, also one more than `free`; `tag` comes back with its evaluation."""

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Block until a submitted recipe is scored, or a worker becomes free; return what is scored, with tags."""

    def close(self) -> None:
        """Stop the workers that this pool has started, and nothing else; may be called twice."""


@dataclass(frozen=True)
class WorkerSettings:
    """How one worker computes.

    Attributes
    ----------
    device
        A torch device; ``auto``: a GPU if there is one.
    compute_dtype
        What forward passes compute in; ``auto``: float32 on a CPU, the merged model's own dtype elsewhere.
    threads
        CPU threads of torch; None: its own default.
    placement
        Where a GPU's sources are; ``auto``: the first place that has room.
    gpus
        GPUs of the worker.
    """

    device: str = "auto"
    compute_dtype: ComputeDtype = "auto"
    threads: int | None = None
    placement: SourcePlacement = "auto"
    gpus: int = 1


@dataclass(frozen=True)
class WorkerFactory:
    """How the workers of a search are made; a worker kind's `start` gets one.

    Attributes
    ----------
    here
        Makes a worker in this process, from the models that the search has opened.
    elsewhere
        Makes a worker in the process that calls it: opens the models and tasks there and checks that they are the
        same. It can be pickled.
    items
        How many items a candidate is usually asked.
    """

    here: Callable[[WorkerSettings, Share], Worker]
    elsewhere: Callable[[WorkerSettings, Share], Worker]
    items: int
