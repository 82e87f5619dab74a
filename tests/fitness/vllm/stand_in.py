"""A stand-in for vLLM's process: a fork of the test's own, which speaks the protocol and computes with torch."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fitness.vllm.server import Channel, serve


class TorchBackend:
    """Answers as vLLM does, with the model that a config describes; dies where a file says so."""

    deaths: Path | None = None
    """Holds what the next questions are at which it dies, one word a line; shared with later processes."""
    reads_weights = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._dies_at("start")
        torch.manual_seed(9)
        config = AutoConfig.from_pretrained(settings["model"])
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings["dtype"])).eval()
        self.longest = settings["max_model_len"]

    def _dies_at(self, question: str) -> None:
        words = self.deaths.read_text().split() if self.deaths is not None else []
        if question in words:
            words.remove(question)
            assert self.deaths is not None
            self.deaths.write_text(" ".join(words))
            os.write(2, b"torch.Stumbled: no\nRuntimeError: the device is lost\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self, tensors: Iterable[tuple[str, Any]]) -> None:
        self._dies_at("load")
        given = dict(tensors)
        if self.reads_weights:
            self.model.load_state_dict(given)

    def score(
        self, prompts: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]
    ) -> tuple[list[float], list[bool]]:
        self._dies_at("score")
        found = [self._scored(*request) for request in zip(prompts, first, last, strict=True)]
        return [total for total, _ in found], [greedy for _, greedy in found]

    @torch.inference_mode()
    def _scored(self, prompt: Sequence[int], first: int, last: int) -> tuple[float, bool]:
        assert len(prompt) < self.longest
        wanted = torch.tensor([*prompt[first:], last])
        logp = self.model(torch.tensor([prompt])).logits[0, first - 1 :].float().log_softmax(-1)
        return float(logp.gather(1, wanted[:, None]).sum()), bool((logp.argmax(-1) == wanted).all())

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        ends: Sequence[int],
        listen: Callable[[dict[int, list[int]]], Sequence[int]],
    ) -> None:
        running = {at: list(prompt) for at, prompt in enumerate(prompts)}
        while running:
            new = {at: int(self.model(torch.tensor([row])).logits[0, -1].argmax()) for at, row in running.items()}
            self._dies_at("generate")
            done = set(listen({at: [token] for at, token in new.items()}))
            for at, token in new.items():
                running[at].append(token)
                assert len(running[at]) <= self.longest
                if at in done or token in ends or len(running[at]) == len(prompts[at]) + limits[at]:
                    del running[at]


class ForkedPopen:
    """In place of `subprocess.Popen`: a fork, which needs no imports."""

    backend: type[TorchBackend] = TorchBackend
    started: list[Mapping[str, str]] = []  # noqa: RUF012

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stderr: Any, **others: Any) -> None:
        self.started.append(env)
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid == 0:
            os.dup2(stderr.fileno(), 2)
            with suppress(BaseException):
                serve(Channel(socket.socket(fileno=int(command[-2]))), self.backend)
            os._exit(0)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float = 60.0) -> int:
        for _ in range(int(timeout / 0.01)):
            if (code := self.poll()) is not None:
                return code
            time.sleep(0.01)
        raise AssertionError("the process does not end")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
