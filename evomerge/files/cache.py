"""The machine-wide cache: converted files and calibration statistics. Safe to delete."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "EVOMERGE_CACHE"
"""Environment variable that names the folder; by default ``$XDG_CACHE_HOME/evomerge`` or ``~/.cache/evomerge``."""
ELSEWHERE = f"set {CACHE} to a folder on another disk"
"""What a user does when the cache cannot be written, as the end of a message."""


def cache_folder(kind: str) -> Path:
    """Return the folder for cached files of one kind; it need not exist."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).expanduser() / kind
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "evomerge" / kind
