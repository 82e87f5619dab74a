"""Statistics of models on a calibration text: measured before the first candidate, and kept on disk.

The seam for data-aware merging. A statistic is one array per tensor of one model on one text; it does not depend on
any coefficient, so it belongs to what is prepared. There are two kinds: `activations` (mean sizes of each module's
inputs) and `fisher` (mean squared gradients of each weight).

The cache is a folder of safetensors files, named by a hash over kind, weights and text: equal keys, equal statistics.
It may be deleted at any time.

A statistic comes from the cache memory-mapped: one of a number per weight takes no more memory than is read of it.

Letters: N input channels of a module, W windows of text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evomerge.files.atomic import atomic_file
from evomerge.files.cache import ELSEWHERE, cache_folder
from evomerge.files.hashing import sha256
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WINDOW = 512
"""Tokens of one window; windows are read independently."""
MAX_WINDOWS = 256
"""At most this many windows are read, as by AIM's authors."""
VERSION = 1
"""Version of the measurements; part of the cache's key."""

Statistics: TypeAlias = Mapping[str, Tensor]
"""By the tensor's name in the module: float32[N] of activations, bfloat16 in the tensor's own shape of `fisher`."""
Measure: TypeAlias = "Callable[[PreTrainedModel, Tensor], Statistics]"


def statistics(
    kind: str, checkpoint: Source, text: Path, load: Callable[[], PreTrainedModel], cache: Path | None = None
) -> Statistics:
    """Return a statistic of a model on a text, from the cache if it is in it.

    Parameters
    ----------
    kind
        ``activations`` or ``fisher``.
    checkpoint
        The model's files and tokenizer.
    text
        UTF-8; its first 256 windows of 512 tokens count.
    load
        Gives the model with its weights; called only if something has to be measured.
    cache
        The folder; None: `cache_folder`.

    Raises
    ------
    CheckpointError
        If the text cannot be read or is empty, or the model has no tokenizer.
    FileError
        If the cache cannot be written.
    """
    content = _read(text)
    folder = cache or cache_folder("statistics")
    file = folder / f"{kind}-{_key(kind, checkpoint, content)}.safetensors"
    if file.exists():
        with suppress(Exception):  # damaged: measure again
            return load_file(file)
    windows = _windows(checkpoint, content, text)
    measured = {name: values.contiguous() for name, values in _MEASURES[kind](load(), windows).items()}
    _write(file, measured)
    del measured
    return load_file(file)


def activations(model: PreTrainedModel, windows: Tensor) -> Statistics:
    """Return mean ``|x_j|`` over all tokens of the input of every linear map and norm, by its weight's name.

    `windows` are token ids, int64[W, tokens], padded at the end with -1.
    """
    sums: dict[str, Tensor] = {}
    tokens = 0
    with torch.inference_mode(), _watched(model, sums):
        for window in windows:
            ids = window[window >= 0]
            model(input_ids=ids[None].to(model.device), use_cache=False)
            tokens += len(ids)
    return {name: (total / tokens).float().cpu() for name, total in sums.items()}


def fisher(model: PreTrainedModel, windows: Tensor) -> Statistics:
    """Return √n F / ‖F‖ by the weight's name: F is the mean squared gradient of a window's log-likelihood.

    The diagonal of the empirical Fisher information, over the n weights of the model. `windows` as for `activations`;
    one by one, so that memory holds one gradient, the sums and one window's activations.
    """
    with torch.inference_mode(False), torch.enable_grad(), _squared_gradients(model) as sums:
        for window in windows:
            ids = window[window >= 0].to(model.device)
            if len(ids) < 2:
                continue  # nothing to predict
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum").backward()
    norm = math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))
    scale = math.sqrt(sum(total.numel() for total in sums.values())) / norm if norm > 0 else 0.0
    return {name: (total * scale).bfloat16().cpu() for name, total in sums.items()}


@contextmanager
def _squared_gradients(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Add up each parameter's squared gradients, float32, as soon as one is complete; then free it."""
    sums = {name: torch.zeros_like(values, dtype=torch.float32) for name, values in model.named_parameters()}

    def add(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None, "the hook runs when the gradient is there"
            gradient = parameter.grad.float()
            sums[name].addcmul_(gradient, gradient)
            parameter.grad = None

        return hook

    handles = []
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(add(name)))
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None


_MEASURES: Mapping[str, Measure] = {"activations": activations, "fisher": fisher}


@contextmanager
def _watched(model: PreTrainedModel, sums: dict[str, Tensor]) -> Iterator[None]:
    """Add up ``|x_j|``, float64[N], at each call of a linear map or norm."""

    def watch(name: str, weight: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        sums[name] = torch.zeros(weight.shape[-1], dtype=torch.float64, device=weight.device)

        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] += rows.abs().sum(0, dtype=torch.float64)

        return add

    watched = [
        module.register_forward_pre_hook(watch(f"{name}.weight", module.weight))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _is_norm(module)
    ]
    try:
        yield
    finally:
        for handle in watched:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def _read(text: Path) -> bytes:
    if text.exists() and not text.is_file():  # a pipe may never end
        raise CheckpointError(f"{text}: the calibration text is not a regular file; name a text file")
    try:
        content = text.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{text}: the calibration text cannot be read ({error.strerror or error}); name a text file"
        ) from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{text}: the calibration text is not UTF-8; save it as such") from None
    if not content.strip():
        raise CheckpointError(f"{text}: the calibration text is empty; write some pages into it") from None
    return content


def _key(kind: str, checkpoint: Source, content: bytes) -> str:
    files = json.dumps(fingerprint(checkpoint)["files"], sort_keys=True)
    hashed = hashlib.sha256(f"{VERSION}\0{kind}\0{WINDOW}\0{MAX_WINDOWS}\0{files}\0".encode())
    for path in checkpoint.tokenizer.files:
        hashed.update(bytes.fromhex(sha256(path)))
    hashed.update(content)
    return hashed.hexdigest()[:32]


def _windows(checkpoint: Source, content: bytes, text: Path) -> Tensor:
    """Return the text's token ids, int64[W, WINDOW], the last window padded with -1."""
    encoded = checkpoint.tokenizer.load()(content.decode("utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor(encoded[: WINDOW * MAX_WINDOWS], dtype=torch.int64)
    if not len(ids):
        raise CheckpointError(f"{text}: the tokenizer of {checkpoint.reference} finds no token in it; write some text")
    missing = -len(ids) % WINDOW
    return torch.cat([ids, ids.new_full((missing,), -1)]).reshape(-1, WINDOW)


def _write(file: Path, measured: dict[str, Tensor]) -> None:
    size = sum(values.nbytes for values in measured.values())
    with atomic_file(file, size=size, parents=True, elsewhere=ELSEWHERE) as temporary:
        save_file(measured, temporary)
