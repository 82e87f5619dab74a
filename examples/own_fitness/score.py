"""A fitness function of one's own: how likely the right answer is to a model, item by item."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch

LISTS = [*permutations(("one", "two", "three", "four"), 3)]
ITEMS = [{"question": f"reverse {' '.join(words)} =", "answer": " ".join(reversed(words))} for words in LISTS]
"""What is scored: anything that JSON can hold. Half of the items are held out for the final table."""


def likelihood(model: Any, tokenizer: Any, items: Sequence[dict[str, str]]) -> list[float]:
    """Return the probability of each right answer per token, in [0, 1]; larger is better."""
    found = []
    for item in items:
        question = tokenizer(item["question"])["input_ids"]
        answer = tokenizer(f" {item['answer']}")["input_ids"]
        tokens = torch.tensor([question + answer], device=model.device)
        logits = model(input_ids=tokens).logits[0, len(question) - 1 : -1].float()
        right = logits.log_softmax(-1).gather(1, tokens[0, len(question) :, None])
        found.append(float(right.mean().exp()))
    return found
