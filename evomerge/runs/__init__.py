"""The run directory: event log, history, result, HTML report, and trackers that follow a run.

A tracker is one file `*_tracker.py`; importing this package imports them all, so that a new one is registered without
an edit elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if _module.name.endswith("_tracker"):
        import_module(f"{__name__}.{_module.name}")
