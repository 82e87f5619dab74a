"""Spaces of whole layers: which layers a model has, and from which model, or merge of models, each one comes.

Importing the room imports every module in it, so that each space registers itself.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
