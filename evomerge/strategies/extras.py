"""Packages that only some strategies need: imported when such a strategy is built."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

EXTRA = "strategies"


class MissingExtraError(ValueError):
    """A package is not installed; the message says how to get it."""


def require(package: str, place: str) -> ModuleType:
    """Import an optional package.

    Parameters
    ----------
    package
        Its name.
    place
        What in the search file asked for it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that packages of theirs are missing, which nothing here uses
            return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(
            f"{place} needs the package {package}; install it with `pip install evomerge[{EXTRA}]`"
        ) from None
