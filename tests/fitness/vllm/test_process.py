"""The channel, the shared memory, and the memory that an engine takes."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.config.load import load
from fitness.results import TaskError
from fitness.scoring.engine_config import VllmEngine
from fitness.vllm import environment
from fitness.vllm.environment import versions
from fitness.vllm.memory import memory, token_bytes
from fitness.vllm.process import EngineDied, EngineProcess, _blocks
from fitness.vllm.server import HEADER, Channel, SharedTensors


def test_messages_and_arrays_arrive_as_they_were_sent() -> None:
    one, other = map(Channel, socket.socketpair())
    large = np.arange(300_000, dtype=np.int32).reshape(3, -1)
    sender = threading.Thread(target=lambda: one.send({"do": "score"}, large=large, none=np.zeros(0, np.bool_)))
    sender.start()
    message, arrays = other.receive()
    sender.join()
    assert message == {"do": "score"}
    assert (arrays["large"] == large).all()
    assert arrays["none"].dtype == np.bool_
    one.socket.close()
    with pytest.raises(EOFError):
        other.receive()


def test_tensors_are_read_block_by_block_by_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitness.vllm.process.BLOCK", 100)
    tensors = [(f"t{n}", torch.full((n + 1, 5), float(n), dtype=torch.bfloat16)) for n in range(6)]
    blocks = list(_blocks(tensors))
    assert len(blocks) > 2
    assert [name for block, _ in blocks for name, _, _ in block] == [name for name, _ in tensors]
    memory_file = tmp_path / "memory"
    memory_file.write_bytes(bytes(HEADER + max(end for _, end in blocks)))
    described = [[(name, "bfloat16", tensor.shape, at) for name, tensor, at in block] for block, _ in blocks]
    reader = pickle.loads(pickle.dumps(SharedTensors(str(memory_file), described)))
    shared = np.memmap(memory_file, np.int64, "r+", shape=HEADER // 8)
    found, rest = {}, iter(reader)
    for number, (block, _) in enumerate(blocks):
        assert shared[1] == max(0, number - 1)  # it counts a block when it asks for the next
        for name, tensor, at in block:
            raw = tensor.view(torch.int16).numpy()
            np.memmap(memory_file, np.int16, "r+", HEADER + at, shape=raw.shape)[:] = raw
            shared[0] = number + 1
            found[name] = next(rest)[1]
    assert next(rest, None) is None
    assert shared[1] == len(blocks)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors)


def test_a_process_that_ends_at_once_is_a_death_with_its_last_error(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise ImportError('libvllm.so is missing')")
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineDied, match=r"exit status 1: ImportError: libvllm.so is missing"):
        EngineProcess(sys.executable, {}, {}, script=script)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_memory_of_an_engine(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    size = token_bytes(model.config, 4)
    assert size == 2 * 2 * 1 * 16 * 4  # keys and values, layers, heads, their size, float32
    needed = memory(model, 130, 8, itemsize=4, gpus=1, free=1 << 30, wanted=None)
    assert (needed.length, needed.sequences, needed.kv) == (256, 8, (8 * 256 + 128) * size)
    few = memory(model, 130, 8, itemsize=4, gpus=1, free=1 << 30, wanted=3 * 256 * size / 2**30)
    assert (few.length, few.sequences) == (256, 2)
    with pytest.raises(
        TaskError, match=r"fitness.engine.kv_memory: .* one sequence of 256 tokens .* raise it, or lower"
    ):
        memory(model, 130, 8, itemsize=4, gpus=1, free=1 << 30, wanted=1e-6)
    with pytest.raises(TaskError, match=r"room for 0 GiB; use a device with more"):
        memory(model, 130, 8, itemsize=4, gpus=1, free=1000, wanted=None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"vllm": None, "torch": "2"}, "has no vLLM; write the Python of an environment that has vLLM 0.32"),
        ({"vllm": "0.9.1", "torch": "2"}, r"vLLM 0.9.1 was not tested, and 0.32.\* was; .*allow_untested: true"),
    ],
)
def test_an_environment_without_vllm_or_with_another_version(
    found: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_versions", lambda python: found)
    with pytest.raises(TaskError, match=words):
        versions(VllmEngine())
    if found["vllm"]:
        assert versions(VllmEngine(allow_untested=True))["vllm"] == "0.9.1"


def test_what_is_no_python() -> None:
    with pytest.raises(TaskError, match=r"fitness.engine.python: /nowhere/python cannot be run .No such file"):
        versions(VllmEngine(python="/nowhere/python"))


def test_identity_has_the_engine_but_no_places(tmp_path: Path) -> None:
    text = "models: {base: b, one: o}\nfitness: {tasks: [a], engine: ENGINE}\n"
    found = {}
    for engine in ("transformers", "vllm", "{kind: vllm, python: p, kv_memory: 2}"):
        (tmp_path / "search.yaml").write_text(text.replace("ENGINE", engine))
        found[engine] = load(tmp_path / "search.yaml").identity()["fitness"]["engine"]
    assert list(found.values()) == [None, *[{"kind": "vllm", "compiled": True}] * 2]
