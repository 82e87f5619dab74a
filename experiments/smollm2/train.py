"""Fine-tuning on a CPU: all weights, or a LoRA adapter that is merged into them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.smollm2.items import Item
from experiments.training import IGNORE, descend


@dataclass(frozen=True)
class Training:
    """How one expert is made. The learning rate rises over a tenth of the steps and falls to zero in a cosine."""

    kind: Literal["full", "lora"]
    steps: int
    learning_rate: float
    batch: int = 16
    rank: int = 16
    """Of the adapter, with alpha twice as large, on all linear maps of the layers."""


@dataclass(frozen=True)
class Report:
    """What a training cost and reached: mean loss of the answers' tokens over the first and last ten steps, nats."""

    kind: str
    steps: int
    tokens: int
    trained_parameters: int
    seconds: float
    first_loss: float
    last_loss: float


def fine_tune(base: Path, out: Path, items: Sequence[Item], training: Training, seed: int) -> Report:
    """Train a copy of `base` on `items`, in random order, and write it to `out` in float32."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trained = _with_adapter(model, training.rank) if training.kind == "lora" else model
    weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0)
    tokens, started = 0, time.perf_counter()

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        nonlocal tokens
        for chosen in _batches(len(items), training, seed):
            batch = _encode(tokenizer, [items[index] for index in chosen])
            tokens += int(batch["attention_mask"].sum())
            yield batch

    losses = list(
        descend(trained, optimizer, batches(), lambda step: training.learning_rate * _rate(step, training.steps))
    )
    seconds = time.perf_counter() - started
    merged = trained.merge_and_unload() if training.kind == "lora" else model
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    first, last = (float(np.mean(part)) for part in (losses[:10], losses[-10:]))
    count = sum(parameter.numel() for parameter in weights)
    return Report(training.kind, training.steps, tokens, count, round(seconds, 1), round(first, 4), round(last, 4))


def _with_adapter(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _batches(count: int, training: Training, seed: int) -> list[np.ndarray]:
    """Return the items of each step; each pass over all items ends before the next begins."""
    rng = np.random.default_rng([seed, 3])
    passes = -(-training.steps * training.batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return [order[step * training.batch :][: training.batch] for step in range(training.steps)]


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _encode(tokenizer: Any, items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Tokenise prompts and answers, [I, longest]; only the answer and the end of its line carry a loss."""
    rows = [(tokenizer(i.prompt)["input_ids"], tokenizer(f" {i.answer}\n")["input_ids"]) for i in items]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
