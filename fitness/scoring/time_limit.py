"""A time limit for Python code of a stranger that has none of its own, such as a model's chat template."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer, get_ident


class TooSlow(Exception):
    """The code was stopped at its time limit."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop what runs inside after some seconds, in whichever thread it runs.

    A signal would do so in the main thread only, and Ray's workers run in others. Python raises the exception before
    its next instruction, so that one long call of compiled code is not cut short.

    Raises
    ------
    TooSlow
        If it was stopped.
    """
    thread, lock, over = get_ident(), Lock(), False

    def stop() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooSlow))

    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
