"""The HTML report of a run: read-only, self-contained, and everything in it escaped.

A run directory may come from somebody else: names of models, tasks and items, and reasons of failures, are data. The
template escapes all of them, and the page's content policy forbids scripts and requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evomerge.files.messages import printable
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Asked, Run
from fitness.estimation.intervals import p_text
from fitness.results import Evaluation

WIDTH, HEIGHT = 640, 220  # of the curve, in pixels
MAX_CANDIDATES = 20
MAX_FAILURES = 20
MAX_POINTS = 2000
MAX_TEXT = 200_000  # characters quoted from a file


@dataclass(frozen=True)
class Curve:
    """The best search score so far against item evaluations, as points of an SVG polyline."""

    points: str
    items: int
    low: float
    high: float


@dataclass(frozen=True)
class CandidateRow:
    """One line of the table of the best candidates; `items`: how many it was asked."""

    rank: int
    candidate: int
    generation: int
    score: float
    standard_error: float
    items: int
    recipe: str


def render(path: Path) -> str:
    """Return the report of the run directory `path` as HTML.

    Raises
    ------
    RunError, LogError
        If it is not a run directory, or its log is damaged.
    """
    with Run.read(path) as run:
        history = RunHistory(run.events())
        packages = run.environment().packages
    result_file = path / "result.json"
    result = Result.read(result_file) if result_file.is_file() else None
    environment = Environment(
        loader=PackageLoader("evomerge.runs.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.finalize = _shown
    environment.filters["p_text"] = p_text
    return environment.get_template("report.html.j2").render(
        name=path.resolve().name,
        history=history,
        result=result,
        curve=_curve(history),
        width=WIDTH,
        height=HEIGHT,
        candidates=_candidates(history),
        failures=_failures(history),
        config=_quoted(path / "config.yaml"),
        recipe=_quoted(path / "best.yaml"),
        packages=packages,
    )


def _curve(history: RunHistory) -> Curve | None:
    asked, best, steps = 0, float("-inf"), []
    for told in history.told.values():
        if not told.cached:
            asked += len(told.evaluation.items)
        if told.evaluation.status == "ok" and told.evaluation.value > best:
            best = told.evaluation.value
            steps.append((asked, best))
    if not steps:
        return None
    low, high = steps[0][1], steps[-1][1]
    span = high - low or 1.0
    corners = []
    for (items, value), (until, _) in zip(steps, [*steps[1:], (asked, best)], strict=True):
        y = HEIGHT - HEIGHT * (value - low) / span
        corners += [(WIDTH * items / max(asked, 1), y), (WIDTH * until / max(asked, 1), y)]
    stride = -(-len(corners) // MAX_POINTS)
    return Curve(" ".join(f"{x:.1f},{y:.1f}" for x, y in corners[::stride]), asked, low, high)


def _candidates(history: RunHistory) -> list[CandidateRow]:
    """Return the best distinct recipes by search score."""
    return [
        _row(rank, history.asked[identity], history.evaluation(identity))
        for rank, identity in enumerate(history.ranking()[:MAX_CANDIDATES], start=1)
    ]


def _row(rank: int, asked: Asked, evaluation: Evaluation) -> CandidateRow:
    candidate = asked.candidate
    scores = (evaluation.value, evaluation.standard_error, len(evaluation.items))
    return CandidateRow(rank, candidate.id, candidate.generation, *scores, asked.recipe)


def _failures(history: RunHistory) -> list[tuple[int, str]]:
    told = ((identity, told.evaluation) for identity, told in history.told.items())
    return [(identity, each.reason or "") for identity, each in told if each.status == "failed"][-MAX_FAILURES:]


def _shown(value: object) -> object:
    """Return a value for the page: texts without characters that hide or reorder others."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, MAX_TEXT, keep="\n\t")


def _quoted(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(MAX_TEXT)
