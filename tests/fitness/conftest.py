"""Tiny random models, a word-level tokenizer and lm-eval tasks in a temporary folder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fitness.config import FitnessConfig

WORDS = [f"w{n}" for n in range(24)]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
STOP = "."

METRICS = '''
def doc_length(doc, results):
    """Characters of the answer: a number for each item that tells texts apart."""
    return {"length": len(results[0]), "exact_match": float(results[0].strip() == doc["answer"])}


def some(doc, results):
    """Lacks a metric for documents with the right choice 3."""
    if results[0] == "never":
        raise ValueError
    return {"length": len(results[0])} | ({} if doc["gold"] == 3 else {"some": 1.0})


def right_only(doc, results):
    return {"length": 1.0} | ({"some": 1.0} if results[0] == doc["answer"] else {})


def changing(doc, results):
    """Takes the document apart."""
    return {"right": float(doc.pop("answer") == results[0])}


def failing(doc, results):
    return {"right": 1 / (len(results[0]) - 2)}


def nothing(doc, results):
    return None


def shuffled(dataset):
    """As GPQA's documents: right answers have places that `random` draws."""
    import random

    places = random.sample(range(4), 4)
    return dataset.map(lambda doc, at: {"gold": places[at % 4]}, with_indices=True, load_from_cache_file=False)


def both(doc, results):
    (first, _), (second, _) = results
    return {"margin": first - second, "label": "text"}
'''


@pytest.fixture(scope="session", autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`datasets` writes Arrow files: not into the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


def _tokenizer(*, bos: bool = False, chat: bool = False) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate([*SPECIAL, STOP, "=", "?", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    if chat:
        fast.chat_template = (
            "{% for m in messages %}{{ m.role }} = {{ m.content }} . {% endfor %}"
            "{% if add_generation_prompt %}assistant = {% endif %}"
        )
    return fast


def _model(kind: str, seed: int = 0, **settings: Any) -> Any:
    """A random model with uneven logits (large initial weights), so that answers differ between items."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {"vocab_size": len(SPECIAL) + 3 + len(WORDS)}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    else:
        sizes |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1 if kind != "gpt_neox" else 2,
            "max_position_embeddings": 64,
        }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **sizes, **tokens, initializer_range=0.4, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return _tokenizer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return _model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return _tokenizer()


@pytest.fixture(scope="session")
def llama() -> Any:
    return _model("llama")


def _documents(seed: int, count: int) -> list[dict[str, Any]]:
    """Questions of uneven length with four choices, some of them of several words and sharing beginnings."""
    rng = random.Random(seed)
    docs = []
    for _ in range(count):
        question = " ".join(rng.choices(WORDS, k=rng.randint(2, 7))) + " ="
        single = rng.sample(WORDS, 4)
        several = [single[0], f"{single[0]} {single[1]}", " ".join(rng.sample(WORDS, 3)), single[2]]
        docs.append(
            {
                "question": question,
                "single": single,
                "several": several,
                "gold": rng.randrange(4),
                "answer": rng.choice(WORDS),
            }
        )
    return docs


_SEEDS = {"train": 1, "validation": 2, "test": 3}


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


KINDS: dict[str, dict[str, Any]] = {
    "mc": {
        "output_type": "multiple_choice",
        "doc_to_choice": "single",
        "doc_to_target": "{{gold}}",
        "metric_list": _metrics("acc", "acc_norm"),
    },
    "mc_several": {
        "output_type": "multiple_choice",
        "doc_to_choice": "several",
        "doc_to_target": "gold",
        "metric_list": _metrics("acc_norm", "acc"),
    },
    "mc_information": {
        "output_type": "multiple_choice",
        "doc_to_choice": "several",
        "doc_to_target": "gold",
        "metric_list": _metrics("acc_mutual_info", "acc"),
    },
    "ll": {"output_type": "loglikelihood", "doc_to_target": " {{answer}}"},
    "gen": {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [STOP], "max_gen_toks": 6, "do_sample": False},
        "metric_list": _metrics("exact_match"),
        "filter_list": [
            {
                "name": "first",
                "filter": [
                    {"function": "regex", "regex_pattern": "(w[0-9]+)"},
                    {"function": "take_first"},
                ],
            },
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    },
    "gen_length": {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [STOP, "w3 w"], "max_gen_toks": 12},
        "process_results": "toy_metrics.doc_length",
        "metric_list": _metrics("length", "exact_match"),
    },
}


class Toys:
    """Tasks in a folder, suites over them, and a model to ask."""

    def __init__(self, folder: Path, llama: Any) -> None:
        self.folder = folder
        self.llama = llama
        (folder / "toy_metrics.py").write_text(METRICS)

    def write(self, name: str, kind: str, *, docs: dict[str, list[dict[str, Any]]] | None = None, **keys: Any) -> None:
        """One task: `write("toy", "mc", validation=40, test=30, yaml_key=...)`."""
        counts = {split: keys.pop(split) for split in _SEEDS if split in keys}
        splits = docs or {split: _documents(_SEEDS[split], n) for split, n in counts.items()}
        files = {}
        for split, rows in splits.items():
            path = self.folder / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "doc_to_text": "{{question}}",
            **{"training_split" if split == "train" else f"{split}_split": split for split in splits},
            **KINDS[kind],
            **keys,
        }
        functions = {key: config.pop(key) for key in ("process_results", "process_docs") if key in config}
        text = yaml.safe_dump(config)
        for key, function in functions.items():
            text += f"{key}: !function {function}\n"
        (self.folder / f"{name}.yaml").write_text(text)

    def config(self, *entries: str | dict[str, Any], **keys: Any) -> FitnessConfig:
        """`config("a", {"task": "b", "weight": 2}, held_out="test")`."""
        listed = tuple({"task": entry} if isinstance(entry, str) else entry for entry in entries)
        return FitnessConfig.model_validate(
            {"tasks": listed, "include_path": (str(self.folder),), "held_out": "test", **keys}
        )

    def suite(self, *entries: str | dict[str, Any], seed: int = 0, **keys: Any) -> Any:
        from fitness.tasks.suite import TaskSuite

        return TaskSuite.load(self.config(*entries, **keys), seed)


@pytest.fixture(scope="session")
def shared_toys(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Toys:
    """One task of each kind, of that name; do not write others."""
    toys = Toys(tmp_path_factory.mktemp("toys"), llama)
    for kind in KINDS:
        toys.write(kind, kind, validation=5, test=30)
    return toys


@pytest.fixture
def toys(tmp_path: Path, llama: Any) -> Toys:
    return Toys(tmp_path, llama)
