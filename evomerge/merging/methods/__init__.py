"""The arithmetic of merge methods: one file per family, each method declared by one decorator.

To add a method, write a file here (or in a package of your own) with a function decorated by `merge_method`: it fills
``block.out``, and its signature declares the method's parameters. Then run ``python -m evomerge.merging.methods``,
which writes the table that recipes read, and name the method in a subclass of
`evomerge.testing.MergeMethodSuite`, which tests it.
"""

from importlib import import_module
from pkgutil import iter_modules

from search_spaces.registry import registering

with registering("evomerge"):  # even where another package's import is the first to need them
    for _module in iter_modules(__path__):
        if not _module.name.startswith("_"):
            import_module(f"{__name__}.{_module.name}")

from evomerge.merging.methods.parameters import Flag, MethodError, OptionalPerModel, PerModel, Real
from evomerge.merging.methods.registry import MergeMethod, implementation, merge_method

__all__ = [
    "Flag",
    "MergeMethod",
    "MethodError",
    "OptionalPerModel",
    "PerModel",
    "Real",
    "implementation",
    "merge_method",
]
