"""The same merges by mergekit 0.1.5: its in-memory path, and ``mergekit-yaml`` as a user runs it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def in_memory(data: dict[str, Any], module: Any) -> float:
    """Return the CPU seconds of one candidate, taking the steps of its `InMemoryMergeEvaluator`.

    These are: plan, execute, copy into the model's parameters. 0.1.5 cannot run `plan_in_memory` (its `ReturnTensor`
    rejects the tasks that it is given), so the planned tasks are executed without that wrapper, which only rounds.
    """
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    config, options = MergeConfiguration.model_validate(data), MergeOptions(quiet=True)
    architecture = get_architecture_info(config, options)
    parameters = dict(module.named_parameters())
    start = time.process_time()
    planner = MergePlanner(config, architecture, options, module.config)
    planner._plan()
    names = {task: weight.name for weight, task in planner._tensors}
    for task, value in Executor(list(names), math_device="cpu", storage_device="cpu").run(quiet=True):
        if names[task] in parameters:
            parameters[names[task]].data.copy_(value)
    return time.process_time() - start


def command(data: dict[str, Any], folder: Path) -> float:
    """Return the CPU seconds of ``mergekit-yaml``, from its start to the files."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    program = str(Path(sys.prefix) / "bin" / "mergekit-yaml")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [program, str(path), str(folder / "merged"), "--no-write-model-card", "--no-copy-tokenizer"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"mergekit-yaml failed: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
