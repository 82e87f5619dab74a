"""Whether an exception means that memory ran out."""

from __future__ import annotations

import torch

_NO_MEMORY = ("not enough memory", "can't allocate memory")  # torch's CPU allocator raises a RuntimeError


def no_memory(problem: Exception) -> bool:
    """Return whether an exception means that memory ran out."""
    if isinstance(problem, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _NO_MEMORY)
