"""Random models to merge, their recipes, and the bandwidth of the machine's memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.recipes.methods import METHODS

FIVE = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties")
"""Those that mergekit is timed on, too."""


@dataclass(frozen=True)
class Size:
    """A Llama with tied embeddings."""

    name: str
    hidden: int
    layers: int
    vocabulary: int


SIZES = (
    Size("0.01 B", 256, 6, 16_000),
    Size("0.1 B", 768, 12, 32_000),
    Size("0.5 B", 1280, 24, 64_000),
)
QUICK = (Size("0.0005 B", 64, 2, 5_000),)


def make_models(size: Size, folder: Path, count: int, seed: int) -> list[str]:
    """Write a base and `count` fine-tunes of it, random bfloat16 weights with small deltas; return their folders."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=max(1, size.hidden // 256),
        vocab_size=size.vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base = {name: values.data.clone() for name, values in module.named_parameters()}
    paths = []
    for index in range(count + 1):
        for name, values in module.named_parameters():
            if index:
                values.data.copy_(torch.randn(values.shape, dtype=torch.bfloat16).mul_(0.002).add_(base[name]))
        path = folder / ("base" if index == 0 else f"expert{index}")
        module.save_pretrained(path)
        paths.append(str(path))
    return paths


def recipe(method: str, paths: list[str], count: int, turn: int) -> dict[str, Any]:
    """Return a recipe of mergekit's dialect for `count` experts; its coefficients differ from turn to turn."""
    spec = METHODS[method]
    base, *experts = paths
    count = min(count, spec.max_models or count)
    weighted = any(parameter.name == "weight" for parameter in spec.parameters)
    parameters: dict[str, Any] = {}
    if method == "slerp":
        parameters["t"] = 0.3 + 0.01 * turn
    if method == "nearswap":
        parameters["t"] = 0.001 + 0.0001 * turn
    if any(parameter.name == "density" for parameter in spec.parameters):
        parameters["density"] = 0.5 + 0.01 * turn
    models = [
        {"model": path, "parameters": {"weight": 0.4 + 0.1 * index + 0.01 * turn} if weighted else {}}
        for index, path in enumerate(experts[:count])
    ]
    data: dict[str, Any] = {
        "merge_method": method,
        "models": models,
        "parameters": parameters,
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "evomerge": {"karcher_weights": method == "karcher"},
    }
    if spec.base != "none":
        data["base_model"] = base
        if method == "slerp":
            models.append({"model": base, "parameters": {}})
    return data


class Copy:
    """A plain copy of a long array: the bandwidth of the machine's memory."""

    def __init__(self, threads: int, *, entries: int = 1 << 26) -> None:
        self._source, self._target = np.ones(entries, np.float32), np.ones(entries, np.float32)
        self._cuts = [slice(index * entries // threads, (index + 1) * entries // threads) for index in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def run(self) -> float:
        """Copy once, with all threads; return bytes per second, read and written."""
        start = time.perf_counter()
        list(self._pool.map(lambda cut: np.copyto(self._target[cut], self._source[cut]), self._cuts))
        return 2 * self._source.nbytes / (time.perf_counter() - start)
