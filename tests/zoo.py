"""The zoo, and its tasks with fewer items: many tests score models only to have scores."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

ZOO = Path(__file__).parents[1] / "experiments" / "zoo"


def few_items(folder: Path, tasks: Iterable[str], count: int) -> Path:
    """Write some of the zoo's tasks with the first `count` items of each split; return the folder, made if new."""
    folder.mkdir(exist_ok=True)
    for file in (ZOO / "tasks" / "documents.py", *(ZOO / "tasks").glob("*.template")):
        shutil.copy(file, folder)
    for task in tasks:
        shutil.copy(ZOO / "tasks" / f"{task}.yaml", folder)
        lines = (ZOO / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for split in ("validation", "test") for line in _of_split(lines, split)[:count]]
        (folder / f"{task}.jsonl").write_text("\n".join(kept), encoding="utf-8")
    return folder


def _of_split(lines: list[str], split: str) -> list[str]:
    return [line for line in lines if json.loads(line)["split"] == split]
