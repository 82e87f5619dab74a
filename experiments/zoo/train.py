"""Train the zoo: a base model and three experts, from one seed, on one CPU thread.

Run it as ``python -m experiments.zoo.train [--out DIR] [--seed 0] [--quick]``. Every expert starts from the
base as it is stored (rounded to bfloat16), sees its own skill and some of the base's data, and moves little:
experts far from their base cannot be merged.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.training import IGNORE, descend
from experiments.zoo.language import LONGEST, Problem, draw_numbers
from experiments.zoo.tokenizer import build_tokenizer

MODELS = Path(__file__).parent / "models"
LENGTH = 2 * LONGEST + 4
"""Tokens of the longest training text: <s>, operation, list, =, list, </s>."""


@dataclass(frozen=True)
class Lesson:
    """One kind of problem in a stage's data."""

    operation: str
    language: str
    shortest: int
    longest: int
    weight: float
    """Relative frequency within the stage."""


@dataclass(frozen=True)
class Stage:
    """The training of one model."""

    lessons: tuple[Lesson, ...]
    steps: int
    learning_rate: float
    """Peak; 50 warm-up steps, then a cosine down to zero."""
    embedding_rate: float = 1.0
    """Learning rate of the embeddings, relative to the rest."""
    batch: int = 128
    """Problems per step."""


def lessons(operations: str, language: str, shortest: int, longest: int, weight: float) -> tuple[Lesson, ...]:
    """Make one lesson for each of the space-separated operations."""
    return tuple(Lesson(name, language, shortest, longest, weight) for name in operations.split())


def reader(language: str) -> Stage:
    """Return the stage of an expert that learns to read `language`, and no long operation in it.

    A new language is mostly new words: the embeddings learn faster than the layers, which stay near the base.
    A few short operations make the words stand for numbers that operations act on, not
    only for digits to be copied.
    """
    return Stage(
        lessons("copy last", language, 2, 6, 1.0)
        + lessons("sort reverse rotate max count", language, 2, 3, 0.1)
        + lessons("copy", "en", 2, 6, 0.3),
        steps=250,
        learning_rate=1e-3,
        embedding_rate=5.0,
    )


STAGES: dict[str, Stage] = {
    "base": Stage(
        lessons("copy last", "en", 2, 6, 1.0) + lessons("sort reverse rotate max min count", "en", 2, 3, 0.5),
        steps=700,
        learning_rate=3e-3,
    ),
    "ops": Stage(
        lessons("sort reverse rotate max count", "en", 3, 6, 1.0) + lessons("copy", "en", 2, 6, 0.3),
        steps=300,
        learning_rate=1e-3,
    ),
    "ja": reader("ja"),
    "eo": reader("eo"),
}
"""What each model learns. No model is trained on a long operation in Japanese or Esperanto: that is the target."""


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a small Llama with fresh weights (0.69 million parameters)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def draw_batch(
    stage: Stage, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ids and labels, both (batch, LENGTH); only the answer and its </s> carry a loss."""
    weights = np.array([lesson.weight for lesson in stage.lessons])
    ids = torch.full((stage.batch, LENGTH), tokenizer.pad_token_id)
    labels = torch.full((stage.batch, LENGTH), IGNORE)
    for row, choice in enumerate(rng.choice(len(weights), size=stage.batch, p=weights / weights.sum())):
        lesson = stage.lessons[choice]
        numbers = draw_numbers(rng, lesson.shortest, lesson.longest, "train")
        problem = Problem(lesson.operation, lesson.language, numbers)
        prompt, text = encode(problem, tokenizer)
        ids[row, : len(text)] = torch.tensor(text)
        labels[row, len(prompt) : len(text)] = ids[row, len(prompt) : len(text)]
    return ids, labels


def encode(problem: Problem, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and of the prompt with its answer and </s>."""
    prompt = tokenizer.encode(problem.prompt)
    answer = tokenizer.encode(problem.answer, add_special_tokens=False)
    return prompt, [*prompt, *answer, tokenizer.eos_token_id]


def learning_rate(step: int, stage: Stage, warm_up: int = 50) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    progress = max(0, step - warm_up) / max(1, stage.steps - warm_up)
    return stage.learning_rate * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * progress))


def train(model: LlamaForCausalLM, stage: Stage, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Train `model` in place on one stage."""
    start = time.monotonic()
    for step, loss in enumerate(descending(model, stage, tokenizer, seed), 1):
        if step % 100 == 0 or step == stage.steps:
            print(f"  step {step:4d}  loss {loss:.3f}  {time.monotonic() - start:.0f} s", flush=True)


def descending(model: LlamaForCausalLM, stage: Stage, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[float]:
    """Train `model` in place on one stage; yield each step's loss."""
    rng = np.random.default_rng(seed)
    embeddings = [model.model.embed_tokens.weight]
    rest = [parameter for name, parameter in model.named_parameters() if "embed_tokens" not in name]
    groups = [{"params": embeddings, "scale": stage.embedding_rate}, {"params": rest, "scale": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    # Right padding under a causal mask: no attention mask is needed, padding carries no loss.
    drawn = (draw_batch(stage, tokenizer, rng) for _ in range(stage.steps))
    batches = ({"input_ids": ids, "labels": labels} for ids, labels in drawn)
    return descend(model, optimizer, batches, lambda step: learning_rate(step, stage))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model in bfloat16 safetensors with its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_zoo(out: Path, seed: int, quick: bool) -> None:
    """Train the base, then each expert from the stored base, and write them under `out`."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    for index, (name, stage) in enumerate(STAGES.items()):
        print(name, flush=True)
        fresh = name == "base"
        model = new_model(tokenizer) if fresh else LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        train(model, replace(stage, steps=3, batch=8) if quick else stage, tokenizer, seed * len(STAGES) + index)
        save(model, tokenizer, out / name)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODELS, help="folder for the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three steps per model: a test, not a zoo")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums depend on the number of threads: one thread makes the result repeatable
    train_zoo(options.out, options.seed, options.quick)


if __name__ == "__main__":
    main()
