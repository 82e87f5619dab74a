"""What measured numbers depend on: processor, threads and versions, for `results.json`."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path


def machine(threads: int, *packages: str) -> dict[str, str | int]:
    """Return the processor's model and cores, the threads used, and the versions of Python and of the packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(names),
        "threads": threads,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
