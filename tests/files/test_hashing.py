"""Hashes of files."""

import hashlib
from pathlib import Path

from evomerge.files.hashing import CHUNK, SAMPLES, sha256, sha256_of_samples


def test_the_whole_file_counts(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_samples_cover_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def sampled(at: int | None) -> str:
        with path.open("wb") as file:
            file.truncate(3 * SAMPLES * CHUNK)  # a hole: no space on the disk
            if at is not None:
                file.seek(at)
                file.write(b"x")
        return sha256_of_samples(path)

    same = sampled(None)
    assert sampled(0) != same
    assert sampled(3 * SAMPLES * CHUNK - 1) != same
    assert sampled(2 * CHUNK) == same  # between two samples


def test_samples_of_a_small_file(tmp_path: Path) -> None:
    for content in (b"", b"abc"):
        (tmp_path / "file").write_bytes(content)
        assert sha256_of_samples(tmp_path / "file") == hashlib.sha256(content * SAMPLES).hexdigest()
