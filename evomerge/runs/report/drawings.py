"""Each section's figure, from what the section has computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evomerge.files.messages import counted
from evomerge.runs.history import StageCost
from evomerge.runs.report.coefficients import Cell, Step, varying
from evomerge.runs.report.convergence import Point, Span, Z, thinned
from evomerge.runs.report.figures import Figure, Spec, View, source, spec_of
from evomerge.runs.report.final_table import Gap
from evomerge.runs.report.front import Front
from evomerge.runs.report.lineage import Ancestor
from evomerge.runs.report.population import Grid, Moment, Spread
from evomerge.runs.result import Row

if TYPE_CHECKING:
    from altair import Chart, LayerChart

ROW = 26
"""Pixels of a row of a figure with one row per model."""
NARROW = 0.16
"""Stages that are a smaller part of the course than this have no room for their names."""
AGAINST = {"answers": "answers asked, those of the sources included", "seconds": "seconds of searching"}
"""What the course of a search can be drawn against."""


def _axis_end(values: Sequence[float]) -> dict[str, Any]:
    return {"zero": False, "nice": True, "padding": 4} if values else {}


# --- the result ---


def held_out(tables: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """Draw the held-out scores with their intervals, a view per task."""
    rows = tables[0][1]
    best = max(rows, key=lambda row: row.score)
    found = next(row for row in rows if row.kind == "found")
    description = (
        f"Held-out scores with 95 % intervals of {counted(len(rows), 'model')}. The found recipe has {found.score:.3f} "
        f"({found.low:.3f} to {found.high:.3f}); the highest score is that of {best.name}, {best.score:.3f}."
    )
    views = tuple(View(task, _forest(rows)) for task, rows in tables)
    return Figure("held-out", "Every model with its 95 % interval", description, views)


def _forest(rows: Sequence[Row]) -> Spec:
    import altair as alt

    data = source([{**asdict(row), "group": _group(row.kind), "p_value": None} for row in rows])
    y = alt.Y("name:N", sort=None, title=None)
    colour = alt.Color("group:N", sort=["from the search", "sources", "without a search"], title=None)
    tips = [alt.Tooltip("name:N"), *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("score", "low", "high"))]
    base = alt.Chart(data).encode(y=y, color=colour, tooltip=[*tips, alt.Tooltip("items:Q")])
    x = alt.X("score:Q", title="score", scale=alt.Scale(zero=False, nice=True))
    lines = base.mark_rule(strokeWidth=3, opacity=0.55).encode(x=alt.X("low:Q", title="score"), x2="high:Q")
    return spec_of(lines + base.mark_circle(size=110, opacity=1).encode(x=x), ROW * len(rows))


def _group(kind: str) -> str:
    return {"found": "from the search", "mean": "from the search", "front": "from the search"}.get(
        kind, "sources" if kind == "source" else "from the search" if kind == "ensemble" else "without a search"
    )


def gap(found: Sequence[Gap]) -> Figure:
    """Draw each model's score on search items beside that on held-out items."""
    import altair as alt

    least = min(one.search for one in found)
    rows = []
    for one in found:
        search = {"where": "search items", "score": one.search} | _band(one.search, one.error, least)
        kept = {"where": "held-out items", "score": one.held_out, "low": one.low, "high": one.high}
        rows += [{"name": one.name} | search, {"name": one.name} | kept]
    base = alt.Chart(source(rows)).encode(
        y=alt.Y("name:N", sort=None, title=None),
        yOffset=alt.YOffset("where:N", sort=["search items", "held-out items"]),
        color=alt.Color("where:N", sort=["search items", "held-out items"], title=None),
        tooltip=["name:N", "where:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("score", "low", "high"))],
    )
    lines = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("low:Q", title="score"), x2="high:Q")
    points = base.mark_circle(size=80, opacity=1).encode(x=alt.X("score:Q", scale=alt.Scale(zero=False)))
    first = found[0]
    description = (
        f"{first.name} has {first.search:.3f} on the search items and {first.held_out:.3f} on the held-out items: "
        f"a difference of {first.search - first.held_out:+.3f} (the selection bias)."
    )
    caption = (
        "The best of many scores is biased upward by the selection; other models show no such gap. For "
        "finalists, the search items are those asked in the finals; for other models, all that they were asked."
    )
    spec = spec_of(lines + points, (ROW + 8) * len(found))
    return Figure(
        "search-and-held-out", "Search items and held-out items", description, (View("", spec),), False, caption
    )


# --- the course of the search ---


def convergence(points: Sequence[Point], stages: Sequence[Span]) -> Figure | None:
    """Draw every candidate and the best so far, against answers and against time; None without a score."""
    # A race may stop candidates before any has a score; the line begins with the first that has one.
    scored = [point for point in points if not point.is_step and point.best is not None]
    if not scored:
        return None
    shown = thinned(scored)
    first, last = scored[0], scored[-1]
    assert first.best is not None and last.best is not None
    description = (
        f"The best search score of {counted(len(scored), 'candidate')} rises from {first.best:.3f} to {last.best:.3f} "
        f"(standard error {last.best_error or 0:.3f}) over {counted(last.answers, 'answer')} and "
        f"{last.seconds:.0f} seconds. "
        f"Stages: {', '.join(dict.fromkeys(span.stage for span in stages))}."
    )
    caption = (
        "Line: the best search score so far, with its 95 % band. Points: candidates. It is not a held-out score: "
        "the table above has those."
    )
    views = tuple(View(f"against {name}", _course(shown, stages, name)) for name in AGAINST)
    return Figure("convergence", "Best search score so far", description, views, caption=caption)


def _course(points: Sequence[Point], stages: Sequence[Span], against: str) -> Spec:
    import altair as alt

    least = min(point.score for point in points)
    rows = [
        asdict(point) | _band(point.best, point.best_error or 0.0, least) for point in points if point.best is not None
    ]
    base = alt.Chart(source(rows)).encode(x=alt.X(f"{against}:Q", title=AGAINST[against]))
    y = alt.Y("score:Q", title="search score", scale=alt.Scale(zero=False))
    tips = [alt.Tooltip("candidate:Q"), alt.Tooltip("stage:N"), alt.Tooltip("score:Q", format=".3f")]
    tips += [alt.Tooltip("error:Q", format=".3f", title="standard error"), alt.Tooltip(f"{against}:Q", format=",.0f")]
    dots = base.mark_circle(size=28, opacity=0.45).encode(
        y=y, tooltip=tips, color=alt.Color("stage:N", title=None, sort=_stage_order(stages))
    )
    band = base.mark_area(interpolate="step-after", opacity=0.18).encode(
        y=alt.Y("low:Q", title="search score"), y2="high:Q"
    )
    line = base.mark_line(interpolate="step-after", strokeWidth=2.5).encode(y="best:Q")
    return spec_of(_marked(stages, against) + band + dots + line, 300)


def _band(value: float, error: float, least: float) -> dict[str, float]:
    """Return the ends of a 95 % interval; not below 0 where no score is (`least` is the lowest)."""
    low = value - Z * error
    return {"low": max(low, 0.0) if least >= 0 else low, "high": value + Z * error}


def _stage_order(stages: Sequence[Span]) -> list[str]:
    return list(dict.fromkeys(span.stage for span in stages))


def _marked(stages: Sequence[Span], against: str) -> LayerChart:
    """Draw where stages begin and end, with their names."""
    import altair as alt

    rows, before = [], 0.0
    for number, span in enumerate(stages):
        end = float(getattr(span, against))
        name = span.stage if end - before > NARROW * float(getattr(stages[-1], against)) else ""
        rows.append({"from": before, "to": end, "stage": name, "shade": 0.07 if number % 2 else 0.0})
        before = end
    base = alt.Chart(source(rows)).encode(x=alt.X("from:Q", title=AGAINST[against]))
    shades = base.mark_rect(color="#808080").encode(x2="to:Q", opacity=alt.Opacity("shade:Q", scale=None))
    names = base.mark_text(align="left", dx=4, dy=-7, fontSize=11).encode(text="stage:N", y=alt.value(0))
    return shades + names


def steps(points: Sequence[Point]) -> Figure | None:
    """Draw the loss of the gradient steps; None without steps."""
    taken = [point for point in points if point.is_step]
    if not taken:
        return None
    import altair as alt

    views = []
    for against, title in AGAINST.items():
        base = alt.Chart(source([asdict(point) for point in thinned(taken)])).encode(
            x=alt.X(f"{against}:Q", title=title, scale=alt.Scale(zero=False)),
            y=alt.Y("score:Q", title="loss", scale=alt.Scale(zero=False)),
            tooltip=["candidate:Q", alt.Tooltip("score:Q", format=".4f", title="loss"), f"{against}:Q"],
        )
        smooth = base.transform_window(mean="mean(score)", frame=[-4, 4]).mark_line(strokeWidth=2.5).encode(y="mean:Q")
        views.append(View(f"against {against}", spec_of(base.mark_circle(opacity=0.4) + smooth, 220)))
    description = (
        f"The loss of {counted(len(taken), 'gradient step')}, from {taken[0].score:.3f} to "
        f"{taken[-1].score:.3f}; each step "
        "has other items."
    )
    caption = "Points: the loss of each step on its own items. Line: the mean of nine."
    return Figure("steps", "Loss of the gradient steps", description, tuple(views), caption=caption)


# --- the recipe ---


def heat_maps(cells: Sequence[Cell], of: str) -> list[Figure]:
    """Draw the coefficients: a figure per parameter, with a panel per module."""
    figures = []
    for parameter in varying(list(cells)):
        own = [cell for cell in cells if cell.parameter == parameter]
        modules = list(dict.fromkeys(cell.module for cell in own))
        low, high = min(cell.value for cell in own), max(cell.value for cell in own)
        top = max(own, key=lambda cell: cell.value)
        description = (
            f"{parameter} of {of} by layer and model in {counted(len(modules), 'module')}, from {low:.2f} to "
            f"{high:.2f}; the largest is that of {top.model}, {top.module}, {top.place}."
        )
        views = tuple(
            View(module, _heat([cell for cell in own if cell.module == module], low, high, legend=number == 0))
            for number, module in enumerate(modules)
        )
        caption = "Means over the tensors of a module; the colours of all panels have one scale."
        figures.append(Figure(f"coefficients-{parameter}", parameter, description, views, True, caption))
    return figures


def _heat(cells: Sequence[Cell], low: float, high: float, *, legend: bool) -> Spec:
    import altair as alt

    places, models = (list(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in ("place", "model"))
    signed = low < 0 < high
    limit = max(abs(low), abs(high))
    scale = (
        alt.Scale(domain=[-limit, limit], domainMid=0, interpolate="rgb")
        if signed
        else alt.Scale(domain=[min(low, 0), max(high, 1e-9)], interpolate="rgb")
    )
    tips = [alt.Tooltip("model:N"), alt.Tooltip("module:N"), alt.Tooltip("place:N", title="layer")]
    tips += [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    chart = (
        alt.Chart(source([asdict(cell) for cell in cells]), title=cells[0].module)
        .mark_rect(stroke=None)
        .encode(
            x=alt.X("place:O", sort=places, title=None, axis=alt.Axis(labelOverlap=True, labelAngle=0, domain=False)),
            y=alt.Y("model:N", sort=models, title=None, axis=alt.Axis(domain=False, ticks=False)),
            color=alt.Color(
                "value:Q",
                scale=scale,
                title=None,
                legend=alt.Legend(gradientLength=180, gradientThickness=10) if legend else None,
            ),
            tooltip=tips,
        )
    )
    return spec_of(chart, max(24, min(ROW, 640 // len(models)) * len(models)))


def path(steps: Sequence[Step], of: str) -> Figure:
    """Draw a path through layers: which layer of which model is at each place of the result."""
    import altair as alt

    base = alt.Chart(source([asdict(step) for step in steps])).encode(
        x=alt.X("position:O", title="layer of the result", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y(
            "layer:Q", title="layer of its model", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(padding=12)
        ),
    )
    line = base.mark_line(strokeWidth=1.5, opacity=0.5, color="#808080")
    tips = ["position:O", "model:N", "layer:Q", alt.Tooltip("scale:Q", format=".3f")]
    dots = base.mark_circle(size=160, opacity=1).encode(color=alt.Color("model:N", title=None), tooltip=tips)
    words = ", ".join(f"{step.model} {step.layer}" for step in steps[:40])
    description = (
        f"The path of {of} has {counted(len(steps), 'layer')}: {words}{' and more' if len(steps) > 40 else ''}."
    )
    caption = (
        "Each point is a layer of the result, in order; its height is the layer's place in the model that it is from."
    )
    return Figure("path", "Path through layers", description, (View("", spec_of(line + dots, 240)),), False, caption)


# --- the population ---


def spread(found: Sequence[Spread]) -> Figure:
    """Draw how far the candidates of each generation are apart, and their scores."""
    import altair as alt

    base = alt.Chart(source([asdict(one) for one in found])).encode(
        x=alt.X("answers:Q", title=AGAINST["answers"]),
        tooltip=[
            "generation:Q",
            "candidates:Q",
            *(alt.Tooltip(f"{k}:Q", format=".3f") for k in ("distance", "low", "median", "high")),
        ],
    )
    distance = base.mark_line(point=True, strokeWidth=2).encode(
        y=alt.Y("distance:Q", title="distance of two candidates")
    )
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", title="search score", scale=alt.Scale(zero=False)), y2="high:Q"
    )
    scores = band + base.mark_line(point=True, strokeWidth=2).encode(y="median:Q")
    description = (
        f"Over {counted(len(found), 'generation')} the mean distance of two candidates changes from "
        f"{found[0].distance:.3f} to "
        f"{found[-1].distance:.3f} of the genes' range, and their median score from {found[0].median:.3f} to "
        f"{found[-1].median:.3f}."
    )
    views = (View("distance", spec_of(distance, 170)), View("scores", spec_of(scores, 170)))
    caption = (
        "Above: how different a generation's candidates are. Below: their scores from worst to best, and the median."
    )
    return Figure("diversity", "Diversity of the candidates", description, views, True, caption)


def niches(found: Sequence[Moment]) -> Figure:
    """Draw what M2N2's archive solves together, and its best member alone."""
    words = ("some member", "the best member")
    description = (
        f"At the end, {found[-1].members} members together solve {found[-1].together:.1%} of the items, the best one "
        f"alone {found[-1].best:.1%}; at the beginning {found[0].together:.1%} and {found[0].best:.1%}."
    )
    caption = "The gap between the lines is the share of items that other members solve and the best member does not."
    spec = _two_lines(found, words, "share of the items solved by")
    return Figure("niches", "Niches of the archive", description, (View("", spec),), False, caption)


def _two_lines(found: Sequence[Moment], words: tuple[str, str], title: str) -> Spec:
    import altair as alt

    rows = [
        {"answers": one.answers, "members": one.members, "value": value, "what": what}
        for one in found
        for what, value in zip(words, (one.together, one.best), strict=True)
    ]
    chart = alt.Chart(source(rows)).mark_line(strokeWidth=2.5, interpolate="step-after")
    return spec_of(
        chart.encode(
            x=alt.X("answers:Q", title=AGAINST["answers"]),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("what:N", sort=list(words), title=None),
            tooltip=["what:N", alt.Tooltip("value:Q", format=".3f"), "members:Q", "answers:Q"],
        ),
        240,
    )


def grid(found: Grid) -> Figure:
    """Draw the cells of an archive, and how they filled."""
    import altair as alt

    rows = [{**asdict(elite), "x2": elite.x + found.step, "y2": elite.y + found.step} for elite in found.elites]
    cells = (
        alt.Chart(source(rows))
        .mark_rect()
        .encode(
            x=alt.X("x:Q", title=found.axes[0]),
            x2="x2:Q",
            y=alt.Y("y:Q", title=found.axes[1]),
            y2="y2:Q",
            color=alt.Color("quality:Q", title="quality"),
            tooltip=[
                *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("x", "y", "quality")),
                alt.Tooltip("candidate:Q"),
                alt.Tooltip("file:N", title="exported as"),
            ],
        )
    )
    filled = (
        alt.Chart(source([asdict(moment) for moment in found.moments]))
        .mark_line(strokeWidth=2.5, interpolate="step-after")
        .encode(x=alt.X("answers:Q", title=AGAINST["answers"]), y=alt.Y("members:Q", title="filled cells"))
    )
    last = found.moments[-1]
    description = (
        f"{last.members} cells are filled; their mean quality is {last.together:.3f} and the best {last.best:.3f}."
    )
    views = (View("cells", spec_of(cells, 300)), View("filled", spec_of(filled, 170)))
    caption = (
        "Above: the best quality in each cell of the first two axes; `evomerge export RUN --archive DIR` writes its "
        "recipe under the name shown. Below: the number of filled cells."
    )
    return Figure("grid", "Cells of the archive", description, views, True, caption)


def front(found: Front) -> Figure:
    """Draw the front over every pair of objectives."""
    pairs = list(combinations(range(len(found.tasks)), 2))
    views = tuple(View(f"{found.tasks[a]} and {found.tasks[b]}", _front(found, a, b)) for a, b in pairs)
    description = (
        f"{counted(len(found.members), 'recipe')} that no other candidate dominates, over "
        f"{counted(len(found.tasks), 'objective')}; "
        f"hypervolume {found.volume:.4f}. The table below has their numbers."
    )
    caption = "Numbers as in the table. Choose a point to copy its recipe."
    return Figure("front", "Every two objectives", description, views, caption=caption)


def _front(found: Front, a: int, b: int) -> Spec:
    import altair as alt

    x = alt.X("x:Q", title=found.tasks[a], scale=alt.Scale(zero=False))
    y = alt.Y("y:Q", title=found.tasks[b], scale=alt.Scale(zero=False))
    others = source([{"candidate": one, "x": values[a], "y": values[b]} for one, values in found.others])
    rows = [
        {"number": one.number, "candidate": one.candidate, "x": one.values[a], "y": one.values[b]}
        for one in found.members
    ]
    tips = [alt.Tooltip("candidate:Q"), alt.Tooltip("x:Q", format=".3f", title=found.tasks[a])]
    tips.append(alt.Tooltip("y:Q", format=".3f", title=found.tasks[b]))
    behind = alt.Chart(others).mark_circle(size=30, opacity=0.35, color="#808080").encode(x=x, y=y, tooltip=tips)
    base = alt.Chart(source(rows)).encode(x=x, y=y, tooltip=[alt.Tooltip("number:Q"), *tips])
    members = base.mark_circle(size=160, opacity=0.9, cursor="pointer")
    numbers = base.mark_text(dy=-13, fontSize=11).encode(text="number:Q")
    return spec_of((behind + members + numbers) if found.others else (members + numbers), 340)


def lineage(found: Sequence[Ancestor]) -> Figure | None:
    """Draw the best child and its ancestors, with lines from parents to children; None for steps alone."""
    import altair as alt

    scores = {one.candidate: one.score for one in found if one.score is not None}
    nodes = [asdict(one) for one in found if one.score is not None]
    edges = [
        {"candidate": one.candidate, "score": one.score, "to": parent, "parent_score": scores[parent]}
        for one in found
        for parent in one.parents
        if one.score is not None and parent in scores
    ]
    if not edges:
        return None
    x = alt.X("candidate:Q", title="candidate", scale=alt.Scale(zero=False, padding=10))
    y = alt.Y("score:Q", title="search score", scale=alt.Scale(zero=False))
    lines = (
        alt.Chart(source(edges))
        .mark_rule(opacity=0.35, color="#808080")
        .encode(x=x, y=y, x2="to:Q", y2="parent_score:Q")
    )
    dots = alt.Chart(source(nodes)).mark_circle(size=70, opacity=1)
    tips = ["candidate:Q", "kind:N", alt.Tooltip("score:Q", format=".3f")]
    chart = dots.encode(x=x, y=y, color=alt.Color("kind:N", title=None), tooltip=tips)
    best = found[0]
    description = (
        f"Candidate {best.candidate} has {counted(len(found) - 1, 'recorded ancestor')} over "
        f"{max(one.distance for one in found)} "
        f"generations; its parents are {', '.join(map(str, best.parents))}."
    )
    caption = "Lines lead from a candidate to its parents. The best one is at the right."
    return Figure(
        "lineage",
        "Ancestors",
        description,
        (View("", spec_of(lines + chart, 260)),),
        False,
        caption,
    )


def costs(stages: Mapping[str, StageCost]) -> Figure:
    """Draw what each stage has cost, in answers and in time."""
    views = (
        View(
            "answers",
            _bars(
                [{"stage": stage, "value": cost.answers, "part": "answers"} for stage, cost in stages.items()],
                "answers",
            ),
        ),
        View(
            "seconds",
            _bars(
                [
                    {"stage": stage, "value": value, "part": part}
                    for stage, cost in stages.items()
                    for part, value in (("merging", cost.merge), ("scoring", cost.score), ("waiting", cost.wait))
                ],
                "seconds of workers",
            ),
        ),
    )
    total = sum(cost.answers for cost in stages.values())
    words = ", ".join(f"{stage} {cost.answers:,}" for stage, cost in stages.items())
    description = f"{total:,} answers were asked in all: {words}."
    return Figure("costs", "Answers and time by stage", description, views, True)


def _bars(rows: Sequence[dict[str, Any]], title: str) -> Spec:
    import altair as alt

    stages, parts = (list(dict.fromkeys(row[key] for row in rows)) for key in ("stage", "part"))
    legend = alt.Legend() if len(parts) > 1 else None
    chart: Chart = (
        alt.Chart(source(rows))
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title=title),
            y=alt.Y("stage:N", sort=stages, title=None),
            color=alt.Color("part:N", sort=parts, title=None, legend=legend),
            tooltip=["stage:N", "part:N", alt.Tooltip("value:Q", format=",.1f")],
        )
    )
    return spec_of(chart, ROW * len(stages))
