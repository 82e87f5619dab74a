"""GGUF files as sources: read through transformers, converted once into a folder of safetensors.

A quantised file is dequantised; what quantisation lost stays lost. Matrices are stored as bfloat16 or float32 where
the file holds them so, else as float16, whose rounding is far below that of any quantisation.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from evomerge.files.atomic import atomic_folder, disk_errors
from evomerge.files.cache import ELSEWHERE, cache_folder
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
    """Return the folder of a GGUF file's safetensors checkpoint, converted at first use.

    Parameters
    ----------
    reference
        The file.
    cache
        Where converted folders lie; None: `cache_folder`.

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
    if folder.is_dir():
        return folder
    with disk_errors(root, ELSEWHERE):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            if not folder.is_dir():  # another process may have been quicker
                _convert(reference, file, folder)
    return folder


def _convert(reference: str, file: Path, folder: Path) -> None:
    dtype, has_head = _kinds(reference, file)
    module, tokenizer = _read(reference, file, tied=not has_head)
    with atomic_folder(folder, elsewhere=ELSEWHERE) as temporary, quiet():
        module.to(dtype).save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def _kinds(reference: str, file: Path) -> tuple[torch.dtype, bool]:
    """Return the dtype to store, by what most of the file's matrix entries are, and whether it holds a head."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{reference}: reading GGUF needs the gguf package; pip install 'evomerge[gguf]'"
        ) from None
    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # whatever the reader makes of damage: ValueError, IndexError, struct.error, ...
        raise CheckpointError(
            f"{reference}: the file is damaged or cut short ({reason(error)}); download it again"
        ) from error
    entries: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            entries[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = entries.most_common(1)[0][0] if entries else "F32"
    dtype = {"F32": torch.float32, "F64": torch.float32, "BF16": torch.bfloat16}.get(kind, torch.float16)
    return dtype, any(tensor.name == HEAD for tensor in tensors)


def _read(reference: str, file: Path, *, tied: bool) -> tuple[Any, Any]:
    """Return the model in float32, its head tied where the file holds none, and its tokenizer if it has one."""
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
    except Exception:  # a file without a vocabulary, or with one of a kind that transformers does not know
        return plain, None


def _plain(module: Any, tied: bool) -> Any:
    """Return a model of the same weights that can be saved: what was read counts as quantised, though it is not now."""
    config = type(module.config).from_dict(module.config.to_dict())
    config.__dict__.pop("quantization_config", None)
    config.tie_word_embeddings = tied
    plain = empty_module(config, torch.float32, "cpu")
    plain.load_state_dict(module.state_dict(), strict=not tied)
    return plain
