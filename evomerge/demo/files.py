"""The files of `evomerge demo`: the zoo's models, its tasks, and the quickstart's search file.

They are in the repository once, under `experiments/`; a wheel has them here, under `data/` (`pyproject.toml`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from evomerge.files.atomic import atomic_folder, write_text

SEARCH_FILE = "search.yaml"
_PACKAGED = Path(__file__).parent / "data"
_CHECKOUT = Path(__file__).parents[2] / "experiments"


class DemoError(ValueError):
    """A folder cannot be used for the demo; the message says what to type instead."""


def write_files(folder: Path) -> None:
    """Copy the models, the tasks and the search file to a folder; what an earlier demo left there stays as it is.

    Raises
    ------
    DemoError
        If the folder holds something else.
    FileError
        If the disk refuses.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "models" / "base").is_dir():
        raise DemoError(f"{folder}: the folder is not empty and has no demo; name a new one: evomerge demo FOLDER")
    source = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    for name in ("models", "tasks"):
        if not (folder / name).exists():
            with atomic_folder(folder / name) as temporary:
                without = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source / "zoo" / name, temporary, dirs_exist_ok=True, ignore=without)
    if not (folder / SEARCH_FILE).exists():
        text = (source / "quickstart" / SEARCH_FILE).read_text(encoding="utf-8")
        write_text(folder / SEARCH_FILE, text.replace("../zoo/", ""))
