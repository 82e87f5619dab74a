"""The zoo, and its tasks with fewer items: many tests score models only to have scores."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
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


@cache
def short_tasks() -> Path:
    """Return a folder with some of the tasks, 200 items per split, which lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="evomerge-tasks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return few_items(folder, ("zoo_target_ja", "zoo_target_gen", "zoo_target_mc", "zoo_short_en"), 200)


def _of_split(lines: list[str], split: str) -> list[str]:
    return [line for line in lines if json.loads(line)["split"] == split]
