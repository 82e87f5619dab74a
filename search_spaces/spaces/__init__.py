"""Sets of points: genes, and each search space beside its config.

Importing the room imports every module in it, so that each space registers itself (see ``registry``).
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
