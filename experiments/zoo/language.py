"""The zoo's language: prompts ``OP n1 n2 ... =`` answered in digits, and the split of each list of operands.

The operation is one shared token, every number is one token of the language the list is written in,
and the answer is always in digits::

    sort twenty-one four nine =   ->  4 9 21
    sort 二十一 四 九 =            ->  4 9 21

So a model that learnt ``sort`` on English lists and a model that learnt to read Japanese each have half of
what ``sort 二十一 四 九 =`` needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "search", "held_out"]

HIGHEST = 29
"""Lists hold distinct whole numbers from 0 to this one, so that every number is a single token."""

LONGEST = 6
"""Numbers in the longest list."""

_UNITS_EN = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
_TEENS_EN = "sixteen seventeen eighteen nineteen"
_UNITS_EO = ("nul", "unu", "du", "tri", "kvar", "kvin", "ses", "sep", "ok", "naŭ")
_UNITS_JA = "〇一二三四五六七八九"


def _english(number: int) -> str:
    small = f"{_UNITS_EN} {_TEENS_EN} twenty".split()
    return small[number] if number <= 20 else f"twenty-{small[number - 20]}"


def _by_tens(number: int, units: Sequence[str], ten: str) -> str:
    """Number word of a language that says 27 as 'two-ten-seven', as Japanese and Esperanto do."""
    tens, unit = divmod(number, 10)
    if tens == 0:
        return units[unit]
    return (units[tens] if tens > 1 else "") + ten + (units[unit] if unit else "")


NUMBER_WORDS: dict[str, tuple[str, ...]] = {
    "en": tuple(_english(n) for n in range(HIGHEST + 1)),
    "ja": tuple(_by_tens(n, _UNITS_JA, "十") for n in range(HIGHEST + 1)),
    "eo": tuple(_by_tens(n, _UNITS_EO, "dek") for n in range(HIGHEST + 1)),
}
"""Words for 0 ... HIGHEST by language code: English, Japanese, Esperanto."""

OPERATIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "copy": lambda numbers: numbers,
    "last": lambda numbers: numbers[-1:],
    "sort": sorted,
    "reverse": lambda numbers: numbers[::-1],
    "rotate": lambda numbers: numbers[1:] + numbers[:1],
    "max": lambda numbers: [max(numbers)],
    "min": lambda numbers: [min(numbers)],
    "count": lambda numbers: [sum(number > numbers[0] for number in numbers)],
}
"""What each operation token asks for; ``count`` asks how many numbers exceed the first."""


@dataclass(frozen=True)
class Problem:
    """One prompt with its answer."""

    operation: str
    """A key of `OPERATIONS`."""
    language: str
    """A key of `NUMBER_WORDS`: the language the list is written in."""
    numbers: tuple[int, ...]
    """The operands, distinct, each 0 ... `HIGHEST`."""

    @property
    def prompt(self) -> str:
        """The question, up to and including ``=``."""
        words = NUMBER_WORDS[self.language]
        return " ".join([self.operation, *(words[number] for number in self.numbers), "="])

    @property
    def answer(self) -> str:
        """The right answer in digits, without the closing ``</s>``."""
        return " ".join(map(str, OPERATIONS[self.operation](list(self.numbers))))


def split_of(numbers: Sequence[int]) -> Split:
    """Return the split of a list: training (80 %), the search (10 %) or the final measurement (10 %).

    The hash is taken over the *set* of operands, so all orders of a list, all operations on it and all
    languages it is written in fall into the same split.
    """
    key = " ".join(map(str, sorted(numbers))).encode()
    bucket = hashlib.blake2b(key, digest_size=8).digest()[0] % 10
    return "search" if bucket == 0 else "held_out" if bucket == 1 else "train"


def draw_numbers(rng: np.random.Generator, shortest: int, longest: int, split: Split) -> tuple[int, ...]:
    """Draw a list of `shortest` to `longest` distinct numbers that belongs to `split`."""
    length = int(rng.integers(shortest, longest + 1))
    while True:
        numbers = tuple(int(n) for n in rng.permutation(HIGHEST + 1)[:length])
        if split_of(numbers) == split:
            return numbers
