"""Loads the zoo's items for lm-eval from any working directory (``data_files`` would be relative to it)."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset


def load(file: str, **_: object) -> dict[str, Dataset]:
    """Return the splits of one JSONL file beside this module, each line's split in its field ``split``.

    lm-eval passes the task's ``dataset_kwargs`` and, beside them, its ``metadata``, which is not needed here.
    """
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    return {
        split: Dataset.from_list([document for document in documents if document["split"] == split])
        for split in ("validation", "test")
    }
