"""Conformance suites, one for each kind of extension: subclass a suite, name your class in it, and run pytest.

Needs pytest and hypothesis. Nothing else in evomerge imports this package. A suite is imported when it is asked for,
because some of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.testing.evaluators import EvaluatorSuite
    from evomerge.testing.merge_methods import MergeMethodSuite
    from evomerge.testing.pools import PoolSuite
    from evomerge.testing.search_spaces import SearchSpaceSuite
    from evomerge.testing.strategies import StrategySuite
    from evomerge.testing.trackers import TrackerSuite

__all__ = ["EvaluatorSuite", "MergeMethodSuite", "PoolSuite", "SearchSpaceSuite", "StrategySuite", "TrackerSuite"]

_HOMES = {
    "EvaluatorSuite": "evomerge.testing.evaluators",
    "MergeMethodSuite": "evomerge.testing.merge_methods",
    "PoolSuite": "evomerge.testing.pools",
    "SearchSpaceSuite": "evomerge.testing.search_spaces",
    "StrategySuite": "evomerge.testing.strategies",
    "TrackerSuite": "evomerge.testing.trackers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge.testing' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
