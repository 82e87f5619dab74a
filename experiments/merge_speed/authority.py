"""The same merges by mergekit 0.1.5, in memory."""

from __future__ import annotations

import time
from typing import Any


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
