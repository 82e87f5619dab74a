"""What is measured: made-up questions for a random Llama, two tasks of the zoo, and sums that SmolLM2 explains."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

ZOO = Path(__file__).parent.parent / "zoo"
VOCABULARY = 16_384  # small for a language model: of the time per token, the output projection takes little
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
CONTEXT = (100, 140)  # words before the answer; a question with a paragraph
CHOICE = (4, 8)  # words of an answer
EXAMPLE = (30, 40)  # words of the context of a few-shot example
NEW_TOKENS = 64
END = "<|im_end|>"  # of a turn in SmolLM2's chat format
NAMES = ("Ann", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Hugo")
ASKED = ("Answer with the number only.", "Explain all of your steps.", "Answer in one short sentence.")
THINGS = ("apples", "books", "coins", "eggs", "letters", "pens", "shells", "stamps")


@dataclass(frozen=True)
class Case:
    """One task and one model.

    Attributes
    ----------
    name
        What the table calls it.
    task
        Name of the task's YAML.
    items
        Number of items scored; in the zoo's tasks, the first of 600.
    repetitions
        Measurements of each way; the results are their medians.
    batch_size
        Rows per forward pass, for all ways.
    zoo
        Model of the zoo; None: a made-up task, and the random Llama or SmolLM2.
    shots
        Examples before each question of the made-up task.
    drawn
        Whether each item has its own examples (lm-eval's default) instead of the same for all.
    smollm2
        Whether SmolLM2-135M-Instruct answers, in up to `NEW_TOKENS` tokens, instead of the random Llama.
    until
        Where SmolLM2's answers stop.
    """

    name: str
    task: str
    items: int
    repetitions: int
    batch_size: int
    zoo: str | None = None
    shots: int = 0
    drawn: bool = False
    smollm2: bool = False
    until: tuple[str, ...] = (END,)


CASES = (
    Case("4 choices, zero-shot", "reading", 12, 5, 8),
    Case("4 choices, 5 shots, the same for all", "reading_same", 12, 5, 8, shots=5),
    Case("4 choices, 5 shots, drawn per item", "reading_drawn", 12, 5, 8, shots=5, drawn=True),
    Case("`zoo_target_mc`", "zoo_target_mc", 600, 5, 64, zoo="ja"),
    Case("`zoo_target_gen`", "zoo_target_gen", 600, 5, 64, zoo="ja"),
    Case("SmolLM2, up to 64 new tokens", "smol_gen", 48, 5, 16, smollm2=True),
    Case("SmolLM2, one line of up to 64 new tokens", "smol_line_gen", 48, 5, 16, smollm2=True, until=(END, "\n")),
)


def quick(case: Case) -> Case:
    """Return the case with a few items and one repetition, for a test."""
    return replace(case, items=min(case.items, 4 if case.zoo is None else 24), repetitions=1)


def model_and_tokenizer(case: Case, seed: int, smollm2: Path, *, small: bool) -> tuple[Any, Any]:
    """Return a model in float32 and its tokenizer; `small`: a tiny stand-in for a model that is not of the zoo.

    `smollm2` is SmolLM2's folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if case.zoo is not None or (case.smollm2 and not small):
        folder = smollm2 if case.zoo is None else ZOO / "models" / case.zoo
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32 if small else 512,
        intermediate_size=64 if small else 1408,
        num_hidden_layers=2 if small else 8,
        num_attention_heads=4 if small else 8,
        num_key_value_heads=2 if small else 4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval(), _tokenizer()


def _tokenizer() -> Any:
    """Return a tokenizer with one token per word, so that the lengths below are lengths in tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{n}" for n in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def task_folder(case: Case, folder: Path, seed: int) -> Path:
    """Return the folder with the task's YAML: the zoo's, or `folder`, in which the task is written."""
    if case.zoo is not None:
        return ZOO / "tasks"
    rng = random.Random(seed)
    made = _sums(rng, case, folder) if case.smollm2 else _reading(rng, case, folder)
    config = {"task": case.task, "dataset_path": "json", "test_split": "test", "doc_to_text": "{{prompt}}"} | made
    (folder / f"{case.task}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def _sums(rng: random.Random, case: Case, folder: Path) -> dict[str, Any]:
    """Write questions in SmolLM2's chat format, and return what their task's YAML says.

    They ask for answers of unequal lengths, of which the last number counts.
    """
    documents = []
    for _ in range(case.items):
        kept, given, found = (rng.randint(11, 60) for _ in range(3))
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        question = f"{name} has {kept + given} {things}, gives away {given} and finds {found} more."
        question += f" How many are there now? {rng.choice(ASKED)}"
        prompt = f"<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n"
        documents.append({"prompt": prompt, "answer": str(kept + found)})
    last = {"function": "regex", "regex_pattern": "(-?[0-9]+)", "group_select": -1}
    return {
        "dataset_kwargs": {"data_files": {"test": _written(folder / "test.jsonl", documents)}},
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": list(case.until), "max_gen_toks": NEW_TOKENS, "do_sample": False},
        "filter_list": [{"name": "last_number", "filter": [last, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _reading(rng: random.Random, case: Case, folder: Path) -> dict[str, Any]:
    """Write reading questions, and return what their task's YAML says."""
    files = {
        split: _written(folder / f"{split}.jsonl", _documents(rng, count, context))
        for split, count, context in (("test", case.items, CONTEXT), ("train", 20, EXAMPLE))
    }
    return {
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "num_fewshot": case.shots,
        "fewshot_config": {"sampler": "default" if case.drawn else "first_n"},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _written(file: Path, documents: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return str(file)


def _documents(rng: random.Random, count: int, context: tuple[int, int]) -> list[dict[str, Any]]:
    def words(size: tuple[int, int]) -> str:
        return " ".join(f"w{rng.randrange(VOCABULARY - len(SPECIAL))}" for _ in range(rng.randint(*size)))

    return [
        {"prompt": words(context), "choices": [words(CHOICE) for _ in range(4)], "label": rng.randrange(4)}
        for _ in range(count)
    ]
