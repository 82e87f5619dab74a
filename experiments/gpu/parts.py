"""Each part in a process of its own, with a limit of time: one that fails, hangs or breaks the GPU stops no other."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.gpu import merging, scoring, searching
from experiments.gpu.setting import DRY, FULL, SMALL, Device, Setting, make_models

IN_ALL = 470.0
"""Seconds for all parts together."""


def models(setting: Setting) -> dict[str, Any]:
    """Write the models that the other parts read."""
    for size, paths in ((setting.sizes.model, setting.models), (SMALL, setting.small)):
        make_models(size, paths, setting.device.name)
    return {"model": setting.sizes.model.name}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "models": models,
    "apply": merging.apply,
    "search": searching.search,
    "not_finite": searching.not_finite,
    "out_of_memory": searching.out_of_memory,
    "resume": searching.resume,
    "placements": merging.placements,
    "gradient_step": scoring.gradient_step,
    "generation": scoring.generation,
}
"""In the order in which they run; the first is needed by all others."""


def run(names: Iterable[str], folder: Path, *, dry: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the results of each part: its figures or an ``error``, and its ``wall`` seconds.

    Processes start from one that has imported everything and has not touched the GPU.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for a GPU must not start CUDA before a fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ends = time.monotonic() + IN_ALL
    for name in names:
        started = time.monotonic()
        process = context.Process(target=_write, args=(name, str(folder), dry), name=name)
        process.start()
        process.join(max(0.0, ends - time.monotonic()))
        found: dict[str, Any] = {"error": f"it ended with exit code {process.exitcode}"}
        if process.is_alive():
            process.kill()
            process.join()
            found = {"error": "it was stopped: the time of all parts together is over"}
        elif _file(folder, name).exists():
            found = json.loads(_file(folder, name).read_text(encoding="utf-8"))
        yield name, {**found, "wall": round(time.monotonic() - started, 1)}


def _write(name: str, folder: str, dry: bool) -> None:
    """Run a part in this process, and write what it found."""
    setting = Setting(Device("cpu" if dry else "cuda"), DRY if dry else FULL, Path(folder))
    try:
        found = PARTS[name](setting)
        found["device"] = setting.device.describe()
    except Exception as error:  # whatever it is, the other parts still run
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        found = {"error": f"{type(error).__name__}: {error} ({where})"[:500]}
        traceback.print_exc()
    _file(Path(folder), name).write_text(json.dumps(found), encoding="utf-8")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
