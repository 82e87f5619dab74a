"""The figures of a report, drawn by Vega-Lite: what they show comes from the modules of the sections.

A figure has no colours of its own: the page's theme and `THEME` give them by the kind of scale, so that one
specification serves light and dark pages, print and files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import altair

Spec: TypeAlias = dict[str, Any]
"""A Vega-Lite specification."""
Values: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows of a figure's data."""


@dataclass(frozen=True)
class View:
    """One drawing: of several, a page shows the one that is chosen, or all where they are panels."""

    label: str
    spec: Spec


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and a file of `--figures`.

    Attributes
    ----------
    name
        Name of its files, and its place in the page.
    title
        What it shows.
    description
        What somebody who cannot see it should know, with its main numbers.
    views
        The drawings; at least one.
    panels
        Whether all of them belong together. Otherwise they are alternatives.
    caption
        How to read it.
    """

    name: str
    title: str
    description: str
    views: tuple[View, ...]
    panels: bool = False
    caption: str = ""

    def specs(self) -> Iterator[tuple[str, Spec]]:
        """Yield a name and a specification for each file: one for all panels, or one per alternative."""
        if self.panels or len(self.views) == 1:
            parts = [dict(view.spec) for view in self.views]
            yield self.name, parts[0] if len(parts) == 1 else _below_each_other(parts)
            return
        for number, view in enumerate(self.views, start=1):
            yield (self.name if number == 1 else f"{self.name}-{number}"), dict(view.spec)


def _below_each_other(parts: Sequence[Spec]) -> Spec:
    """Return one specification of several; data are named by their contents, so that none are confused."""
    outer = ("$schema", "config", "autosize", "datasets")
    datasets = {name: rows for part in parts for name, rows in part.get("datasets", {}).items()}
    inner = [{key: value for key, value in part.items() if key not in outer} for part in parts]
    return {"datasets": datasets, "vconcat": inner}


def source(values: Values) -> altair.InlineData:
    """Return rows as a figure's data, which a specification holds once however many layers draw it."""
    import altair

    return altair.InlineData(values=[dict(row) for row in values])


def spec_of(chart: altair.TopLevelMixin, height: int | None = None) -> Spec:
    """Return a chart as a specification as wide as its place on the page.

    It is not checked against Vega-Lite's schema, which takes longer than all else; the tests do that.
    """
    spec: Spec = chart.properties(width="container").to_dict(validate=False)
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    if height is not None:
        spec["height"] = height
    return spec


_INK, _GRID = "#1f2430", "#d9dce3"
THEME: Spec = {
    "background": "white",
    "font": "DejaVu Sans, sans-serif",
    "view": {"stroke": None, "continuousWidth": 620},
    "axis": {
        "labelColor": _INK, "titleColor": _INK, "gridColor": _GRID, "domainColor": _GRID, "tickColor": _GRID,
        "titleFontWeight": "normal", "labelLimit": 160, "labelOverlap": True, "labelSeparation": 10,
    },
    "legend": {"labelColor": _INK, "titleColor": _INK, "labelLimit": 160, "orient": "top", "title": None},
    "title": {"color": _INK, "anchor": "start", "fontSize": 12},
    "text": {"color": _INK},
    "mark": {"color": "#2f6fbb"},
    "range": {
        "category": ["#2f6fbb", "#d1652a", "#3a8f5c", "#8a56b0", "#b8942b", "#c14b6e", "#3b9aa8", "#77777f"],
        "diverging": ["#b3541e", "#f0c9a8", "#f4f4f2", "#a9cbe6", "#1f5f9e"],
        "heatmap": ["#eef3f8", "#9cc3e0", "#1f5f9e"],
        "ramp": ["#eef3f8", "#9cc3e0", "#1f5f9e"],
    },
}  # fmt: skip
"""How figures look in files; the page has its own, light and dark, in `report.js`."""


def svg(spec: Spec) -> str:
    """Return a figure as an SVG image for a file."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_for_file(spec), config=THEME))


def png(spec: Spec, scale: float = 2.0) -> bytes:
    """Return a figure as a PNG image for a file."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(_for_file(spec), config=THEME, scale=scale))


def _for_file(spec: Spec) -> Spec:
    """Return a specification with a width of its own, in place of that of the page."""
    if "vconcat" in spec:
        return {**spec, "vconcat": [_for_file(part) for part in spec["vconcat"]]}
    spec = {key: value for key, value in spec.items() if key != "autosize"}
    return {**spec, "width": 620} if spec.get("width") == "container" else spec


def scripts() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script without references to others."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
