"""Who does the pieces of a merge: this thread, or as many as torch computes with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from evomerge.merging.engine.jobs import Piece
from evomerge.merging.methods.blocks import Scratch


class Work(Protocol):
    """What a piece belongs to: a `Job`, or one in core space."""

    @property
    def is_whole_matrix(self) -> bool:
        """Whether linear algebra does most of it."""


class Crew:
    """The threads of one engine, started when first needed; each has buffers of its own.

    Torch's operations and the compiled kernels release Python's lock, and operations on blocks are too small for torch
    to share them out itself.
    """

    def __init__(self, device: torch.device, block: int | None) -> None:
        self._device = device
        self._block = block
        self._here = Scratch(device, block)
        self.for_matrices = Scratch(device, block)
        self._there = threading.local()
        self._helpers = 0
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def session(self, *, parallel: bool) -> Iterator[Session]:
        """Take pieces until the end of the ``with`` block, which waits for all of them.

        Parameters
        ----------
        parallel
            Whether to share them among ``torch.get_num_threads()`` threads; on a GPU they never are.
        """
        threads = torch.get_num_threads() if parallel and self._device.type == "cpu" else 1
        session = Session(self, shared=threads > 1)
        yield session
        if threads > 1:
            self._share(session, threads - 1)

    def buffer_bytes(self, rows: int, largest_matrix: int) -> int:
        """Return the most that all threads' buffers take.

        Parameters
        ----------
        rows
            Float32 buffers that a block needs.
        largest_matrix
            Entries of the largest tensor that is merged as a single block.
        """
        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        return 4 * rows * (threads * self._here.block + largest_matrix)

    def here(self, piece: Piece, *, matrix: bool = False) -> None:
        """Do a piece in the calling thread."""
        piece(self.for_matrices if matrix else self._here)

    def there(self, piece: Piece) -> None:
        """Do a piece in a thread of the pool."""
        scratch = getattr(self._there, "scratch", None)
        if scratch is None:
            scratch = self._there.scratch = Scratch(self._device, self._block)
        with torch.inference_mode():  # a mode is a thread's own
            piece(scratch)

    def _share(self, session: Session, helpers: int) -> None:
        """Do the session's pieces, with that many threads' help.

        Raises
        ------
        Exception
            The first that a piece raised, after all have ended.
        """
        pool = self._started(helpers)
        others = [pool.submit(session.work, self.there) for _ in range(helpers)]
        try:
            session.work(self.here)
        finally:
            session.waiting.clear()  # unless interrupted, there are none left
            for other in others:
                other.result()
        if session.errors:
            raise session.errors[0]

    def _started(self, helpers: int) -> ThreadPoolExecutor:
        if self._pool is None or helpers != self._helpers:
            if self._pool is not None:
                self._pool.shutdown()
            self._helpers, self._pool = helpers, ThreadPoolExecutor(helpers, thread_name_prefix="merge")
        return self._pool


class Session:
    """The pieces of one model.

    Threads begin when the last is known. Handed over one by one, they had each thread wait for Python's lock, which
    the thread that makes the pieces does not give away before it must (5 ms): about half of the time of a merge.
    """

    def __init__(self, crew: Crew, *, shared: bool) -> None:
        self._crew = crew
        self._shared = shared
        self.waiting: deque[Piece] = deque()
        self.errors: list[Exception] = []

    def do(self, job: Work, piece: Piece) -> None:
        """Do a job's piece, or put it down for all threads.

        Decompositions are done at once: linear algebra uses all threads by itself.
        """
        if self._shared and not job.is_whole_matrix:
            self.waiting.append(piece)
        else:
            self._crew.here(piece, matrix=job.is_whole_matrix)

    def work(self, do: Callable[[Piece], None]) -> None:
        """Do one piece after another until no thread finds any."""
        while True:
            try:
                piece = self.waiting.popleft()
            except IndexError:
                return
            try:
                do(piece)
            except Exception as error:
                self.errors.append(error)
