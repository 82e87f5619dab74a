"""The search itself: from a search file to the final evaluation. The package is callable: `evomerge.search(config)`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.config.search_file import SearchConfig
    from evomerge.runs.result import Result
    from evomerge.search.api import Progress


class _CallableModule(ModuleType):
    # `evomerge.search` is the function that a user calls and the package that holds its parts. Python knows one object
    # of that name, and the import system sets it to this module; so the module itself can be called.
    def __call__(
        self,
        config: "SearchConfig | Mapping[str, Any] | str | Path",
        run: "str | Path | None" = None,
        progress: "Callable[[Progress], None] | None" = None,
        *,
        overrides: Sequence[str] = (),
        warm_start: "str | Path | None" = None,
        say: "Callable[[str], None] | None" = None,
        evaluate: "Callable[..., Any] | None" = None,
        items: Any = None,
    ) -> "Result":
        """Search for the best merge of some models; see `evomerge.search.api.run_search`."""
        from evomerge.search.api import run_search

        return run_search(
            config,
            run,
            progress,
            overrides=overrides,
            warm_start=warm_start,
            say=say,
            evaluate=evaluate,
            items=items,
        )


sys.modules[__name__].__class__ = _CallableModule
