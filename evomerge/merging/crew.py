"""Who does the pieces of a merge: this thread, or as many as torch computes with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from evomerge.merging.blocks import Scratch
from evomerge.merging.jobs import Piece

SMALL = 1 << 15
"""Entries of a tensor that is not worth handing over."""


class Work(Protocol):
    """What a piece belongs to: a `Job`, or one in core space."""

    @property
    def size(self) -> int:
        """Entries of its tensor."""

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
        self._threads = 0
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
        session = Session(self, self._started(threads) if threads > 1 else None)
        try:
            yield session
        except BaseException:
            session.cancel()
            raise
        session.wait()

    def here(self, piece: Piece, *, matrix: bool) -> None:
        """Do a piece in the calling thread."""
        piece(self.for_matrices if matrix else self._here)

    def there(self, piece: Piece) -> None:
        """Do a piece in a thread of the pool."""
        scratch = getattr(self._there, "scratch", None)
        if scratch is None:
            scratch = self._there.scratch = Scratch(self._device, self._block)
        with torch.inference_mode():  # a mode is a thread's own
            piece(scratch)

    def _started(self, threads: int) -> ThreadPoolExecutor:
        if self._pool is None or threads != self._threads:
            if self._pool is not None:
                self._pool.shutdown()
            self._threads, self._pool = threads, ThreadPoolExecutor(threads, thread_name_prefix="merge")
        return self._pool


class Session:
    """The pieces of one model."""

    def __init__(self, crew: Crew, pool: ThreadPoolExecutor | None) -> None:
        self._crew = crew
        self._pool = pool
        self._under_way: list[Future[None]] = []

    def do(self, job: Work, piece: Piece) -> None:
        """Do a job's piece, or hand it over.

        Decompositions are done here: linear algebra uses all threads by itself.
        """
        matrix = job.is_whole_matrix
        if self._pool is None or matrix or job.size < SMALL:
            self._crew.here(piece, matrix=matrix)
        else:
            self._under_way.append(self._pool.submit(self._crew.there, piece))

    def wait(self) -> None:
        """Return when all pieces are done.

        Raises
        ------
        Exception
            The first that a piece raised, after all have ended.
        """
        errors = [future.exception() for future in self._under_way]
        for error in errors:
            if error is not None:
                raise error

    def cancel(self) -> None:
        """Drop what has not begun, wait for what has."""
        for future in self._under_way:
            future.cancel()
        for future in self._under_way:
            if not future.cancelled():
                future.exception()
