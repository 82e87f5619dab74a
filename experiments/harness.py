"""What all experiments share: arguments, the file of results, the tables and figures of the README, and plots.

An experiment is a folder with a ``results.json``, which only its command writes, and a README whose tables and figures
are made from that file. In the README each of these tables stands between the lines ``<!-- table -->`` and
``<!-- /table -->``, and a figure within a sentence between ``<!-- figure NAME -->`` and ``<!-- / -->``. Other pages
quote it as ``<!-- figure EXPERIMENT.NAME -->``. Numbers that follow from no results, such as published ones, stand
between ``<!-- given -->`` and ``<!-- / -->``; ``python -m experiments.audit`` finds all others.
"""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]
"""Contents of a file of results, as JSON has them."""


@dataclass(frozen=True)
class Experiment:
    """One command, its file of results, and the tables that follow from it.

    Attributes
    ----------
    folder
        The experiment's folder; results are written there unless the command line says otherwise.
    tables
        Makes the README's tables from the results, in the order in which they stand there; None: it has none.
    module
        Name of the command's module in the folder; empty for the folder itself.
    file
        Name of the file of results.
    marker
        Word in the comments around each table.
    rows
        Key of a long list, which is written one element a line; None: every value has a line of its own.
    indent
        Spaces before the rest of the file's values; None: they share a line.
    figures
        Makes the figures of sentences from the results, by name; None: there are none.
    """

    folder: Path
    tables: Callable[[Results], Sequence[str]] | None
    module: str = ""
    file: str = "results.json"
    marker: str = "table"
    rows: str | None = None
    indent: int | None = 1
    figures: Callable[[Results], Mapping[str, str]] | None = None

    def parser(self, description: str | None, *, quick: str) -> ArgumentParser:
        """Return a parser with ``--quick`` and ``--out``.

        Parameters
        ----------
        description
            The module's docstring.
        quick
            What ``--quick`` does.
        """
        program = ".".join(filter(None, ("experiments", self.folder.name, self.module)))
        parser = ArgumentParser(
            prog=f"python -m {program}", description=description, formatter_class=RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help=f"{quick}; writes nothing without --out")
        written = f"{self.file}, the plot if there is one, and the tables of a README.md there"
        parser.add_argument("-o", "--out", type=Path, help=f"folder for {written}; default: the experiment's own")
        return parser

    def destination(self, given: Namespace) -> Path | None:
        """Return the folder to write to, made if it is new; None: write nothing.

        Raises
        ------
        ValueError
            The README in that folder has no place for the tables. A long measurement had better not end with this.
        """
        folder: Path | None = given.out or (None if given.quick else self.folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            readme = folder / "README.md"
            if (
                self.tables is not None
                and readme.exists()
                and not self._places.search(readme.read_text(encoding="utf-8"))
            ):
                raise ValueError(f"{readme}: no table to replace; {self._advice}")
        return folder

    def read(self, folder: Path | None) -> Results:
        """Return the results in a folder; empty if it has none, or without a folder."""
        if folder is None or not (folder / self.file).is_file():
            return {}
        found: Results = json.loads((folder / self.file).read_text(encoding="utf-8"))
        return found

    def write(self, folder: Path | None, results: Results | list[Results]) -> None:
        """Write the results alone; they may still be incomplete. Without a folder, write nothing."""
        if folder is not None:
            (folder / self.file).write_text(self.text(results), encoding="utf-8")

    def publish(self, folder: Path | None, results: Results) -> None:
        """Write the results, and their tables and figures into the README in the same folder, if there is one."""
        self.write(folder, results)
        if folder is not None and (folder / "README.md").exists():
            readme = folder / "README.md"
            readme.write_text(self.filled(readme.read_text(encoding="utf-8"), results), encoding="utf-8")

    def text(self, results: Results | list[Results]) -> str:
        """Return the contents of the file of results."""
        if self.rows is None or isinstance(results, list):
            return json.dumps(results, indent=self.indent) + "\n"
        rest = json.dumps({**results, self.rows: []}, indent=self.indent)
        start, empty, end = rest.partition(f'"{self.rows}": []')
        lines = ",\n  ".join(json.dumps(row) for row in results[self.rows])
        return f"{start}{empty[:-1]}\n  {lines}\n{' ' * (self.indent or 0)}]{end}\n"

    def filled(self, text: str, results: Results) -> str:
        """Return a README's text with the tables and figures that follow from the results.

        Raises
        ------
        ValueError
            The text has fewer or more places for tables than there are tables.
        """
        tables = [table.strip("\n") + "\n" for table in self.tables(results)] if self.tables is not None else []
        places = len(self._places.findall(text))
        if places != len(tables):
            raise ValueError(f"{len(tables)} tables, but {places} places for them; {self._advice}")
        following = iter(tables)
        text = self._places.sub(lambda found: found["start"] + next(following) + found["end"], text)
        return with_figures(text, self.figures(results)) if self.figures is not None else text

    @property
    def _places(self) -> re.Pattern[str]:
        start, end = f"<!-- {self.marker} -->\n", f"<!-- /{self.marker} -->"
        return re.compile(f"(?P<start>^{start}).*?(?P<end>^{end})", re.DOTALL | re.MULTILINE)

    @property
    def _advice(self) -> str:
        return f"put the lines <!-- {self.marker} --> and <!-- /{self.marker} --> around each"


FIGURE = re.compile(r"(?P<start><!-- figure (?P<name>[\w.-]+) -->)(?P<figure>.*?)(?P<end><!-- / -->)", re.DOTALL)
"""A figure in a page."""


def with_figures(text: str, figures: Mapping[str, str]) -> str:
    """Return a page's text with these figures in their places; places with other names stay as they are."""
    return FIGURE.sub(lambda found: found["start"] + figures.get(found["name"], found["figure"]) + found["end"], text)


def mean_and_error(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Return ``mean ± standard error`` of some runs, times `scale`; the mean alone for a single run."""
    numbers = [scale * value for value in values]
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    error = (sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers)) ** 0.5
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


@contextmanager
def plotted(file: Path, columns: int = 1, *, rows: int = 1, **settings: Any) -> Iterator[Any]:
    """Give axes to draw on, one or an array of them, and save the figure: equal drawings give equal files.

    Parameters
    ----------
    file
        An SVG file.
    settings
        For `matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "evomerge"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, **settings)
    yield axes
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    # matplotlib writes millionths of a point
    file.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", file.read_text(encoding="utf-8")), encoding="utf-8")
