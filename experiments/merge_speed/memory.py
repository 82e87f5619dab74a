"""Peak memory of a merge, measured in a separate process, beside the bound that `evomerge plan` prints.

python -m experiments.merge_speed.memory WARM-UP.yaml RECIPE.yaml THREADS
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.merging.engine.engine import MergeEngine

METHODS = ("task_arithmetic", "dare_ties")
"""Without prepared state, and with."""
STATUS = Path("/proc/self/status")
CANDIDATES = 3


def peak(warm_up: dict[str, Any], data: dict[str, Any], folder: Path, threads: int) -> tuple[int, int] | None:
    """Return the peak bytes that merging a recipe takes, and the bound; None on systems other than Linux.

    Parameters
    ----------
    warm_up
        A recipe of the same method for tiny models, merged first, so that the memory of libraries and compiled
        kernels is not counted.
    data
        The recipe.
    folder
        For files.
    threads
        Of torch.
    """
    if not STATUS.exists():
        return None
    paths = []
    for name, contents in (("warm-up", warm_up), ("recipe", data)):
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(mergekit_yaml.dump(mergekit_yaml.build(contents)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.merge_speed.memory", *map(str, paths), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    if done.returncode:
        raise RuntimeError(f"the memory of {data['merge_method']} cannot be measured: {done.stderr[-500:]}")
    held, bound = json.loads(done.stdout)
    return held, bound


def _measured(warm_up: Path, recipe: Path, threads: int) -> tuple[int, int]:
    import torch

    torch.set_num_threads(threads)
    for large in (1, 1 << 62):  # with compiled kernels, and without
        _merge(mergekit_yaml.read(warm_up), large=large)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what the warm-up freed would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = _status("VmRSS")
    candidate = mergekit_yaml.read(recipe)
    engine = _merge(candidate)
    return _status("VmHWM") - before, engine.footprint(candidate).peak_bytes


def _merge(recipe: Recipe, **options: int) -> MergeEngine:
    from evomerge.merging.engine.engine import MergeEngine
    from evomerge.merging.sources.checkpoints import Checkpoint

    checkpoints = {path: Checkpoint.open(path) for path in recipe.models}
    engine = MergeEngine(checkpoints, base=recipe.donor, **options)  # type: ignore[arg-type]
    engine.prepare(recipe)
    for _ in range(CANDIDATES):
        engine.apply(recipe)
    return engine


def _status(key: str) -> int:
    """Return one of the kernel's numbers about this process, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
