"""`evomerge report`: a run as one HTML page, and its figures as files."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.errors import ConfigError
from evomerge.files.atomic import PlaceError, write_text
from evomerge.files.messages import counted, say
from evomerge.runs.report.html import render, write_figures
from evomerge.search.warm_start import space_of
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.space import SearchSpace


def report(path: Path, out: Path | None, figures: Path | None = None) -> None:
    """Write the report beside the run's other files, or where `out` says, and its figures into a folder."""
    if figures is not None and figures.exists() and not figures.is_dir():
        raise PlaceError(f"--figures {figures}: a file of that name exists; name a folder")
    space, obstacle = _space(path)
    target = out or path / "report.html"
    write_text(target, render(path, space), elsewhere="name another file with -o")
    say(f"wrote {target}")
    if obstacle:
        say(f"warning: candidates are shown without their recipes: {obstacle}", stderr=True)
    if figures is not None:
        written = write_figures(path, figures, space)
        say(f"wrote {counted(len(written), 'file')} to {figures}")


def _space(path: Path) -> tuple[SearchSpace | None, str]:
    """Return the space of a run; None and a reason where its search file needs something that is not here."""
    try:
        return space_of(path), ""
    except (ConfigError, RecipeError, ValueError) as error:
        return None, str(error).partition("\n")[0]
