"""An exam in a process of its own: while a network is scored there, the search breeds the next one."""

from __future__ import annotations

from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.digits_niches.network import TRAINED, WEIGHTS, Exam

IN_FLIGHT = 2  # networks handed in and not yet asked back: one is scored while another waits, so none is waited for


class ExamBeside:
    """Scores networks on the training images, in the order in which they are handed in.

    Weights and answers go through shared memory; the pipe only carries the number of their place in it.
    """

    def __init__(self) -> None:
        context = get_context("spawn")
        shared = context.RawArray("d", IN_FLIGHT * WEIGHTS), context.RawArray("b", IN_FLIGHT * TRAINED)
        self._weights, self._right = _tables(*shared)
        self._pipe, theirs = context.Pipe()
        self._handed_in = 0
        context.Process(target=_score, args=(theirs, *shared), daemon=True).start()
        theirs.close()  # so that the end of the process is noticed here
        self._pipe.recv_bytes()  # it is ready

    def hand_in(self, weights: NDArray[np.float64]) -> None:
        """Begin to score a network; at most `IN_FLIGHT` at a time."""
        place = self._handed_in % IN_FLIGHT
        self._handed_in += 1
        self._weights[place] = weights
        self._pipe.send_bytes(bytes([place]))

    def right(self) -> NDArray[np.bool_]:
        """Wait for the oldest network handed in, and return which images it names rightly, bool[1437]."""
        (place,) = self._pipe.recv_bytes()
        return self._right[place].copy()


@cache
def exam_beside() -> ExamBeside:
    """The one of this process; it ends with it."""
    return ExamBeside()


def _score(pipe: Connection, weights: Any, right: Any) -> None:
    import torch

    torch.set_num_threads(1)
    exam = Exam(slice(TRAINED))
    networks, answers = _tables(weights, right)
    pipe.send_bytes(b"ready")
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, KeyboardInterrupt):
            return
        (place,) = message
        answers[place] = exam.right(networks[place])
        pipe.send_bytes(message)


def _tables(weights: Any, right: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """View shared memory as float64[IN_FLIGHT, 19210] and bool[IN_FLIGHT, 1437]."""
    return (
        np.frombuffer(weights, np.float64).reshape(IN_FLIGHT, WEIGHTS),
        np.frombuffer(right, np.bool_).reshape(IN_FLIGHT, TRAINED),
    )
