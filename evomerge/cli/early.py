"""Loading torch's library while Python is busy with other things: both take a tenth of a second and more."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = (("libtorch_global_deps.so", ctypes.RTLD_GLOBAL), ("libtorch_cpu.so", ctypes.RTLD_LOCAL))
"""In the order and in the modes in which importing torch loads them, which then finds them loaded."""


def load_torch_library() -> None:
    """Begin to load the library in a thread: the system's linker does not need Python's lock."""
    if sys.platform == "linux" and "torch" not in sys.modules:
        threading.Thread(target=_load, name="load torch").start()


def _load() -> None:
    spec = find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        with suppress(OSError):  # a build without such files; importing torch says what is wrong with others
            for name, mode in LIBRARIES:
                ctypes.CDLL(str(Path(folder) / "lib" / name), mode)
