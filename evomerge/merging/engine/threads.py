"""Threads that run a merge: the calling thread alone, or as many as torch computes with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch

from evomerge.merging.engine.tensor_merge import LARGE_MATRIX, WorkUnit
from evomerge.merging.methods.blocks import Scratch, one_thread

T = TypeVar("T")

SIDE_BY_SIDE = 1 << 17
"""Entries per block where each thread merges a tensor of its own: four times as many as elsewhere.

Every operation begins and ends with Python's lock, for which the other threads wait. Of a linear merge, these blocks
take 0.7 ns of the processor per entry instead of 1.2, although their float32 buffers (512 KiB each) leave the
second-level cache.
"""


class Run(Protocol):
    """Runs a unit of work with buffers that no other thread uses."""

    def __call__(self, unit: WorkUnit, *, matrix: bool = False) -> None:
        """Run it; `matrix`: with the buffers for whole matrices."""


class HasUnits(Protocol):
    """The owner of a unit of work: a `TensorMerge`, or a merge in core space."""

    @property
    def is_whole_matrix(self) -> bool:
        """Whether a single block is the whole tensor."""

    @property
    def uses_all_threads(self) -> bool:
        """Whether the operations use all threads by themselves."""


class MergeThreads:
    """The threads of one engine, started when first needed; each has its own buffers.

    Torch's operations and the compiled kernels release Python's lock. Operations on blocks are too small for torch to
    split them between threads itself.
    """

    def __init__(self, device: torch.device, block: int | None) -> None:
        self._device = device
        self._block = block
        self._scratch = Scratch(device, block)
        self.for_matrices = Scratch(device, block)
        self._of_thread = threading.local()
        self._helpers = 0
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def queue(self, *, parallel: bool) -> Iterator[WorkQueue]:
        """Take units of work until the end of the ``with`` block, which waits for all of them.

        Parameters
        ----------
        parallel
            Whether to split the work between ``torch.get_num_threads()`` threads. On a GPU, one thread does it all.
        """
        threads = torch.get_num_threads() if parallel and self._device.type == "cpu" else 1
        queue = WorkQueue(self, parallel=threads > 1)
        yield queue
        if threads > 1:
            self._run_all(queue, threads - 1)

    def each(self, tasks: Sequence[Callable[[Run], T]], *, parallel: bool = True) -> Iterator[T]:
        """Yield what each task returns, in the order in which they end; few results wait at a time.

        While they run, torch computes each operation in the thread that asks for it: threads that share operations
        wait for each other at every one, which costs most where other processes use the cores.

        Parameters
        ----------
        tasks
            Functions of a function that runs a unit of work with the thread's own buffers.
        parallel
            Whether to run them on ``torch.get_num_threads()`` threads; otherwise here, one after another.
        """
        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        if not parallel or threads == 1:
            yield from (task(self.run_here) for task in tasks)
            return
        pool, run = _pool(threads), partial(self.run_in_pool, block=SIDE_BY_SIDE)
        waiting, running = deque(tasks), set[Future[T]]()
        with one_thread():
            try:
                while waiting or running:
                    while waiting and len(running) <= threads:
                        running.add(pool.submit(waiting.popleft(), run))
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    while ended:
                        yield ended.pop().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def buffer_bytes(self, rows: int, largest_matrix: int) -> int:
        """Return the size of all threads' buffers.

        Parameters
        ----------
        rows
            Float32 buffers that a block needs.
        largest_matrix
            Entries of the largest tensor that is merged as a single block.
        """
        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        of_each = self._scratch.block + min(largest_matrix, LARGE_MATRIX)
        return 4 * rows * (threads * of_each + largest_matrix)

    def run_here(self, unit: WorkUnit, *, matrix: bool = False) -> None:
        """Run a unit in the calling thread."""
        unit(self.for_matrices if matrix else self._scratch)

    def run_in_pool(self, unit: WorkUnit, *, matrix: bool = False, block: int | None = None) -> None:
        """Run a unit in a thread of the pool, with that thread's buffers; `block`: their size unless one was chosen."""
        scratch = getattr(self._of_thread, "scratch", None)
        if scratch is None:
            scratch = self._of_thread.scratch = Scratch(self._device, self._block or block)
        with torch.inference_mode():  # the mode is per thread
            unit(scratch)

    def _run_all(self, queue: WorkQueue, helpers: int) -> None:
        """Run the units of the queue in this thread and `helpers` more.

        Raises
        ------
        Exception
            The first that a unit raised, after all have ended.
        """
        pool = self._started(helpers)
        with one_thread():
            futures = [pool.submit(queue.work, self.run_in_pool) for _ in range(helpers)]
            try:
                queue.work(self.run_here)
            finally:
                queue.waiting.clear()  # not empty after an interrupt only
                for future in futures:
                    future.result()
        if queue.errors:
            raise queue.errors[0]

    def _started(self, helpers: int) -> ThreadPoolExecutor:
        if self._pool is None or helpers != self._helpers:
            if self._pool is not None:
                self._pool.shutdown()
            self._helpers, self._pool = helpers, _pool(helpers)
        return self._pool


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads in which torch computes each operation alone."""
    return ThreadPoolExecutor(threads, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,))


class WorkQueue:
    """The units of work of one model.

    Threads start when the last unit is known. When units were handed over one by one, each thread waited for Python's
    lock, which the thread that makes the units releases only every 5 ms: about half of the time of a merge.
    """

    def __init__(self, threads: MergeThreads, *, parallel: bool) -> None:
        self._threads = threads
        self._parallel = parallel
        self.waiting: deque[WorkUnit] = deque()
        self.errors: list[Exception] = []

    def add(self, merge: HasUnits, unit: WorkUnit) -> None:
        """Run a unit now, or queue it for all threads.

        Decompositions of large matrices run at once: linear algebra uses all threads by itself. Of others each thread
        takes one, which needs half of the CPU time and waits for no thread that another process keeps from running.
        """
        if self._parallel and not merge.uses_all_threads:
            self.waiting.append(unit)
        else:
            self._threads.run_here(unit, matrix=merge.is_whole_matrix)

    def work(self, run: Callable[[WorkUnit], None]) -> None:
        """Run one unit after another until the queue is empty; keep what they raise."""
        while True:
            try:
                unit = self.waiting.popleft()
            except IndexError:
                return
            try:
                run(unit)
            except Exception as error:  # of any kind: raised again in the thread that waits for all units
                self.errors.append(error)
