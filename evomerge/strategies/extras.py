"""Optional packages of strategies, imported when such a strategy is built."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

EXTRA = "strategies"


class MissingExtraError(ValueError):
    """An optional package is not installed; the message says how to install it."""


def require(package: str, place: str) -> ModuleType:
    """Import an optional package.

    Parameters
    ----------
    package
        Name of the package.
    place
        The setting in the search file that needs it, for the message.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing optional packages of theirs, which nothing here uses
            return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(
            f"{place} needs the package {package}; install it with `pip install evomerge[{EXTRA}]`"
        ) from None
