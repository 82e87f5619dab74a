"""Merge methods: one file per family, each method registered by one decorator.

To add a method: describe it in `search_spaces.recipes.methods`, write a function ``(block, *, parameters) -> None``
that fills ``block.out``, and decorate it with `merge_method`. Importing the family here makes it known;
`evomerge.testing.merge_methods` tests it.
"""

from evomerge.merging.methods import (
    cabs,
    drm,
    dropped,
    fisher,
    isotropic,
    linear,
    pcb,
    ram,
    sce,
    selective,
    slerp,
    spherical,
    star,
    strongest,
    tall,
    trimmed,
    tsv,
    widen,
    wudi,
)
from evomerge.merging.methods.registry import MergeMethod, implementation, merge_method

__all__ = [
    "MergeMethod",
    "cabs",
    "drm",
    "dropped",
    "fisher",
    "implementation",
    "isotropic",
    "linear",
    "merge_method",
    "pcb",
    "ram",
    "sce",
    "selective",
    "slerp",
    "spherical",
    "star",
    "strongest",
    "tall",
    "trimmed",
    "tsv",
    "widen",
    "wudi",
]
