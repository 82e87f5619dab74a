"""The fitness of this experiment's searches: log-likelihoods of rows of tokens, without lm-eval."""

from __future__ import annotations

from typing import Any

import torch


def likelihood(model: Any, tokenizer: Any, items: list[list[int]], batch_size: int = 32) -> list[float]:
    """Return the mean log-likelihood of each item's tokens after the first."""
    found: list[float] = []
    for start in range(0, len(items), batch_size):
        ids_NS = torch.tensor(items[start : start + batch_size], device=model.device)
        logits_NSV = model(input_ids=ids_NS, use_cache=False).logits[:, :-1].float()
        found += logits_NSV.log_softmax(-1).gather(-1, ids_NS[:, 1:, None]).mean(dim=(1, 2)).tolist()
    return found


def hungry(model: Any, tokenizer: Any, items: list[list[int]], batch_size: int = 32) -> list[float]:
    """Return the same, but first allocate so much for each row that a large batch does not fit.

    On a GPU a row takes a sixth of its memory, so four fit beside small models. On a CPU, whose system promises memory
    that it does not have, four rows ask for more addresses than there are, and two for little.
    """
    rows = min(batch_size, len(items))
    is_gpu = model.device.type == "cuda"
    taken = rows * torch.cuda.mem_get_info()[1] // 6 if is_gpu else 1 << min(14 * rows, 60)
    torch.empty(taken, dtype=torch.uint8, device=model.device)
    return likelihood(model, tokenizer, items, batch_size)
