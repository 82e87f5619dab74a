"""GGUF files as sources: transformers reads them, and each is converted once into a folder of safetensors.

A quantised file is dequantised; the precision that quantisation lost does not come back. Matrices are stored as
bfloat16 or float32 where the file holds them in that type, else as float16, whose rounding error is far below that of
any quantisation.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from evomerge.extras import MissingExtraError, require
from evomerge.files.cache import cache_folder, cached_folder
from evomerge.files.hashing import sha256
from evomerge.files.messages import reason
from evomerge.merging.sources.architecture import empty_module, quiet
from evomerge.merging.sources.errors import CheckpointError

SUFFIX = ".gguf"
HEAD = "output.weight"  # the name of an untied head in GGUF


def is_gguf(reference: str) -> bool:
    """Whether the reference names a local GGUF file."""
    return reference.endswith(SUFFIX) and Path(reference).expanduser().is_file()


def converted(reference: str, cache: Path | None = None) -> Path:
    """Return the folder of a GGUF file's safetensors checkpoint, which is converted at first use.

    Parameters
    ----------
    reference
        The file.
    cache
        The folder for converted files; None: `cache_folder`.

    Raises
    ------
    CheckpointError
        If the file is damaged or of an architecture that transformers does not read, or the `gguf` package is missing.
    FileError
        If the cache cannot be written.
    """
    file = Path(reference).expanduser().resolve()
    root = cache or cache_folder("gguf")
    folder = root / f"{file.stem}-{sha256(file)[:16]}"
    return cached_folder(folder, lambda temporary: _convert(reference, file, temporary))


def _convert(reference: str, file: Path, folder: Path) -> None:
    dtype, has_head = _kinds(reference, file)
    module, tokenizer = _read(reference, file, tied=not has_head)
    with quiet():
        module.to(dtype).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _kinds(reference: str, file: Path) -> tuple[torch.dtype, bool]:
    """Return the dtype to store, after the type of most matrix entries, and whether the file holds a head."""
    try:
        gguf = require("gguf", "gguf", f"{reference}: reading GGUF")
    except MissingExtraError as error:
        raise CheckpointError(str(error)) from None
    try:
        tensors = gguf.GGUFReader(file).tensors
    except Exception as error:  # damage raises ValueError, IndexError, struct.error, ...
        raise CheckpointError(
            f"{reference}: the file is damaged or cut short ({reason(error, file)}); download it again"
        ) from error
    entries: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            entries[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = entries.most_common(1)[0][0] if entries else "F32"
    dtype = {"F32": torch.float32, "F64": torch.float32, "BF16": torch.bfloat16}.get(kind, torch.float16)
    return dtype, any(tensor.name == HEAD for tensor in tensors)


def _read(reference: str, file: Path, *, tied: bool) -> tuple[Any, Any]:
    """Return the model in float32, with a tied head where the file holds none, and its tokenizer if it has one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            config.tie_word_embeddings = tied
            module = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, dtype=torch.float32
            )
    except Exception as error:  # ValueError for unknown architectures, KeyError for missing fields, ...
        raise CheckpointError(
            f"{reference}: transformers cannot read this GGUF file ({reason(error)}); convert it to safetensors "
            "with the tool that made it"
        ) from error
    plain = _plain(module, tied)
    try:
        with quiet():
            return plain, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception:  # no vocabulary, or one of a kind that transformers does not know
        return plain, None


def _plain(module: Any, tied: bool) -> Any:
    """Return a model with the same weights that can be saved: transformers treats the one it read as quantised."""
    config = type(module.config).from_dict(module.config.to_dict())
    config.__dict__.pop("quantization_config", None)
    config.tie_word_embeddings = tied
    plain = empty_module(config, torch.float32, "cpu")
    plain.load_state_dict(module.state_dict(), strict=not tied)
    return plain
