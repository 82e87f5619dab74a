"""Trackers, which follow a search for the user: a table, TensorBoard, Weights & Biases, MLflow.

A tracker is one file `*_tracker.py`; importing this package imports them all, so that a new one is registered without
an edit elsewhere. None of them imports its package before a search begins.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if _module.name.endswith("_tracker"):
        import_module(f"{__name__}.{_module.name}")
