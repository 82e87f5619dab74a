"""Optional packages: imported where they are used; a missing one gives one line with the command to install it."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from evomerge.files.messages import reason


class MissingExtraError(ValueError):
    """An optional package is not installed; the message says how to install it."""


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of an extra; the quotes are for shells that read brackets."""
    return f"pip install 'evomerge[{extra}]'"


def require(package: str, extra: str, place: str) -> ModuleType:
    """Import an optional package.

    Parameters
    ----------
    package
        Name of the module, dots included.
    extra
        The extra of evomerge that installs it.
    place
        What needs it, such as a setting of the search file, for the message.

    Raises
    ------
    MissingExtraError
        If it is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing optional packages of theirs, which nothing here uses
            return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name
        why = "" if missing else f", which cannot be imported ({reason(error)})"
        raise MissingExtraError(f"{place} needs the package {name}{why}; {how_to_install(extra)}") from None
