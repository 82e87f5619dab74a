"""Weights that change within a tensor: a table, for what lists of parameters cannot express.

A `Mixture` divides every tensor into pieces and names a row for each: one weight per source, and one standard deviation
per seeded noise. The merged entries of a piece are the weighted sum of the sources' entries, plus each noise's standard
normal numbers times its deviation. Legend: K sources, M noises, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from search_spaces.recipes.errors import RecipeError

MAX_ROWS = 1 << 14
MAX_PIECES = 1 << 17
MAX_NOISES = 16
MAX_SEED = 1 << 31

Row = tuple[float, ...]
Pieces = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers drawn from `seed` and the tensor's name, times `deviation`."""

    seed: int
    deviation: float


@dataclass(frozen=True)
class Piece:
    """Entries of a flattened tensor from the end of the piece before it to `end`."""

    end: int
    weights: Row
    noises: tuple[Noise, ...] = ()


@dataclass(frozen=True)
class Mixture:
    """A table of weights by position.

    Attributes
    ----------
    rows
        R rows of K weights, in the order of the recipe's sources, followed by M standard deviations.
    tensors
        By name, sorted: the tensor's pieces in order, each as (the entry that it ends before, its row). The last
        ends where the tensor does.
    noises
        Seeds of the M noises.

    Raises
    ------
    RecipeError
        If rows differ in length or are not finite, a piece is empty or names no row, or a limit is exceeded.
    """

    rows: tuple[Row, ...]
    tensors: tuple[tuple[str, Pieces], ...]
    noises: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_rows(self)
        _check_noises(self)
        _check_tensors(self)

    @property
    def sources(self) -> int:
        """Number of sources, K."""
        return len(self.rows[0]) - len(self.noises)

    def pieces(self) -> Iterator[tuple[str, tuple[Piece, ...]]]:
        """Yield each tensor's name and pieces, without noises of deviation zero."""
        count = self.sources
        written = [(row[:count], self._noises(row[count:])) for row in self.rows]
        for name, pieces in self.tensors:
            yield name, tuple(Piece(end, *written[row]) for end, row in pieces)

    def _noises(self, deviations: Row) -> tuple[Noise, ...]:
        pairs = zip(self.noises, deviations, strict=True)
        return tuple(Noise(seed, deviation) for seed, deviation in pairs if deviation)

    def canonical(self) -> Mixture:
        """Return the form that all tables with the same weights share.

        Rows are distinct, all used, numbered by first use; neighbouring pieces of one row are joined; noises are
        sorted by seed, each listed once and somewhere not zero.
        """
        noises, spell = _joined_noises(self)
        spelled = [spell(row) for row in self.rows]
        numbers: dict[Row, int] = {}
        tensors = []
        for name, pieces in self.tensors:
            joined: list[tuple[int, int]] = []
            for end, row in pieces:
                number = numbers.setdefault(spelled[row], len(numbers))
                if joined and joined[-1][1] == number:
                    joined.pop()
                joined.append((end, number))
            tensors.append((name, tuple(joined)))
        return Mixture(tuple(numbers), tuple(tensors), noises)


def _joined_noises(table: Mixture) -> tuple[tuple[int, ...], Callable[[Row], Row]]:
    """Return the sorted noises that have an effect, and a function that rewrites a row for them."""
    count = table.sources
    used = {row for _, pieces in table.tensors for _, row in pieces}
    columns = {
        seed: [count + at for at, other in enumerate(table.noises) if other == seed] for seed in sorted({*table.noises})
    }
    columns = {
        seed: places
        for seed, places in columns.items()
        if any(sum(table.rows[row][place] for place in places) for row in used)
    }

    def spell(row: Row) -> Row:
        weights = tuple(float(weight) + 0.0 for weight in row[:count])  # -0.0 + 0.0 is 0.0
        return weights + tuple(sum(float(row[place]) for place in places) + 0.0 for places in columns.values())

    return tuple(columns), spell


# --- plain data ---


def as_data(table: Mixture) -> dict[str, Any]:
    """Return `table` as mappings, lists and numbers, as in a recipe's YAML."""
    data: dict[str, Any] = {"noises": list(table.noises)} if table.noises else {}
    data["rows"] = [list(row) for row in table.rows]
    data["tensors"] = {name: [list(piece) for piece in pieces] for name, pieces in table.tensors}
    return data


def from_data(data: Any, place: str) -> Mixture:
    """Return the table of what `as_data` gives; `place` is its path in the document.

    Raises
    ------
    RecipeError
        If it is not such a table.
    """
    if not isinstance(data, dict) or not {"rows", "tensors"} <= set(data) <= {"rows", "tensors", "noises"}:
        raise RecipeError(f"{place}: is not a table of weights; write rows: [[...]], tensors: {{NAME: [[END, ROW]]}}")
    rows, tensors, noises = data["rows"], data["tensors"], data.get("noises", [])
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise RecipeError(f"{place}.rows: is not a list of rows; write one list of numbers per row")
    if any(type(value) not in (int, float) for row in rows for value in row):
        raise RecipeError(f"{place}.rows: contains something that is not a number; write numbers such as 0.5")
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise RecipeError(f"{place}.tensors: is not a mapping of names; write NAME: [[END, ROW]]")
    for name, pieces in tensors.items():
        whole = isinstance(pieces, list) and all(isinstance(piece, list) and len(piece) == 2 for piece in pieces)
        if not whole or any(type(number) is not int for piece in pieces for number in piece):
            raise RecipeError(f"{place}.tensors.{name}: is not a list of pieces; write [[END, ROW], ...]")
    if not isinstance(noises, list) or any(type(seed) is not int for seed in noises):
        raise RecipeError(f"{place}.noises: is not a list of seeds; write whole numbers")
    try:
        return Mixture(
            tuple(tuple(float(value) for value in row) for row in rows),
            tuple((name, tuple((end, row) for end, row in tensors[name])) for name in sorted(tensors)),
            tuple(noises),
        )
    except RecipeError as error:
        raise RecipeError(f"{place}.{error}") from None


# --- checks ---


def _check_rows(table: Mixture) -> None:
    if not 0 < len(table.rows) <= MAX_ROWS:
        raise RecipeError(f"rows: {len(table.rows)} of them; write 1 to {MAX_ROWS}")
    if len({len(row) for row in table.rows}) > 1:
        raise RecipeError("rows: they have different lengths; write one number per source and noise in each")
    if any(not math.isfinite(value) for row in table.rows for value in row):
        raise RecipeError("rows: a number is not finite; write numbers such as 0.5")


def _check_noises(table: Mixture) -> None:
    if len(table.noises) > MAX_NOISES:
        raise RecipeError(f"noises: {len(table.noises)} of them; write at most {MAX_NOISES}")
    if any(not 0 <= seed < MAX_SEED for seed in table.noises):
        raise RecipeError(f"noises: a seed is out of range; write whole numbers from 0 to {MAX_SEED - 1}")
    if table.sources < 1:
        raise RecipeError("rows: they have no weights; write one number per source, then one per noise")


def _check_tensors(table: Mixture) -> None:
    names = [name for name, _ in table.tensors]
    if names != sorted(set(names)) or not names:
        raise RecipeError("tensors: names must be there, sorted and unique; write each tensor once")
    if sum(len(pieces) for _, pieces in table.tensors) > MAX_PIECES:
        raise RecipeError(f"tensors: too many pieces; write at most {MAX_PIECES}")
    for name, pieces in table.tensors:
        before = 0
        for end, row in pieces:
            if end <= before:
                raise RecipeError(f"tensors.{name}: a piece ends at {end}, not after {before}; sort the pieces")
            if not 0 <= row < len(table.rows):
                raise RecipeError(f"tensors.{name}: there is no row {row}; name one of 0 to {len(table.rows) - 1}")
            before = end
        if not pieces:
            raise RecipeError(f"tensors.{name}: has no pieces; write [[END, ROW]]")
