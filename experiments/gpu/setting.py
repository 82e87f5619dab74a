"""What all parts share: the sizes, the device with its clock and its memory, and random models."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evomerge.merging.sources.source import Source

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """A Llama with tied embeddings and heads of 64, a base and two experts of it."""

    name: str
    hidden: int
    inner: int
    """Width of the feed-forward layers."""
    layers: int
    vocabulary: int


SMALL = Size("0.0003 B", 64, 128, 2, 2_000)


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    model: Size
    copied: int
    """Bytes of the copy that bandwidth is measured with."""
    repeats: int
    """Of a merge, after the first."""
    items: int
    evaluations: int
    rows: int
    """Sequences per pass."""
    width: int
    """Tokens of an item and of a prompt."""
    prompts: int
    new_tokens: int
    """Of the longest answer."""


FULL = Sizes(Size("1 B", 2048, 8192, 16, 32_000), 1 << 30, 10, 512, 24, 32, 256, 128, 128)
DRY = Sizes(SMALL, 1 << 22, 2, 16, 4, 4, 12, 6, 6)


class Device:
    """The GPU, or the CPU in its place.

    Parameters
    ----------
    name
        A torch device: ``cuda`` or ``cpu``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name != "cpu"

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """Return what `work` returns, and its seconds from an idle device to an idle device."""
        self.synchronize()
        started = time.perf_counter()
        found = work()
        self.synchronize()
        return found, time.perf_counter() - started

    def best(self, work: Callable[[], object], repeats: int) -> float:
        """Return the fewest seconds of some repetitions."""
        return min(self.timed(work)[1] for _ in range(repeats))

    def peak(self, work: Callable[[], T]) -> tuple[T, int | None]:
        """Return what `work` returns, and the most bytes that were allocated meanwhile; None on a CPU."""
        if not self.is_gpu:
            return work(), None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = work()
        return found, torch.cuda.max_memory_allocated()

    def allocated(self) -> int:
        """Return the bytes that are allocated now, without garbage; 0 on a CPU."""
        gc.collect()  # an engine's parts refer to each other
        return torch.cuda.memory_allocated() if self.is_gpu else 0

    def describe(self) -> dict[str, Any]:
        """Return the device's name and memory."""
        if not self.is_gpu:
            return {"device": "CPU (a dry run)"}
        about = torch.cuda.get_device_properties(0)
        return {"device": about.name, "device_memory": about.total_memory, "cuda": torch.version.cuda}


@dataclass
class Setting:
    """The device, the sizes, and a folder for models and runs."""

    device: Device
    sizes: Sizes
    folder: Path

    @property
    def models(self) -> list[str]:
        """Folders of the base and the experts that are measured."""
        return self._paths("models")

    @property
    def small(self) -> list[str]:
        """The same of the smallest size, for what does not depend on it."""
        return self._paths("small")

    def _paths(self, kind: str) -> list[str]:
        return [str(self.folder / kind / name) for name in ("base", "expert1", "expert2")]

    def opened(self, paths: list[str]) -> dict[str, Source]:
        """Return models, mapped, by their folders."""
        from evomerge.merging.sources.checkpoints import Checkpoint

        return {path: Checkpoint.open(path) for path in paths}

    def module(self) -> PreTrainedModel:
        """Return the base on the device, in evaluation mode, in bfloat16 on a GPU and float32 on a CPU."""
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if self.device.is_gpu else torch.float32
        return AutoModelForCausalLM.from_pretrained(self.models[0], dtype=dtype).to(self.device.name).eval()

    def tokens(self, rows: int, width: int, seed: int = 0) -> list[list[int]]:
        """Return random rows of token ids."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, self.sizes.model.vocabulary, (rows, width), generator=generator).tolist()


def make_models(size: Size, paths: list[str], device: str) -> None:
    """Write a base and experts near it, random in bfloat16, each with a tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=max(1, size.hidden // 256),
        vocab_size=size.vocabulary,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,  # answers have the length that is asked for
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base = {name: values.detach().clone() for name, values in module.named_parameters()}
    for path in paths:
        module.save_pretrained(path)
        _tokenizer(size.vocabulary).save_pretrained(path)
        for name, values in module.named_parameters():
            values.data.copy_(torch.randn_like(base[name]).mul_(0.002).add_(base[name]))


def _tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer with a word for each token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"w{index}": index for index in range(vocabulary)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0", pad_token="w0")
