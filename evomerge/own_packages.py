"""Whether the packages `fitness` and `search_spaces` that Python finds are evomerge's own.

Their names are so plain that a folder or another distribution may have them, too, and the one that comes first on the
path is imported. Then modules of ours are missing; this says why before that happens.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

NAMES = ("fitness", "search_spaces")
HOME = Path(__file__).parent.parent
"""Where all three packages are, side by side."""


class HiddenPackageError(ImportError):
    """Another package hides one of evomerge's own; the message names both places."""


def check_own_packages() -> None:
    """Refuse to continue if another package of such a name comes first on the path.

    Raises
    ------
    HiddenPackageError
        If so. Uncaught, it is printed as one line: the traceback of an import tells a user nothing.
    """
    for name in NAMES:
        places = _places(name)
        if HOME / name not in places:
            sys.excepthook = _one_line
            other = f"{places[0]} hides" if places else "Python does not find"
            raise HiddenPackageError(
                f"{other} evomerge's own package {HOME / name}; rename the other one, or keep its folder off Python's "
                "path (the current folder, PYTHONPATH, site-packages)",
                name=name,
            )


def _places(name: str) -> list[Path]:
    """Return the folders of a package, or the file of a module, as Python finds them now; nothing is imported."""
    try:
        spec: ModuleSpec | None = sys.modules[name].__spec__ if name in sys.modules else find_spec(name)
    except (ValueError, AttributeError):
        return []
    if spec is None:
        return []
    folders = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return [Path(folder) for folder in folders]


def _one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, HiddenPackageError):
        print(f"evomerge: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
