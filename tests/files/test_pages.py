"""Advice about memory: what is released is read again."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from evomerge.files.pages import advise

MAPS = Path("/proc/self/smaps")


def resident(file: Path) -> int:
    """Return the bytes of a mapped file that are in this process's memory."""
    lines, found, counts = MAPS.read_text().splitlines(), 0, False
    for line in lines:
        first = line.split()[0]
        if not first.endswith(":"):
            counts = line.endswith(str(file))
        elif counts and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux")
def test_a_released_tensor_takes_no_memory_and_is_read_again(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from evomerge.merging.sources.weight_files import WeightFiles

    values = torch.arange(1 << 18, dtype=torch.float32)
    save_file({"a": values, "b": -values}, tmp_path / "model.safetensors")
    files = WeightFiles.open("model", tmp_path)
    kept = files.tensor("b")
    assert torch.equal(files.tensor("a") + kept, torch.zeros_like(values))
    before = resident(tmp_path / "model.safetensors")
    files.release("a")
    assert before - resident(tmp_path / "model.safetensors") >= values.nbytes - 2 * mmap.PAGESIZE
    assert torch.equal(files.tensor("a"), values)
    assert torch.equal(kept, -values)


def test_advice_about_less_than_a_page_does_nothing() -> None:
    advise(mmap.PAGESIZE + 1, mmap.PAGESIZE, "MADV_DONTNEED")
    advise(0, 0, "NO_SUCH_ADVICE")
