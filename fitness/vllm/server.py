"""Runs in vLLM's environment, as `python server.py DESCRIPTOR PARENT`; needs vLLM, torch and numpy, nothing of ours.

The driver speaks to it over a socket: a message is some JSON and some arrays. Merged weights come through memory that
both processes map, one block after another (`SharedTensors`), so that no second copy of the model is held. The driver
imports this module for `Channel` and the layout of that memory.

Shapes: R requests, T tokens of all requests one after the other.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

PROTOCOL = 1
"""Version of the messages; driver and server must have the same."""
HEADER = 4096
"""Bytes in front of the shared block: counters, int64, of blocks that were filled and that each rank has read."""
POLL = 0.0005
"""Seconds between two looks at a counter."""
_LENGTHS = struct.Struct(">II")


class Channel:
    """Messages over a socket: a mapping of plain values, and arrays by name.

    Parameters
    ----------
    connected
        One end of a pair of stream sockets.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def send(self, message: Mapping[str, Any], **arrays: np.ndarray) -> None:
        """Send a message; an OSError if the other side has closed."""
        parts = [np.ascontiguousarray(values) for values in arrays.values()]
        described = [[name, part.dtype.str, part.shape] for name, part in zip(arrays, parts)]  # noqa: B905
        head = json.dumps({**message, "arrays": described}).encode()
        self.socket.sendall(_LENGTHS.pack(len(head), sum(part.nbytes for part in parts)) + head)
        for part in parts:
            if part.nbytes:
                self.socket.sendall(part.tobytes())

    def receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the next message and its arrays.

        Raises
        ------
        EOFError
            The other process has ended.
        """
        head_size, size = _LENGTHS.unpack(self._read(_LENGTHS.size))
        message: dict[str, Any] = json.loads(bytes(self._read(head_size)))
        content, at = self._read(size), 0
        arrays = {}
        for name, dtype, shape in message.pop("arrays"):
            count = math.prod(shape)
            arrays[name] = np.frombuffer(content, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
        return message, arrays

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view = memoryview(content)
        while view:
            try:
                count = self.socket.recv_into(view)
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError("the other process has ended")
            view = view[count:]
        return content


class SharedTensors:
    """A model's tensors, in order, from memory that the driver fills block by block.

    It can be pickled and read once in each of vLLM's processes, each of which counts the blocks that it has read.

    Parameters
    ----------
    place
        File that stands for the memory, such as ``/proc/12/fd/5``.
    blocks
        For each block its tensors: name, dtype as torch names it, shape, first byte in the block.
    """

    def __init__(self, place: str, blocks: Sequence[Sequence[tuple[str, str, Sequence[int], int]]]) -> None:
        self.place = place
        self.blocks = blocks

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        import torch

        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        with open(self.place, "r+b", buffering=0) as file:
            memory = mmap.mmap(file.fileno(), 0)
        counters = np.frombuffer(memory, np.int64, HEADER // 8)
        for number, tensors in enumerate(self.blocks, start=1):
            while counters[0] < number:
                time.sleep(POLL)
            for name, kind, shape, start in tensors:
                dtype = getattr(torch, kind)
                tensor = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=HEADER + start)
                yield name, tensor.clone().view(*shape)  # vLLM keeps tensors until their layer is complete
            counters[1 + rank] = number


class Backend(Protocol):
    """What answers; vLLM, or a stand-in in tests."""

    def load(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """Take over a model's weights, by the names that they have in its checkpoint."""

    def score(
        self, prompts: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]
    ) -> tuple[Sequence[float], Sequence[bool]]:
        """Return for each prompt the log-likelihood of its tokens from `first` on and of `last` behind them, in nats,
        and whether each of these tokens is the most likely one.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        ends: Sequence[int],
        listen: Callable[[dict[int, list[int]]], Sequence[int]],
    ) -> None:
        """Continue prompts greedily up to a token of `ends` or to a limit; `listen` gets each step's new tokens by the
        prompt's number, and returns the numbers of the prompts that are done.
        """


class VllmBackend:
    """vLLM itself.

    Parameters
    ----------
    settings
        `model`: folder with a config.json; `dtype`; `max_model_len`; `max_num_seqs`; `kv_cache_memory_bytes`;
        `tensor_parallel_size`; `enforce_eager`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self._parameters = SamplingParams
        self._llm = LLM(
            load_format="dummy",  # the driver sends the weights
            skip_tokenizer_init=True,
            generation_config="vllm",
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
            **settings,
        )
        self._count = 0

    def load(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """Take over a model's weights; vLLM fuses, packs and shards them."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        self._llm.reset_prefix_cache()

    def score(
        self, prompts: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]
    ) -> tuple[list[float], list[bool]]:
        """Score tokens; the last one is the only one that may be generated, so that it need not be read."""
        totals, greedy = [0.0] * len(prompts), [True] * len(prompts)
        requests = {}
        for at, prompt in enumerate(prompts):
            requests[at] = self._parameters(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=1 if first[at] < len(prompt) else None,
                logprobs=1,
                allowed_token_ids=[int(last[at])],
                detokenize=False,
            )
        for at, output in self._run(prompts, requests):
            told = output.prompt_logprobs or ()
            pairs = [(told[place], prompts[at][place]) for place in range(first[at], len(prompts[at]))]
            for found, token in [*pairs, (output.outputs[0].logprobs[0], int(last[at]))]:
                totals[at] += found[token].logprob
                greedy[at] &= _most_likely(found) == token
        return totals, greedy

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        ends: Sequence[int],
        listen: Callable[[dict[int, list[int]]], Sequence[int]],
    ) -> None:
        """Continue prompts greedily."""
        from vllm.sampling_params import RequestOutputKind

        requests = {
            at: self._parameters(
                temperature=0.0,
                max_tokens=limit,
                stop_token_ids=list(ends),
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            for at, limit in enumerate(limits)
        }
        names = self._add(prompts, requests)
        numbers = {name: at for at, name in names.items()}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            new: dict[int, list[int]] = {}
            for output in engine.step():
                for found in output.outputs:
                    if any(math.isnan(one.logprob) for place in found.logprobs or () for one in place.values()):
                        raise ValueError("the model produced NaN instead of logits: its weights are not usable")
                    new.setdefault(numbers[output.request_id], []).extend(found.token_ids)
            done = listen(new)
            if done:
                engine.abort_request([names[at] for at in done])

    def _add(self, prompts: Sequence[Sequence[int]], requests: Mapping[int, Any]) -> dict[int, str]:
        names = {}
        for at, parameters in requests.items():
            self._count += 1
            names[at] = str(self._count)
            self._llm.llm_engine.add_request(names[at], {"prompt_token_ids": list(prompts[at])}, parameters)
        return names

    def _run(self, prompts: Sequence[Sequence[int]], requests: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Yield what came of each request, as they end."""
        numbers = {name: at for at, name in self._add(prompts, requests).items()}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield numbers[output.request_id], output


def _most_likely(found: Mapping[int, Any]) -> int:
    """Return the most likely token of one place; of equally likely ones the first of the vocabulary."""
    best = max(one.logprob for one in found.values())
    return min((token for token, one in found.items() if one.logprob == best), default=-1)


def serve(channel: Channel, backend: Callable[[Mapping[str, Any]], Backend]) -> None:
    """Answer the driver's messages until it ends or says so."""
    channel.send({"protocol": PROTOCOL, "pid": os.getpid()})
    answering: Backend | None = None
    while True:
        try:
            message, arrays = channel.receive()
        except EOFError:
            return
        if message["do"] == "stop":
            return
        try:
            if message["do"] == "start":
                answering = backend(message["settings"])
                reply: tuple[dict[str, Any], dict[str, np.ndarray]] = {}, {}
            else:
                assert answering is not None
                reply = _answer(answering, channel, message, arrays)
        except EOFError:
            return
        except Exception as error:  # whatever vLLM raises; the driver decides what follows
            reply = {"error": one_line(error)}, {}
        channel.send(reply[0], **reply[1])


def _answer(
    backend: Backend, channel: Channel, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if message["do"] == "load":
        backend.load(SharedTensors(message["place"], message["blocks"]))
        return {}, {}
    prompts = [part.tolist() for part in np.split(arrays["tokens_T"], np.cumsum(arrays["length_R"])[:-1])]
    if message["do"] == "score":
        totals, greedy = backend.score(prompts, arrays["first_R"].tolist(), arrays["last_R"].tolist())
        return {}, {"total_R": np.array(totals, np.float64), "greedy_R": np.array(greedy, np.bool_)}

    def listen(new: dict[int, list[int]]) -> list[int]:
        channel.send({"new": [[at, tokens] for at, tokens in new.items()]})
        done: list[int] = channel.receive()[0]["done"]
        return done

    backend.generate(prompts, arrays["limit_R"].tolist(), message["ends"], listen)
    return {"finished": True}, {}


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first sentence of its message that says something, in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def end_with_driver(driver: int) -> None:
    """End this process and those that it has started when its parent is no longer `driver`, even while it computes."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1.0)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_driver(int(sys.argv[2]))
    serve(Channel(socket.socket(fileno=int(sys.argv[1]))), VllmBackend)
