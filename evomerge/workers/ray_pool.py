"""Workers on Ray: who scores what, and what happens when one dies, hangs or joins.

The policy is here and free of Ray: it drives a `Cluster`, whose real form is `evomerge.workers.ray_cluster.RayCluster`.
Candidates are handed to idle workers as they come, so a pool never waits for a generation. A candidate whose worker
dies is given to another one; Ray itself retries nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evomerge.workers.base import OUT_OF_MEMORY, WorkerError
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe

log = logging.getLogger("evomerge")

ATTEMPTS = 3
"""Workers that one candidate may take down before it counts as failed."""
HANGS = 2
"""Times that one candidate may exceed the time limit before it counts as failed."""
POLL = 1.0
"""Longest seconds between two looks at time limits and at the cluster."""
BEAT = 30.0
"""Seconds between two signs of life that a busy worker is asked for."""
SILENCE = 120.0
"""Seconds without a sign of life that are worth a warning in the log."""
START_LIMIT = 600.0
"""Seconds that the first worker may take to be placed on the cluster and to open the models."""


class RayConfig(BaseModel):
    """Workers in processes of their own, on this machine or on a cluster; needs the extra `ray`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["ray"] = "ray"
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Workers; `auto`: as many as the cluster has room for, more when nodes join and fewer when they leave."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of one worker; 0.25: four workers share one; `auto`: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of one worker, and its torch threads (at least one); below 1: several workers share a CPU."""
    address: str = Field(default="local", min_length=1)
    """`local`: Ray is started on this machine for this search; `auto`: the cluster that this machine belongs to;
    `host:port`: a cluster's head node."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a row one worker is started again that died before it could finish a candidate."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds for one candidate, more in proportion where more items are asked; its worker is then replaced, and the
    candidate fails after a second try. None: no limit."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What forward passes compute in; `auto`: float32 on a CPU, the merged model's own dtype elsewhere."""
    placement: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """As with `kind: inline`; `auto` takes into account that workers share a GPU or a machine."""

    @field_validator("gpus_per_worker", "cpus_per_worker")
    @classmethod
    def _share_or_whole(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value > 1 and value != int(value):
            raise ValueError("above 1 it must be a whole number, such as 2")
        return value

    @property
    def threads(self) -> int:
        """Torch threads of one worker."""
        return max(1, math.floor(self.cpus_per_worker))


class WorkerDied(Exception):
    """A worker's process, or its node, is gone; the message says what is known of it."""


Handle = Any
Reference = Any


class Cluster(Protocol):
    """Where workers run: what the pool needs of Ray."""

    def room(self) -> int:
        """How many workers the whole cluster holds now."""

    def start(self, number: int) -> tuple[Handle, Reference]:
        """Ask for a new worker; the reference is ready when it can score."""

    def evaluate(self, worker: Handle, recipe: Recipe, items: Sequence[str], answers: bool) -> Reference:
        """Have a worker score a recipe, and tell its answers where they are wanted."""

    def beat(self, worker: Handle) -> Reference:
        """Ask a worker for a sign of life."""

    def wait(self, references: Sequence[Reference], timeout: float) -> list[Reference]:
        """Block until at least one reference is ready, or the time is over; return all that are ready."""

    def result(self, reference: Reference) -> Any:
        """Return what a ready reference holds; raise WorkerDied or WorkerError where there is no result."""

    def kill(self, worker: Handle) -> None:
        """End a worker at once, whatever it does."""

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""


@dataclass(eq=False)
class _Task:
    """A submitted recipe and what has happened to it."""

    tag: int
    recipe: Recipe
    items: Sequence[str]
    submitted: float
    answers: bool = False
    deaths: int = 0
    hangs: int = 0
    avoid: _Slot | None = None  # the worker that had too little memory for it


@dataclass(eq=False)
class _Slot:
    """A worker's place: filled again when the worker dies. `reference` is that of its start, or of its task."""

    number: int
    handle: Handle
    reference: Reference
    since: float
    ready: bool = False
    task: _Task | None = None
    deaths: int = 0  # in a row, without a candidate finished in between
    beat: Reference | None = None
    beat_asked: float = -math.inf


class RayPool:
    """A pool of workers on a cluster.

    Parameters
    ----------
    cluster
        Where workers run.
    settings
        See `RayConfig`.
    items
        How many items a candidate is usually asked: what `timeout` is meant for.
    clock
        Seconds that never go back.
    """

    def __init__(
        self, cluster: Cluster, settings: RayConfig, items: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._usual_items = max(1, items)
        self._clock = clock
        self._queue: deque[_Task] = deque()
        self._done: list[tuple[int, Evaluation]] = []
        self._slots: list[_Slot] = []
        self._started = 0
        self._looked = clock()
        self._last_death = ""
        self._closed = False
        try:
            for _ in range(self._wanted()):
                self._add_slot()
            self._await_first()
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        """Idle workers that nothing is queued for; at least 1 when no candidate is in flight."""
        idle = sum(slot.ready and slot.task is None for slot in self._slots)
        in_flight = len(self._queue) + sum(slot.task is not None for slot in self._slots)
        return max(idle - len(self._queue), 0 if in_flight else 1)

    @property
    def size(self) -> int:
        """Workers that can score now."""
        return sum(slot.ready for slot in self._slots)

    def submit(self, tag: int, recipe: Recipe, items: Sequence[str], answers: bool = False) -> None:
        """Queue a recipe and hand it to a worker if one is idle."""
        self._queue.append(_Task(tag, recipe, tuple(items), self._clock(), answers))
        self._dispatch()

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Block until a recipe is scored or a worker becomes free; see `Pool.wait`.

        Raises
        ------
        WorkerError
            If no worker is left, or the sources have changed.
        """
        free = self.free
        while not self._done and self.free <= free:
            self._tend()
            self._dispatch()
            references = [slot.reference for slot in self._slots if slot.reference is not None]
            for reference in self._cluster.wait(references, POLL):
                self._collect(next(slot for slot in self._slots if slot.reference is reference))
            self._dispatch()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Stop our workers, and Ray if it was started here."""
        if self._closed:
            return
        self._closed = True
        for slot in self._slots:
            self._cluster.kill(slot.handle)
        self._slots.clear()
        self._cluster.close()

    # --- handing out ---

    def _dispatch(self) -> None:
        for slot in self._slots:
            if slot.ready and slot.task is None:
                task = next((task for task in self._queue if self._may(slot, task)), None)
                if task is not None:
                    self._queue.remove(task)
                    slot.task, slot.since = task, self._clock()
                    slot.reference = self._cluster.evaluate(slot.handle, task.recipe, task.items, task.answers)

    def _may(self, slot: _Slot, task: _Task) -> bool:
        return task.avoid is not slot or len(self._slots) == 1

    # --- taking back ---

    def _collect(self, slot: _Slot) -> None:
        """Take what a worker's reference holds: that it has started, or an evaluation."""
        try:
            result = self._cluster.result(slot.reference)
        except WorkerDied as death:
            self._bury(slot, str(death))
            return
        slot.reference = slot.beat = None
        if slot.task is None:
            slot.ready = True
            log.info("worker %d is ready: %s", slot.number, result)
            return
        task, slot.task = slot.task, None
        slot.deaths = 0
        if result.reason.startswith(OUT_OF_MEMORY) and task.avoid is None and len(self._slots) > 1:
            log.warning("candidate %d: %s on worker %d; another one tries", task.tag, OUT_OF_MEMORY, slot.number)
            task.avoid = slot
            self._queue.appendleft(task)
            return
        worked = sum(result.seconds.values())
        waited = max(0.0, self._clock() - task.submitted - worked)
        self._done.append((task.tag, replace(result, seconds=dict(result.seconds) | {"wait": waited})))

    def _bury(self, slot: _Slot, reason: str) -> None:
        """Replace a worker that has died or hung, and give its candidate to another one, or up."""
        log.warning("worker %d is gone: %s", slot.number, reason)
        self._cluster.kill(slot.handle)
        self._last_death = reason
        slot.deaths += 1
        task, slot.task = slot.task, None
        if task is not None:
            task.deaths += 1
            if task.deaths >= ATTEMPTS or task.hangs >= HANGS:
                times = task.hangs if task.hangs >= HANGS else task.deaths
                reason = f"given up after {times} workers: {reason}"
                self._done.append((task.tag, Evaluation.failed(reason, _NO_SECONDS)))
                slot.deaths = 0  # the candidate is to blame
            else:
                self._queue.appendleft(task)
        if slot.deaths > self._settings.max_restarts:
            self._slots.remove(slot)
            log.warning("worker %d is not started again after %d deaths in a row", slot.number, slot.deaths)
        else:
            self._start(slot)
        if not self._slots:
            raise WorkerError(
                f"no worker is left, the last one died with: {self._last_death}; mend the cause, or raise "
                "workers.max_restarts"
            )

    # --- keeping ---

    def _tend(self) -> None:
        """Look at time limits, signs of life and the size of the cluster."""
        now = self._clock()
        for slot in list(self._slots):
            if slot.task is not None and now - slot.since > self._limit(slot.task):
                slot.task.hangs += 1
                self._bury(slot, f"the candidate took longer than workers.timeout ({self._limit(slot.task):g} s)")
        if now - self._looked >= BEAT / 6:
            self._looked = now
            self._listen(now)
            self._resize()

    def _limit(self, task: _Task) -> float:
        seconds = self._settings.timeout
        return math.inf if seconds is None else seconds * max(1.0, len(task.items) / self._usual_items)

    def _listen(self, now: float) -> None:
        """Ask busy workers for signs of life, and write them into the log."""
        beats = {slot.beat: slot for slot in self._slots if slot.beat is not None}
        for reference in self._cluster.wait(list(beats), 0.0):
            slot = beats[reference]
            slot.beat = None
            with suppress(WorkerDied):  # its task's reference says so, too
                log.info("worker %d: %s", slot.number, self._cluster.result(reference))
        for slot in self._slots:
            if slot.task is None or now - slot.since < BEAT:
                continue
            if slot.beat is None and now - slot.beat_asked >= BEAT:
                slot.beat, slot.beat_asked = self._cluster.beat(slot.handle), now
            elif slot.beat is not None and now - slot.beat_asked > SILENCE:
                log.warning("worker %d has given no sign of life for %.0f s", slot.number, now - slot.beat_asked)

    def _resize(self) -> None:
        """With `count: auto`, follow the cluster: workers for new nodes, none waiting for lost ones."""
        wanted = self._wanted()
        while len(self._slots) < wanted:
            self._add_slot()
        if self._settings.count == "auto":
            for slot in [slot for slot in self._slots if not slot.ready][: max(0, len(self._slots) - wanted)]:
                log.info("worker %d has no place any more", slot.number)
                self._cluster.kill(slot.handle)
                self._slots.remove(slot)

    def _wanted(self) -> int:
        if self._settings.count == "auto":
            return max(1, self._cluster.room())
        return self._settings.count if not self._started else 0

    def _add_slot(self) -> None:
        slot = _Slot(self._started, None, None, self._clock())
        self._started += 1
        self._slots.append(slot)
        self._start(slot)

    def _start(self, slot: _Slot) -> None:
        slot.ready, slot.beat, slot.since = False, None, self._clock()
        slot.handle, slot.reference = self._cluster.start(slot.number)

    def _await_first(self) -> None:
        """Wait until a worker is ready, so that what is wrong with all of them shows before a run begins."""
        while not self.size:
            for reference in self._cluster.wait([slot.reference for slot in self._slots], POLL):
                self._collect(next(slot for slot in self._slots if slot.reference is reference))
            if not self.size and self._clock() - self._looked > START_LIMIT:
                raise WorkerError(
                    f"workers: none was ready within {START_LIMIT:.0f} s; look at `ray status` for room, and lower "
                    "workers.cpus_per_worker or workers.gpus_per_worker"
                )


_NO_SECONDS = {"merge": 0.0, "score": 0.0, "wait": 0.0}
