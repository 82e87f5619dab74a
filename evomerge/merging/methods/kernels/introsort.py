"""The order that torch's sort gives to equal entries, compiled by numba.

mergekit trims by ``torch.argsort``, which on a CPU is `std::sort` of the GNU C++ library: introsort (Musser 1997,
Software: Practice and Experience 27(8), 983-993). It is not stable: of equal magnitudes, which half precision has many
of, mergekit keeps those that it happens to put first. Here the same swaps are made without the branches that a
processor cannot predict, by blocks (BlockQuicksort: Edelkamp & Weiß 2016, arXiv:1604.06697): a block's misplaced
entries are found first, then swapped in the order in which Hoare's partition would swap them.

An entry is a uint64: its key above, its index below. Keys that are smaller come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from evomerge.merging.methods.kernels.compiling import compiled

FEW = 16
"""Entries that are sorted by insertion: the library's constant."""
BLOCK = 128
LEAST = 8
"""Entries of the smallest block."""

u64 = np.uint64
KEY = u64(32)
INDEX = u64(0xFFFFFFFF)


@njit(inline="always")
def _swap(entries: Any, one: int, other: int) -> None:
    entries[one], entries[other] = entries[other], entries[one]


@njit(inline="always")
def _median_to_first(entries: Any, first: int, last: int) -> None:
    """Swap the median of the second, middle and last entry with the first."""
    second, middle, end = first + 1, first + (last - first) // 2, last - 1
    a, b, c = entries[second] >> KEY, entries[middle] >> KEY, entries[end] >> KEY
    if (a < b) == (b < c):
        median = middle
    elif (a < b) == (a < c):
        median = end
    else:
        median = second
    _swap(entries, first, median)


@njit(inline="always")
def _hoare(entries: Any, first: int, last: int, least: Any, most: Any) -> int:
    """Swap entries until those before the returned place are at most the pivot, and the others at least.

    `least` and `most` are the smallest and the largest entry with the pivot's key.
    """
    while True:
        while entries[first] < least:
            first += 1
        last -= 1
        while most < entries[last]:
            last -= 1
        if first >= last:
            return first
        _swap(entries, first, last)
        first += 1


@njit
def _partition(entries: Any, first: int, last: int, pivot: Any, left: Any, right: Any) -> int:
    """Do what `_hoare` does, by blocks; `left` and `right` take the offsets of misplaced entries from both ends."""
    least, most = pivot & ~INDEX, pivot | INDEX
    on_left = on_right = at_left = at_right = size_left = size_right = 0
    while True:
        left_done, right_done = at_left == on_left, at_right == on_right
        if left_done:
            first += size_left
            size_left = at_left = on_left = 0
        if right_done:
            last -= size_right
            size_right = at_right = on_right = 0
        room = last - first - size_left - size_right
        if room < 2 * LEAST:
            break
        if left_done:
            size_left = min(BLOCK, room // 2)
            for offset in range(size_left):
                left[on_left] = offset
                on_left += entries[first + offset] >= least
        if right_done:
            size_right = min(BLOCK, room // 2)
            for offset in range(size_right):
                right[on_right] = offset
                on_right += entries[last - 1 - offset] <= most
        pairs = min(on_left - at_left, on_right - at_right)
        for pair in range(pairs):
            _swap(entries, first + left[at_left + pair], last - 1 - right[at_right + pair])
        at_left += pairs
        at_right += pairs
    first += left[at_left] if at_left < on_left else 0
    last -= right[at_right] if at_right < on_right else 0
    return _hoare(entries, first, last, least, most)


@njit
def _insert(entries: Any, first: int, last: int) -> None:
    for place in range(first + 1, last):
        entry, to = entries[place], place
        while to > first and entry & ~INDEX < entries[to - 1] & ~INDEX:
            entries[to] = entries[to - 1]
            to -= 1
        entries[to] = entry


@njit(inline="always")
def _matters(first: int, last: int, cuts: Any) -> bool:
    """Return whether a cut falls inside; True for cuts of None."""
    return True if cuts is None else first < cuts[0] < last or first < cuts[1] < last


@njit
def _sort(entries: Any, cuts: Any, stack: Any, left: Any, right: Any) -> bool:
    """Sort in place; False where the library would continue with a heap.

    With two `cuts`, only so far that each entry is on the side of both on which the library's sort leaves it: a span
    without a cut inside need not be sorted.
    """
    stack[0, 0], stack[0, 1], stack[0, 2] = 0, entries.size, 2 * int(np.log2(max(entries.size, 1)))
    waiting = 1
    while waiting:
        waiting -= 1
        first, last, depth = stack[waiting, 0], stack[waiting, 1], stack[waiting, 2]
        while last - first > FEW and _matters(first, last, cuts):
            if depth == 0:
                return False
            depth -= 1
            _median_to_first(entries, first, last)
            cut = _partition(entries, first + 1, last, entries[first], left, right)
            stack[waiting, 0], stack[waiting, 1], stack[waiting, 2] = cut, last, depth
            waiting += 1
            last = cut
        if last - first <= FEW:
            _insert(entries, first, last)
    return True


@njit
def _buffers() -> Any:
    return np.empty((130, 3), np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)


@compiled
def ranks(keys: Any, flip: Any, row: int, places: Any, out: Any) -> bool:
    """Set ``out[i]`` to ``places[k]`` where entry i is the k-th of its row in the order of the library's sort.

    Parameters
    ----------
    keys, flip
        uint32[n]; the smallest comes first, after the bits of `flip` are flipped.
    row
        Entries of a row, at most 2^32.
    places
        [row], in the dtype of `out`.
    out
        [n].

    Returns
    -------
    bool
        False where the library would sort by a heap, which is left to it: `out` is not filled then.
    """
    stack, left, right = _buffers()
    entries = np.empty(row, u64)
    for start in range(0, keys.size, row):
        for index in range(row):
            entries[index] = u64(keys[start + index] ^ flip) << KEY | u64(index)
        if not _sort(entries, None, stack, left, right):
            return False
        for place in range(row):
            out[start + np.int64(entries[place] & INDEX)] = places[place]
    return True


@compiled
def between(keys: Any, flip: Any, first: int, end: int, out: Any) -> bool:
    """Set ``out[i]`` to 1 where entry i is from the `first` to before the `end`-th in the order of the library's sort.

    Parameters
    ----------
    keys, flip
        As for `ranks`, of one row.
    first, end
        Places.
    out
        uint8[n], all 0.

    Returns
    -------
    bool
        As `ranks` does.
    """
    stack, left, right = _buffers()
    entries = np.empty(keys.size, u64)
    for index in range(keys.size):
        entries[index] = u64(keys[index] ^ flip) << KEY | u64(index)
    if not _sort(entries, (first, end), stack, left, right):
        return False
    for place in range(first, end):
        out[np.int64(entries[place] & INDEX)] = 1
    return True
