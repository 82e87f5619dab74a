"""Whether an exception means that memory ran out."""

from __future__ import annotations

import torch

_NO_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # CUDA's libraries allocate beside torch
    "not enough memory",  # torch's CPU allocator, as the next
    "can't allocate memory",
)


def no_memory(problem: Exception) -> bool:
    """Return whether an exception means that memory ran out, on a GPU or on the host."""
    if isinstance(problem, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _NO_MEMORY)
