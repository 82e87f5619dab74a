"""Measure the zoo: ``python -m experiments.zoo.evaluate`` writes ``results.json``, the README's numbers.

Sources, the uniform average, task arithmetic over a grid of scales, and two recipes that a search found
(``found_weights.json``: one weight per expert; one per expert and layer) are scored on the held-out items of
every task. A greedy decode gives the answer exactly when each of its tokens is the most likely one after the
tokens before it, so one forward pass per item suffices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.harness import Experiment, Results
from experiments.zoo.items import TASK_ITEMS, TASKS
from experiments.zoo.tokenizer import EOS
from experiments.zoo.train import MODELS, STAGES

FOLDER = Path(__file__).parent
EXPERTS = [name for name in STAGES if name != "base"]
SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""Scales of task arithmetic that are tried."""
GROUPS = ("embeddings", *(f"layer {index}" for index in range(6)), "head")
"""Rows of a weight table; the final norm belongs to the head."""

Weights = np.ndarray
"""Weight of each expert's task vector per group: (len(GROUPS), len(EXPERTS))."""
Scores = np.ndarray
"""0 or 1 per item: (I,)."""


def group_of(parameter: str) -> int:
    """Return the row of `GROUPS` a parameter belongs to."""
    if "embed_tokens" in parameter:
        return 0
    if ".layers." in parameter:
        return 1 + int(parameter.rpartition(".layers.")[2].partition(".")[0])
    return len(GROUPS) - 1


class Merger:
    """One resident model whose weights become ``base + sum_t weight[group, t] * (expert_t - base)``."""

    def __init__(self, models: Path) -> None:
        def load(name: str) -> LlamaForCausalLM:
            return LlamaForCausalLM.from_pretrained(models / name, dtype=torch.float32)

        self.model = load("base").eval()
        self.base = load("base").state_dict()
        experts = [load(name).state_dict() for name in EXPERTS]
        self.deltas = {name: [expert[name] - value for expert in experts] for name, value in self.base.items()}

    @torch.no_grad()
    def merge(self, weights: Weights) -> LlamaForCausalLM:
        """Overwrite the model with a merge, rounded to bfloat16 as an exported model would be."""
        for name, parameter in self.model.named_parameters():
            merged = self.base[name].clone()
            for weight, delta in zip(weights[group_of(name)], self.deltas[name], strict=True):
                merged += float(weight) * delta
            parameter.copy_(merged.to(torch.bfloat16))
        return self.model


Document = dict[str, Any]
"""One line of a task's JSONL file."""


@torch.no_grad()
def score_items(model: LlamaForCausalLM, documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> Scores:
    """Score a task's items, each 0 or 1: exact match, or the likeliest choice where there are choices."""
    if "choices" in documents[0]:
        pairs = [(doc["prompt"], choice) for doc in documents for choice in doc["choices"]]
        _, log_likelihood = _teacher_forced(model, pairs, tokenizer, end="")
        chosen = log_likelihood.reshape(len(documents), -1).argmax(1)
        return np.array([float(label == doc["label"]) for label, doc in zip(chosen, documents, strict=True)])
    exact, _ = _teacher_forced(model, [(doc["prompt"], doc["answer"]) for doc in documents], tokenizer, end=EOS)
    return exact.astype(float)


def _teacher_forced(
    model: LlamaForCausalLM, pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, end: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each answer is the greedy one, and its log-likelihood: two arrays (I,)."""
    prompts = [tokenizer.encode(prompt) for prompt, _ in pairs]
    texts = [tokenizer.encode(f"{prompt} {answer} {end}") for prompt, answer in pairs]
    longest = max(map(len, texts))
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    answer = torch.zeros((len(pairs), longest), dtype=torch.bool)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        answer[row, len(prompt) : len(text)] = True
    logits, targets, answer = model(input_ids=ids).logits[:, :-1], ids[:, 1:], answer[:, 1:]
    greedy = ((logits.argmax(-1) == targets) | ~answer).all(1)
    log_likelihood = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
    return greedy.numpy(), (log_likelihood * answer).sum(1).numpy()


def read_documents(task: str, split: str) -> list[Document]:
    """Read one split (``validation`` or ``test``) of a task's items."""
    lines = (TASKS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [document for document in map(json.loads, lines) if document["split"] == split]


def candidates() -> dict[str, Weights]:
    """Return the weight tables to measure, by name."""
    shape = (len(GROUPS), len(EXPERTS))
    tables = {"base": np.zeros(shape)}
    for column, name in enumerate(EXPERTS):
        tables[name] = np.zeros(shape)
        tables[name][:, column] = 1.0
    tables["uniform average"] = np.full(shape, 1 / len(EXPERTS))
    for scale in SCALES:
        tables[f"task arithmetic {scale}"] = np.full(shape, scale)
    found = json.loads((FOLDER / "found_weights.json").read_text(encoding="utf-8"))
    tables["found per expert"] = np.array([found["per expert"]] * len(GROUPS))
    tables["found per layer"] = np.array([found["per layer"][group] for group in GROUPS])
    return tables


def measure(models: Path, split: str = "test") -> dict[str, Any]:
    """Score every candidate on every task."""
    merger = Merger(models)
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    tasks = {name: read_documents(name, split) for name in TASK_ITEMS}
    rows = []
    on_target: dict[str, Scores] = {}
    for name, weights in candidates().items():
        model = merger.merge(weights)
        for task, documents in tasks.items():
            right = score_items(model, documents, tokenizer)
            rows.append({"name": name, "task": task, **_summary(right), **_by_operation(right, documents)})
            if task == "zoo_target_gen":
                on_target[name] = right
    fixed = [name for name in on_target if not name.startswith("found")]
    best = max(fixed, key=lambda name: on_target[name].mean())
    return {
        "split": split,
        "parameters": sum(parameter.numel() for parameter in merger.model.parameters()),
        "best_fixed": best,
        "paired_p_value": {
            other: sign_test(on_target["found per layer"], on_target[other]) for other in (best, "found per expert")
        },
        "rows": rows,
    }


def _summary(right: Scores) -> dict[str, object]:
    deviation = right.std(ddof=1) / math.sqrt(len(right))
    return {"score": round(right.mean(), 4), "standard_error": round(deviation, 4), "items": len(right)}


def _by_operation(right: Scores, documents: Sequence[Document]) -> dict[str, object]:
    names = np.array([document["operation"] for document in documents])
    return {"by_operation": {str(name): round(right[names == name].mean(), 4) for name in dict.fromkeys(names)}}


def sign_test(ours: Scores, theirs: Scores) -> float:
    """Return the two-sided p-value of McNemar's exact test: a sign test over the items they disagree on."""
    wins, losses = int((ours > theirs).sum()), int((ours < theirs).sum())
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    return min(1.0, 2 * tail)


def tables(results: Results) -> list[str]:
    """Return the README's tables: scores on every task, on the target by operation, and the weights found."""
    return [by_task(results), by_operation(results), found_weights()]


def found_weights() -> str:
    """Return the weights of the recipe found per layer."""
    found = json.loads((FOLDER / "found_weights.json").read_text(encoding="utf-8"))
    lines = ["| weight of | " + " | ".join(found["experts"]) + " |", "|---" * (len(found["experts"]) + 1) + "|"]
    for place, weights in found["per layer"].items():
        lines.append(f"| {place} | " + " | ".join(f"{weight:.2f}" for weight in weights) + " |")
    return "\n".join(lines)


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences, and those that other pages quote."""
    found = json.loads((FOLDER / "found_weights.json").read_text(encoding="utf-8"))
    weights = ", ".join(f"{name} {x:.2f}" for name, x in zip(found["experts"], found["per expert"], strict=True))
    scores = {row["name"]: row["score"] for row in results["rows"] if row["task"] == "zoo_target_gen"}
    best = results["best_fixed"]
    return {
        "best_fixed": best,
        "best_fixed.score": f"{scores[best]:.2f}",
        "p.fixed": f"{results['paired_p_value'][best]:.0e}",
        "p.per_expert": f"{results['paired_p_value']['found per expert']:.0e}",
        "per_expert": weights,
    }


def by_task(results: Results) -> str:
    """Return a row per model or merge and a column per task, in per cent."""
    scores = {(row["name"], row["task"]): row for row in results["rows"]}
    names = list(dict.fromkeys(row["name"] for row in results["rows"]))
    lines = ["| | " + " | ".join(task.removeprefix("zoo_") for task in TASK_ITEMS) + " |"]
    lines.append("|---|" + "---|" * len(TASK_ITEMS))
    for name in names:
        cells = [scores[name, task] for task in TASK_ITEMS]
        texts = [f"{100 * cell['score']:.1f} ± {100 * cell['standard_error']:.1f}" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def by_operation(results: Results) -> str:
    """Return the scores on the target by operation, in per cent: sources, fixed merges worth showing, found recipes."""
    shown = (*STAGES, "uniform average", results["best_fixed"], "found per expert", "found per layer")
    rows = {row["name"]: row["by_operation"] for row in results["rows"] if row["task"] == "zoo_target_gen"}
    operations = TASK_ITEMS["zoo_target_gen"].operations
    lines = ["| target by operation, % | " + " | ".join(operations) + " |", "|---|" + "---|" * len(operations)]
    for name in shown:
        cells = " | ".join(f"{100 * rows[name][operation]:.0f}" for operation in operations)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results and print them."""
    parser = EXPERIMENT.parser(__doc__, quick="the same")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = EXPERIMENT.destination(given)
    results: Results = measure(given.models)
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(FOLDER, tables, module="evaluate", figures=figures)

if __name__ == "__main__":
    main()
