"""How much memory vLLM takes for keys and values, and how long its sequences may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fitness.results import TaskError

BLOCK = 128
"""Tokens; lengths are rounded up to blocks, the largest that vLLM's caches have."""
SPARE = 0.9
"""Fraction of the free memory that an engine may take."""
READ_AT_ONCE = 2048
"""Tokens of prompts in one forward pass; their logits are in memory while log-likelihoods are asked."""
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """What an engine takes on each of its GPUs, or of the host's memory, in bytes.

    Attributes
    ----------
    weights
        The model's, beside the merged model in the worker.
    logits
        Of the prompts that are read at once, with their logarithms.
    kv
        Keys and values.
    length
        Longest sequence in tokens, the token behind it included.
    sequences
        Most sequences at a time.
    """

    weights: int
    logits: int
    kv: int
    length: int
    sequences: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.logits + self.kv


def memory(
    model: Any, longest: int, sequences: int, *, itemsize: int, gpus: int, free: int, wanted: float | None
) -> Memory:
    """Return what an engine for a model takes.

    Parameters
    ----------
    model
        The merged model: its config and the size of its weights.
    longest
        Tokens of the longest request, its answer included.
    sequences
        Sequences that are to run at a time.
    itemsize
        Bytes of a number in the engine.
    gpus
        GPUs that share weights, keys and values.
    free
        Bytes that are free on each.
    wanted
        GiB for keys and values; None: as much as the sequences need, at most what is free.

    Raises
    ------
    TaskError
        The longest request does not fit.
    """
    config = model.config.get_text_config()
    weights = math.ceil(sum(one.numel() for _, one in model.named_parameters(remove_duplicate=False)) * itemsize / gpus)
    logits = 2 * READ_AT_ONCE * int(config.vocab_size) * 4
    of_token = token_bytes(config, itemsize, gpus)
    length = BLOCK * math.ceil((longest + 1) / BLOCK)
    one, all_ = ((count * length + BLOCK) * of_token for count in (1, sequences))
    room = int(SPARE * free) - weights - logits
    kv = min(all_, room) if wanted is None else int(wanted * _GIB)
    if kv < one:
        remedy = "raise it" if wanted is not None else "use a device with more"
        key = "fitness.engine.kv_memory" if wanted is not None else "fitness.engine vllm"
        raise TaskError(
            f"{key}: keys and values of one sequence of {length} tokens take {one / _GIB:.3g} GiB, and there "
            f"{'is room for' if wanted is None else 'are'} {max(0, kv) / _GIB:.3g} GiB; {remedy}, or lower "
            "fitness.max_length"
        )
    return Memory(weights, logits, kv, length, min(sequences, max(1, (kv // of_token - BLOCK) // length)))


def token_bytes(config: Any, itemsize: int, gpus: int = 1) -> int:
    """Return the bytes of one token's keys and values on each GPU."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * math.ceil(heads / gpus) * head_size(config) * itemsize)


def head_size(config: Any) -> int:
    """Return the size of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
