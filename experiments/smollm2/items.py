"""Made-up items of two kinds, and their lm-eval tasks.

*Sums* are one-step word problems, scored as a choice of four numbers; *dates* are dates to be rewritten, scored as
text. No item is in two splits: a sum is identified by its numbers and operation, a date by its day.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

SPLITS = ("train", "validation", "test")

PEOPLE = ("Ann", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "eggs", "letters", "shells", "stamps", "tickets")
STORIES = {
    "+": (
        "{who} has {a} {what} and gets {b} more. How many {what} now?",
        "{who} finds {a} {what} today and {b} tomorrow. How many {what} together?",
    ),
    "-": (
        "{who} has {a} {what} and loses {b}. How many {what} are left?",
        "{who} buys {a} {what} and gives away {b}. How many {what} remain?",
    ),
}


@dataclass(frozen=True)
class Item:
    """One question; `choices` is empty where the answer is generated."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Items of each split."""

    train: int
    validation: int
    test: int


def make_sums(sizes: Sizes, seed: int) -> dict[str, list[Item]]:
    """Return sums by split; both numbers have two digits, results are not negative."""
    rng = np.random.default_rng([seed, 1])
    keys = [(op, a, b) for op in STORIES for a in range(10, 100) for b in range(10, 100) if op == "+" or a >= b]
    order = rng.permutation(len(keys))[: sum(vars(sizes).values())]
    return _split([_sum(*keys[index], rng) for index in order], sizes)


def _sum(op: str, a: int, b: int, rng: np.random.Generator) -> Item:
    story = rng.choice(STORIES[op]).format(who=rng.choice(PEOPLE), what=rng.choice(THINGS), a=a, b=b)
    result = a + b if op == "+" else a - b
    # Near misses: one off, ten off, and the other operation.
    misses = {result - 1, result + 1, result - 10, result + 10, abs(a - b) if op == "+" else a + b} - {result}
    wrong = rng.permutation(sorted(number for number in misses if number >= 0))[:3]
    choices = rng.permutation([result, *wrong])
    return Item(f"{story}\nAnswer:", str(result), tuple(str(number) for number in choices))


def make_dates(sizes: Sizes, seed: int) -> dict[str, list[Item]]:
    """Return dates by split: ``March 7, 2014`` becomes ``07.03.14``."""
    rng = np.random.default_rng([seed, 2])
    first = datetime.date(1970, 1, 1).toordinal()
    days = first + rng.permutation(60 * 365)[: sum(vars(sizes).values())]
    return _split([_date(datetime.date.fromordinal(int(day))) for day in days], sizes)


def _date(day: datetime.date) -> Item:
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    words = f"{months[day.month - 1]} {day.day}, {day.year}"
    return Item(f"Date: {words}\nShort:", f"{day.day:02}.{day.month:02}.{day.year % 100:02}")


def _split(items: list[Item], sizes: Sizes) -> dict[str, list[Item]]:
    ends = np.cumsum([sizes.train, sizes.validation, sizes.test])
    return {name: items[end - getattr(sizes, name) : end] for name, end in zip(SPLITS, ends, strict=True)}


_LOADER = '''"""Loads the items beside this module for lm-eval."""

import json
from pathlib import Path

from datasets import Dataset


def load(file, **_):
    """Return the splits of one JSONL file, each line's split in its field `split`."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    splits = ("validation", "test")
    return {split: Dataset.from_list([d for d in documents if d["split"] == split]) for split in splits}
'''


def write_tasks(folder: Path, sums: dict[str, list[Item]], dates: dict[str, list[Item]]) -> None:
    """Write the tasks ``smol_sums`` and ``smol_dates`` with their validation and test items into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "documents.py").write_text(_LOADER, encoding="utf-8")
    _write_items(folder / "smol_sums.jsonl", sums)
    _write_items(folder / "smol_dates.jsonl", dates)
    chosen = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    _write_task(folder, "smol_sums", "acc", chosen)
    first_word = [{"function": "regex", "regex_pattern": r"^\s*(\S*)"}, {"function": "take_first"}]
    written = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10, "do_sample": False},
        "filter_list": [{"name": "first-word", "filter": first_word}],
    }
    _write_task(folder, "smol_dates", "exact_match", written)


def _write_items(file: Path, items: dict[str, list[Item]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for split in ("validation", "test"):
            for item in items[split]:
                label = item.choices.index(item.answer) if item.choices else None
                document = {"prompt": item.prompt, "answer": item.answer, "choices": item.choices, "label": label}
                lines.write(json.dumps(document | {"split": split}) + "\n")


def _write_task(folder: Path, name: str, metric: str, kind: dict) -> None:
    task = {
        "task": name,
        "dataset_kwargs": {"file": f"{name}.jsonl"},
        "validation_split": "validation",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(task | kind, sort_keys=False)
    # A tag that only lm-eval's loader knows.
    (folder / f"{name}.yaml").write_text(f"custom_dataset: !function documents.load\n{text}", encoding="utf-8")
