"""Write the items of the zoo's tasks: ``python -m experiments.zoo.items [--seed 0]``.

The search (``validation``) and the final measurement (``test``) have separate lists, see
`experiments.zoo.language.split_of`; training uses neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from experiments.zoo.language import Problem, Split, draw_numbers

TASKS = Path(__file__).parent / "tasks"
SPLITS: dict[str, Split] = {"validation": "search", "test": "held_out"}
"""lm-eval's name of a split -> ours."""


@dataclass(frozen=True)
class Task:
    """Which problems make up one task."""

    operations: tuple[str, ...]
    languages: tuple[str, ...]
    shortest: int = 4
    longest: int = 6
    items: int = 600
    """Per split, spread evenly over operations and languages."""
    choices: bool = False
    """Whether every item comes with four answers to choose from."""


TARGET = ("sort", "reverse", "rotate", "max", "count")
TASK_ITEMS: dict[str, Task] = {
    "zoo_target_gen": Task(TARGET, ("ja", "eo")),
    "zoo_target_mc": Task(TARGET, ("ja", "eo"), choices=True),
    "zoo_target_ja": Task(TARGET, ("ja",)),
    "zoo_target_eo": Task(TARGET, ("eo",)),
    "zoo_ops_en": Task(TARGET, ("en",)),
    "zoo_read_ja": Task(("copy", "last"), ("ja",), items=400),
    "zoo_read_eo": Task(("copy", "last"), ("eo",), items=400),
    "zoo_short_en": Task(TARGET, ("en",), shortest=2, longest=3, items=400),
}


def distractors(problem: Problem, rng: np.random.Generator) -> list[str]:
    """Draw three wrong answers of the right length: slips of a solver, and operations mixed up.

    A list answer gets other orders of the same numbers (two neighbours swapped, the list as it was given,
    reversed, or shuffled); a single number gets other members of the list, and a count other counts.
    """
    right = [int(number) for number in problem.answer.split()]
    if problem.operation == "count":
        pool = [[number] for number in range(len(problem.numbers))]
    elif len(right) == 1:
        pool = [[number] for number in problem.numbers]
    else:
        given = list(problem.numbers)
        pool = [given, given[::-1], right[::-1]]
        for first in range(len(right) - 1):
            slip = right.copy()
            slip[first], slip[first + 1] = slip[first + 1], slip[first]
            pool.append(slip)
    texts = sorted({" ".join(map(str, answer)) for answer in pool} - {problem.answer})
    return [str(text) for text in rng.choice(texts, size=3, replace=False)]


def documents(task: Task, seed: int) -> Iterator[dict[str, object]]:
    """Yield the task's items; operations and languages alternate, so any first n items are balanced."""
    for stream, (name, split) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([seed, stream])
        kinds = list(product(task.operations, task.languages))
        seen: set[Problem] = set()
        while len(seen) < task.items:
            operation, language = kinds[len(seen) % len(kinds)]
            problem = Problem(operation, language, draw_numbers(rng, task.shortest, task.longest, split))
            if problem in seen:
                continue
            document: dict[str, object] = {
                "id": f"{name}-{len(seen):04d}",
                "split": name,
                "operation": operation,
                "language": language,
                "numbers": list(problem.numbers),
                "prompt": problem.prompt,
                "answer": problem.answer,
            }
            if task.choices:
                choices = [problem.answer, *distractors(problem, rng)]
                order = rng.permutation(4)
                document["choices"] = [choices[index] for index in order]
                document["label"] = int(np.flatnonzero(order == 0)[0])
            seen.add(problem)
            yield document


def write_items(folder: Path, seed: int) -> None:
    """Write ``<task>.jsonl`` for every task."""
    for index, (name, task) in enumerate(TASK_ITEMS.items()):
        lines = [json.dumps(document, ensure_ascii=False) for document in documents(task, seed + 1000 * index)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and write the items."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TASKS, help="folder for the JSONL files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_items(options.out, options.seed)


if __name__ == "__main__":
    main()
