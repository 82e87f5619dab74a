"""Conformance suites for plug-ins: a new one gets its property tests by naming itself.

Needs pytest. Nothing of evomerge imports this package. Each suite is imported when it is asked for, since that of
merge methods needs torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "MergeMethodSuite": "evomerge.testing.merge_methods",
    "PoolSuite": "evomerge.testing.pools",
    "StrategySuite": "evomerge.testing.strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge.testing' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
