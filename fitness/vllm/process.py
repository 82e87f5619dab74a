"""vLLM's process, seen from the driver: started, spoken to, and ended."""

from __future__ import annotations

import mmap
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitness.results import TaskError
from fitness.vllm import server
from fitness.vllm.server import HEADER, POLL, PROTOCOL, Channel

BLOCK = 64 << 20
"""Bytes of weights that are handed over at a time; more where a single tensor is larger."""
RANKS = HEADER // 8 - 1
_ALIGNED = 64
_CLOSING = 10.0  # seconds that an engine has to end by itself
_LOG_TAIL = 50_000  # bytes of the log that are searched for the reason of a death
_ERROR = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception)|Killed)\b: ?.*")
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the same batches, and so the same rounding, from run to run
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one place more than the model reads, for a token that is not read
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",  # our folder holds modules with common names
}
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")  # of this environment, and not of vLLM's

Tensors: TypeAlias = Sequence[tuple[str, Tensor]]
Listen: TypeAlias = Callable[[Sequence[tuple[int, list[int]]]], list[int]]


class EngineDied(RuntimeError):
    """The process ended while it was needed; the message has the last error in its log."""


class EngineError(TaskError):
    """vLLM refuses what it was asked, with its reason in one line."""

    key = "engine"


class EngineProcess:
    """A running vLLM engine.

    Parameters
    ----------
    python
        The interpreter of vLLM's environment.
    settings
        See `server.VllmBackend`.
    environment
        Variables beside this process's own.
    script
        What the process runs; another one in tests.

    Raises
    ------
    EngineError
        vLLM refuses the model or the settings.
    EngineDied
        The process ended while it started.
    """

    def __init__(
        self,
        python: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        script: Path = Path(server.__file__),
    ) -> None:
        self._ranks = int(settings.get("tensor_parallel_size", 1))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._memory: tuple[int, mmap.mmap] | None = None
        inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python, str(script), str(theirs.fileno()), str(os.getpid())],
                env=inherited | _ENVIRONMENT | dict(environment),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is for the search, which then ends it
            )
        self._channel = Channel(ours)
        try:
            hello, _ = self._receive()
            if hello["protocol"] != PROTOCOL:
                raise EngineError(
                    f"the process has version {hello['protocol']} of the protocol, and the search has {PROTOCOL}; "
                    "install evomerge again"
                )
            self._ask({"do": "start", "settings": dict(settings)})
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def load(self, tensors: Tensors) -> None:
        """Hand over a model's weights, block by block.

        Parameters
        ----------
        tensors
            By the names that they have in a checkpoint, on any device.

        Raises
        ------
        EngineDied
            See the class.
        EngineError
            vLLM does not take them.
        """
        blocks = list(_blocks(tensors))
        size = HEADER + max(end for _, end in blocks)
        descriptor, memory = self._shared(size)
        counters = np.frombuffer(memory, np.int64, HEADER // 8)
        counters[:] = 0
        described = [
            [(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), at) for name, tensor, at in block]
            for block, _ in blocks
        ]
        place = f"/proc/{os.getpid()}/fd/{descriptor}"
        self._send({"do": "load", "place": place, "blocks": described})
        for number, (block, _) in enumerate(blocks):
            while counters[1 : 1 + self._ranks].min() < number and not self._speaks():
                time.sleep(POLL)
            if self._speaks():
                break  # it has failed: the reply says why
            for _, tensor, at in block:
                target = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=HEADER + at)
                target.copy_(tensor.detach().reshape(-1))
                del target
            counters[0] = number + 1
        del counters
        self._reply()

    def score(
        self, prompts: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return log-likelihoods float64[R], nats, and greedy bool[R]; see `server.Backend.score`. Raises as `load`."""
        arrays = {"first_R": np.array(first, np.int32), "last_R": np.array(last, np.int32)}
        _, found = self._ask({"do": "score"}, **_flat(prompts), **arrays)
        return found["total_R"], found["greedy_R"]

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], ends: Sequence[int], listen: Listen
    ) -> None:
        """Continue prompts greedily; see `server.Backend.generate`. Raises as `load`."""
        message = {"do": "generate", "ends": list(ends)}
        self._send(message, **_flat(prompts), limit_R=np.array(limits, np.int32))
        while "finished" not in (said := self._reply()[0]):
            self._send({"done": listen(said["new"])})

    def close(self) -> None:
        """End the process; may be called twice."""
        if self._process.poll() is None:
            try:
                self._channel.send({"do": "stop"})
                self._channel.socket.shutdown(socket.SHUT_RDWR)
                self._process.wait(_CLOSING)
            except (OSError, subprocess.TimeoutExpired):
                with suppress(OSError):  # with the processes that it has started
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.kill()
        self._process.wait()
        self._channel.socket.close()
        self._log.close()
        if self._memory is not None:
            descriptor, memory = self._memory
            self._memory = None
            memory.close()
            os.close(descriptor)

    # --- messages ---

    def _ask(self, message: Mapping[str, Any], **arrays: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        self._send(message, **arrays)
        return self._reply()

    def _send(self, message: Mapping[str, Any], **arrays: np.ndarray) -> None:
        try:
            self._channel.send(message, **arrays)
        except OSError:
            raise self._death() from None

    def _reply(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        message, arrays = self._receive()
        if "error" in message:
            if "out of memory" in message["error"].lower():
                raise MemoryError(f"vLLM: {message['error']}")
            raise EngineError(f"vLLM: {message['error']}")
        return message, arrays

    def _receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        try:
            return self._channel.receive()
        except (EOFError, OSError):
            raise self._death() from None

    def _speaks(self) -> bool:
        """Whether there is something to read, the end of the process included."""
        return bool(select.select([self._channel.socket], [], [], 0)[0])

    def _death(self) -> EngineDied:
        """Return what is known about the end of the process."""
        try:
            code = self._process.wait(_CLOSING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL))
        said = _ERROR.findall(self._log.read().decode(errors="replace"))
        return EngineDied(f"vLLM's process ended ({how}{f': {said[-1][:300]}' if said else ''})")

    def _shared(self, size: int) -> tuple[int, mmap.mmap]:
        """Return the descriptor of memory of at least `size` bytes that has no name, and the memory."""
        if self._memory is None or len(self._memory[1]) < size:
            descriptor = os.memfd_create("evomerge-weights")
            os.ftruncate(descriptor, size)
            self._memory = descriptor, mmap.mmap(descriptor, size)
        return self._memory


def _flat(prompts: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int32]]:
    """Return prompts as two arrays: their tokens one after the other, and their lengths."""
    tokens = [np.asarray(prompt, np.int32) for prompt in prompts]
    return {"tokens_T": np.concatenate(tokens), "length_R": np.array([len(part) for part in tokens], np.int32)}


def _blocks(tensors: Tensors) -> Iterator[tuple[list[tuple[str, Tensor, int]], int]]:
    """Yield tensors in blocks with the first byte of each, and the bytes of the block."""
    block: list[tuple[str, Tensor, int]] = []
    end = 0
    for name, tensor in tensors:
        if block and end + tensor.nbytes > BLOCK:
            yield block, end
            block, end = [], 0
        block.append((name, tensor, end))
        end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    yield block, end
