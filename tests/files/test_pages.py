"""Advice about memory: what is released is read again, and what is written past the cache is there."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from evomerge.files import pages
from evomerge.files.pages import advise, write_uncached

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


@pytest.mark.parametrize("system", ["this", "refuses the flag", "has no such call", "writes a part"])
def test_bytes_are_written_at_their_places(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.pwrite

    def call(descriptor: int, buffers: list[memoryview], place: int, flags: int) -> int:
        if system == "refuses the flag":
            raise OSError(95, "not supported")
        return plain(descriptor, buffers[0][:2], place)

    monkeypatch.setattr(pages, "PIECE", 8)
    if system == "has no such call":
        monkeypatch.delattr(os, "pwritev")
    elif system != "this":
        monkeypatch.setattr(os, "pwritev", call)
    data = bytes(range(1, 22))
    with (tmp_path / "file").open("wb") as file:
        file.write(b"header")
        write_uncached(file, memoryview(data), 30)
        write_uncached(file, memoryview(data), 6)
    assert (tmp_path / "file").read_bytes() == b"header" + data + bytes(3) + data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_reported() -> None:
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        write_uncached(file, memoryview(b"x"), 0)
