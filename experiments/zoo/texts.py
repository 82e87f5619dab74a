"""Write training texts of the zoo's experts: ``python -m experiments.zoo.texts [--seed 0]``.

Each expert's own problems with their answers, drawn as for its training from operands that no task's items have. Of
the ``.jsonl`` files, a line is a document, as calibration texts are read; the ``.txt`` files hold the same lines as one
text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.zoo.language import Problem, draw_numbers
from experiments.zoo.train import STAGES, Stage

TEXTS = Path(__file__).parent / "texts"
LINES = 400


def problems(stage: Stage, count: int, seed: int) -> list[str]:
    """Return so many problems of a stage with their answers."""
    rng = np.random.default_rng(seed)
    weights = np.array([lesson.weight for lesson in stage.lessons])
    found = []
    for choice in rng.choice(len(weights), size=count, p=weights / weights.sum()):
        lesson = stage.lessons[choice]
        numbers = draw_numbers(rng, lesson.shortest, lesson.longest, "train")
        problem = Problem(lesson.operation, lesson.language, numbers)
        found.append(f"{problem.prompt} {problem.answer}")
    return found


def write_texts(folder: Path, seed: int, lines: int = LINES) -> dict[str, Path]:
    """Write both files of every model; return those of documents, by the model's name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for index, (name, stage) in enumerate(STAGES.items()):
        own = problems(stage, lines, seed * len(STAGES) + index)
        files[name] = folder / f"{name}.jsonl"
        documents = "".join(f"{json.dumps({'text': line}, ensure_ascii=False)}\n" for line in own)
        files[name].write_text(documents, encoding="utf-8")
        (folder / f"{name}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    return files


def main() -> None:
    """Read the command line and write the texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TEXTS, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_texts(options.out, options.seed)


if __name__ == "__main__":
    main()
