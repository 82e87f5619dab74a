"""Workers on Ray: which worker scores what, and what happens when one dies, hangs or joins.

This module holds the policy and does not import Ray: it drives a `Cluster`, which
`evomerge.workers.ray_cluster.RayCluster` implements. Candidates go to idle workers as they come, so a pool never waits
for a generation. A candidate whose worker dies goes to another one; Ray itself retries nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from evomerge.files.messages import counted
from evomerge.workers.base import OUT_OF_MEMORY, Request, WorkerError
from fitness.results import Evaluation, no_seconds

log = logging.getLogger("evomerge")

ATTEMPTS = 3
"""Workers that may die with one candidate before it counts as failed."""
HANGS = 2
"""Times that one candidate may exceed the time limit before it counts as failed."""
POLL = 1.0
"""Most seconds between two checks of time limits and of the cluster."""
HEARTBEAT = 30.0
"""Seconds between two heartbeats that a busy worker is asked for."""
SILENCE = 120.0
"""Seconds without a heartbeat after which the log holds a warning."""
START_LIMIT = 600.0
"""Seconds that the first worker may take to be placed on the cluster and to open the models."""


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

    def evaluate(self, worker: Handle, request: Request) -> Reference:
        """Have a worker score a recipe."""

    def heartbeat(self, worker: Handle) -> Reference:
        """Ask a worker what it is doing."""

    def wait(self, references: Sequence[Reference], timeout: float) -> list[Reference]:
        """Block until at least one reference is ready, or the time is over; return all that are ready."""

    def result(self, reference: Reference) -> Any:
        """Return what a ready reference holds; raise WorkerDied or WorkerError if it holds no result."""

    def kill(self, worker: Handle) -> None:
        """End a worker at once, whatever it does."""

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""


@dataclass(eq=False)
class _Task:
    """A submitted recipe and what has happened to it."""

    tag: int
    request: Request
    submitted: float
    deaths: int = 0
    hangs: int = 0
    avoid: WorkerSlot | None = None  # the worker that had too little memory for it


@dataclass(eq=False)
class WorkerSlot:
    """The place of a worker, filled again when the worker dies. `reference` is that of its start, or of its task."""

    number: int
    handle: Handle
    reference: Reference
    since: float
    ready: bool = False
    task: _Task | None = None
    deaths: int = 0  # in a row, without a candidate finished in between
    heartbeat: Reference | None = None
    heartbeat_asked: float = -math.inf


class RayPool:
    """A pool of workers on a cluster.

    Parameters
    ----------
    cluster
        Where workers run.
    items
        How many items a candidate is usually asked: what `timeout` is meant for.
    count, timeout, max_restarts
        See `evomerge.workers.config.RayConfig`.
    clock
        Returns seconds that never decrease.
    """

    def __init__(
        self,
        cluster: Cluster,
        items: int,
        *,
        count: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        max_restarts: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._count = count
        self._timeout = math.inf if timeout is None else timeout
        self._max_restarts = max_restarts
        self._usual_items = max(1, items)
        self._clock = clock
        self._queue: deque[_Task] = deque()
        self._done: list[tuple[int, Evaluation]] = []
        self._slots: list[WorkerSlot] = []
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

    def submit(self, tag: int, request: Request) -> None:
        """Queue a recipe and hand it to a worker if one is idle."""
        self._queue.append(_Task(tag, request, self._clock()))
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
            self._poll()
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
                    slot.reference = self._cluster.evaluate(slot.handle, task.request)

    def _may(self, slot: WorkerSlot, task: _Task) -> bool:
        return task.avoid is not slot or len(self._slots) == 1

    # --- taking back ---

    def _collect(self, slot: WorkerSlot) -> None:
        """Read a worker's ready reference: it has started, or has an evaluation."""
        try:
            result = self._cluster.result(slot.reference)
        except WorkerDied as death:
            self._replace(slot, str(death))
            return
        slot.reference = slot.heartbeat = None
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

    def _replace(self, slot: WorkerSlot, reason: str) -> None:
        """Replace a worker that has died or hung; give its candidate to another worker, or give the candidate up."""
        log.warning("worker %d is gone: %s", slot.number, reason)
        self._cluster.kill(slot.handle)
        self._last_death = reason
        slot.deaths += 1
        task, slot.task = slot.task, None
        if task is not None:
            task.deaths += 1
            if task.deaths >= ATTEMPTS or task.hangs >= HANGS:
                times = task.hangs if task.hangs >= HANGS else task.deaths
                reason = f"given up after {counted(times, 'worker')}: {reason}"
                self._done.append((task.tag, Evaluation.failed(reason, no_seconds())))
                slot.deaths = 0  # the candidate is the cause
            else:
                self._queue.appendleft(task)
        if slot.deaths > self._max_restarts:
            self._slots.remove(slot)
            log.warning("worker %d is not started again after %d deaths in a row", slot.number, slot.deaths)
        else:
            self._start(slot)
        if not self._slots:
            raise WorkerError(
                f"no worker is left, the last one died with: {self._last_death}; fix the cause, or raise "
                "workers.max_restarts"
            )

    # --- keeping ---

    def _poll(self) -> None:
        """Check time limits, heartbeats and the size of the cluster."""
        now = self._clock()
        for slot in list(self._slots):
            if slot.task is not None and now - slot.since > self._limit(slot.task):
                slot.task.hangs += 1
                self._replace(slot, f"the candidate took longer than workers.timeout ({self._limit(slot.task):g} s)")
        if now - self._looked >= HEARTBEAT / 6:
            self._looked = now
            self._read_heartbeats(now)
            self._resize()

    def _limit(self, task: _Task) -> float:
        return self._timeout * max(1.0, len(task.request.items) / self._usual_items)

    def _read_heartbeats(self, now: float) -> None:
        """Ask busy workers what they are doing, and write it into the log."""
        asked = {slot.heartbeat: slot for slot in self._slots if slot.heartbeat is not None}
        for reference in self._cluster.wait(list(asked), 0.0):
            slot = asked[reference]
            slot.heartbeat = None
            with suppress(WorkerDied):  # the reference of its task reports it, too
                log.info("worker %d: %s", slot.number, self._cluster.result(reference))
        for slot in self._slots:
            if slot.task is None or now - slot.since < HEARTBEAT:
                continue
            if slot.heartbeat is None and now - slot.heartbeat_asked >= HEARTBEAT:
                slot.heartbeat, slot.heartbeat_asked = self._cluster.heartbeat(slot.handle), now
            elif slot.heartbeat is not None and now - slot.heartbeat_asked > SILENCE:
                log.warning("worker %d has not answered for %.0f s", slot.number, now - slot.heartbeat_asked)

    def _resize(self) -> None:
        """With `count: auto`, follow the cluster: add workers for new nodes, drop those that wait for lost ones."""
        wanted = self._wanted()
        while len(self._slots) < wanted:
            self._add_slot()
        if self._count == "auto":
            for slot in [slot for slot in self._slots if not slot.ready][: max(0, len(self._slots) - wanted)]:
                log.info("worker %d is removed, since the cluster has no room for it", slot.number)
                self._cluster.kill(slot.handle)
                self._slots.remove(slot)

    def _wanted(self) -> int:
        if self._count == "auto":
            return max(1, self._cluster.room())
        return self._count if not self._started else 0

    def _add_slot(self) -> None:
        slot = WorkerSlot(self._started, None, None, self._clock())
        self._started += 1
        self._slots.append(slot)
        self._start(slot)

    def _start(self, slot: WorkerSlot) -> None:
        slot.ready, slot.heartbeat, slot.since = False, None, self._clock()
        slot.handle, slot.reference = self._cluster.start(slot.number)

    def _await_first(self) -> None:
        """Wait until a worker is ready, so that an error in all of them shows before a run begins."""
        while not self.size:
            for reference in self._cluster.wait([slot.reference for slot in self._slots], POLL):
                self._collect(next(slot for slot in self._slots if slot.reference is reference))
            if not self.size and self._clock() - self._looked > START_LIMIT:
                raise WorkerError(
                    f"workers: none was ready within {START_LIMIT:.0f} s; look at `ray status` for room, and lower "
                    "workers.cpus_per_worker or workers.gpus_per_worker"
                )
