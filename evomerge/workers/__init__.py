"""Where candidates are scored: in this process, or by Ray actors.

A worker kind is one file `*config.py` with its settings, which start its pool; importing this package imports them all,
so that a new one is registered without an edit elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if _module.name.endswith("config"):
        import_module(f"{__name__}.{_module.name}")
