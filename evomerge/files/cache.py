"""Where is kept what is computed once per machine: converted files, measured statistics. It may be deleted any time."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "EVOMERGE_CACHE"
"""Environment variable: the folder; ``$XDG_CACHE_HOME/evomerge`` or ``~/.cache/evomerge`` by default."""


def cache_folder(kind: str) -> Path:
    """Return the folder for what is kept of one kind; it need not exist."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).expanduser() / kind
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "evomerge" / kind
