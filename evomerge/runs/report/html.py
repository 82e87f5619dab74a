"""The page of a report, and its figures as files.

A run directory may come from somebody else: names of models, tasks and items, texts, answers and reasons of failures
are data. The template escapes all of them, data for scripts is written so that it cannot end its element, and the
page's content policy allows no request, and no script but the two of this page, which it knows by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evomerge.files.atomic import atomic_file, write_text
from evomerge.files.messages import printable
from evomerge.runs.history import StageCost
from evomerge.runs.report import (
    coefficients,
    convergence,
    drawings,
    figures,
    final_table,
    items,
    lineage,
    population,
)
from evomerge.runs.report import front as fronts
from evomerge.runs.report.contents import LONGEST_TEXT, Contents, read
from evomerge.runs.report.figures import Figure
from search_spaces.spaces.space import SearchSpace

MOST_CANDIDATES = 20
MOST_FAILURES = 20


@dataclass(frozen=True)
class Section:
    """The computed contents of the sections that have figures; None where a run has none of it."""

    points: list[convergence.Point]
    gaps: list[final_table.Gap]
    drawn: coefficients.Drawn | None
    path: list[coefficients.Step]
    unchanged: str
    cells: list[coefficients.Cell]
    constants: list[tuple[str, float]]
    spreads: list[population.Spread]
    niches: list[population.Moment]
    grid: population.Grid | None
    front: fronts.Front | None
    lineage: list[lineage.Ancestor]
    costs: dict[str, StageCost]

    @classmethod
    def of(cls, contents: Contents) -> Section:
        """Compute them."""
        found, shown = fronts.front(contents), coefficients.drawn(contents)
        cells = [] if shown is None else coefficients.cells(contents, shown.recipe)
        return cls(
            convergence.points(contents),
            final_table.gaps(contents),
            shown,
            [] if shown is None else coefficients.path(contents, shown.recipe),
            coefficients.unchanged(contents),
            cells,
            [(name, low) for name, low, high in coefficients.ranges(cells) if name not in coefficients.varying(cells)],
            population.spreads(contents),
            population.niches(contents),
            population.grid(contents),
            found if found is not None and len(found.tasks) > 1 else None,
            lineage.lineage(contents),
            {stage: cost for stage, cost in contents.history.stages.items() if cost.requests},
        )


def drawn(contents: Contents, found: Section) -> dict[str, list[Figure]]:
    """Return the figures of each section, by its name."""
    tasks = [table.task for table in final_table.tables(contents)]
    rows = [row for row in contents.result.held_out if row.task in tasks] if contents.result else []
    by_task = [(task, [row for row in rows if row.task == task]) for task in tasks]
    return {
        "held-out": [drawings.held_out(by_task)] if by_task else [],
        "course": _present(
            drawings.convergence(found.points, convergence.spans(contents, found.points)), drawings.steps(found.points)
        ),
        "gap": [drawings.gap(found.gaps)] if found.gaps else [],
        "recipe": _recipe(found),
        "population": [
            *([drawings.niches(found.niches)] if found.niches else []),
            *([drawings.grid(found.grid)] if found.grid is not None and found.grid.moments else []),
            *([drawings.spread(found.spreads)] if len(found.spreads) > 1 else []),
        ],
        "front": [drawings.front(found.front)] if found.front is not None else [],
        "lineage": _present(drawings.lineage(found.lineage)) if len(found.lineage) > 1 else [],
        "costs": [drawings.costs(found.costs)] if found.costs else [],
    }


def _recipe(found: Section) -> list[Figure]:
    of = found.drawn.of if found.drawn is not None else ""
    return [*([drawings.path(found.path, of)] if found.path else []), *drawings.heat_maps(found.cells, of)]


def _present(*drawn: Figure | None) -> list[Figure]:
    return [figure for figure in drawn if figure is not None]


def render(path: Path, space: SearchSpace | None = None) -> str:
    """Return the report of the run directory `path` as one HTML page.

    Parameters
    ----------
    path
        The run directory.
    space
        The space that it searches; None: candidates are shown without their recipes.

    Raises
    ------
    RunError, LogError
        If it is not a run directory, or its log, result or environment is damaged.
    """
    contents = read(path, space)
    found = Section.of(contents)
    groups = drawn(contents, found)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            contents=contents,
            run=quote(str(path)),
            history=contents.history,
            result=contents.result,
            headline=final_table.headline(contents),
            alternative=final_table.best_alternative(contents),
            tables=final_table.tables(contents),
            ranking=convergence.ranking(contents, MOST_CANDIDATES),
            failures=convergence.failures(contents),
            most_failures=MOST_FAILURES,
            section=found,
            groups=groups,
            overhead=contents.history.seconds["overhead"],
            changes=items.changes(contents),
            commands=_commands(contents),
            data=_data(groups, found),
            style=Markup(_file("report.css")),
            scripts=[Markup(script) for script in _scripts()],
            policy="; ".join(_policy()),
        )
    )


def write_figures(path: Path, folder: Path, space: SearchSpace | None = None) -> list[Path]:
    """Write every figure of a run's report as NAME.svg and NAME.png into a folder, made if new; return the files.

    Raises
    ------
    RunError, LogError
        As `render` does.
    FileError
        If a file cannot be written.
    """
    contents = read(path, space)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for group in drawn(contents, Section.of(contents)).values():
        for figure in group:
            for name, spec in figure.specs():
                write_text(folder / f"{name}.svg", figures.svg(spec))
                with atomic_file(folder / f"{name}.png") as temporary:
                    temporary.write_bytes(figures.png(spec))
                written += [folder / f"{name}.svg", folder / f"{name}.png"]
    return written


def _commands(contents: Contents) -> tuple[str, ...]:
    run = quote(str(contents.path))
    return (
        f"evomerge search {quote(str(contents.path / 'config.yaml'))} --run again",
        f"evomerge report {run} --figures figures",
    )


def _data(groups: Mapping[str, Sequence[Figure]], found: Section) -> Markup:
    """Return what the page's script needs as JSON: specifications by figure, and recipes of the front by number."""
    specs = {figure.name: [view.spec for view in figure.views] for group in groups.values() for figure in group}
    members = found.front.members if found.front is not None else ()
    values = {"figures": specs, "recipes": {one.number: _shown(one.recipe) for one in members if one.recipe}}
    return Markup(script_json(values))


def script_json(values: Any) -> str:
    """Return values as JSON that can stand inside a script element: no character of it can end the element."""
    text = json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Return plain data with null in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evomerge.runs.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.finalize = _shown
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["duration"] = _duration
    return environment


def _shown(value: Any) -> Any:
    """Return a value for the page: texts without characters that hide or reorder others."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, LONGEST_TEXT, keep="\n\t")


def _duration(seconds: float) -> str:
    """Return seconds in a readable unit."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@cache
def _scripts() -> tuple[str, str]:
    """Return the library that draws, and the page's own script."""
    return figures.scripts().replace("</script", "<\\/script"), _file("report.js")


def _policy() -> Iterator[str]:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _scripts())
    yield "default-src 'none'"
    yield "script-src " + " ".join(f"'sha256-{digest}'" for digest in hashes)
    yield "style-src 'unsafe-inline'"
    yield "img-src data:"
    yield "base-uri 'none'"
    yield "form-action 'none'"


def _file(name: str) -> str:
    return files("evomerge.runs.report").joinpath(name).read_text(encoding="utf-8")
