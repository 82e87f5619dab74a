"""evomerge: evolutionary search for language-model merge recipes."""

from typing import TYPE_CHECKING, Any

from evomerge.own_packages import check_own_packages
from evomerge.version import VERSION as __version__

if TYPE_CHECKING:
    from evomerge.search.api import resume_search as resume
    from evomerge.search.api import run_search as search

check_own_packages()

__all__ = ["__version__", "resume", "search"]


def __getattr__(name: str) -> Any:
    """Import what a search needs only when somebody searches; `import evomerge` stays light."""
    if name == "search":  # the package of this name is callable
        from importlib import import_module

        return import_module("evomerge.search")
    if name == "resume":
        from evomerge.search.api import resume_search

        return resume_search
    raise AttributeError(f"module 'evomerge' has no attribute '{name}'")
