"""Merge methods: one file per family, each method registered by one decorator.

To add a method: describe it in `search_spaces.methods`, write a function ``(block, *, parameters) -> None``
that fills ``block.out``, and decorate it with `merge_method`. Importing the family here makes it known.
"""

from evomerge.merging.methods import linear, slerp, sparse
from evomerge.merging.methods.registry import MergeMethod, implementation, merge_method

__all__ = ["MergeMethod", "implementation", "linear", "merge_method", "slerp", "sparse"]
