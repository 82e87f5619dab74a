"""Common prefixes of token sequences: which rows to send to a model so that shared prefixes are read once.

Two ways to share, chosen by the number of tokens to read:

- *Packing*: sequences that branch late (the choices of a question, the questions about a passage) become one row, in
  the depth-first order of their tree. Slot j is an ancestor of slot i exactly if ``j <= i < end[j]``.
- *A common prefix*: rows with the same prefix (few-shot examples) form a group; the prefix is read once, and all rows
  use its keys and values.

Plain Python on tuples; independent of any model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = tuple[int, ...]
Path = tuple[int, tuple[int, ...]]
"""A row, and slots in it."""

PASS_COST = 128  # cost of one more forward pass, in tokens
PREFIX_COST = 0.8  # a prefix is used if at most this share of the tokens remains, because it is copied for each row
PACK_COST = 0.9  # prompts are packed if at most this share of the tokens remains, because packing needs a mask
PACK_SHARE = 0.25  # sequences are packed if they share at least this fraction of the longest one, ...
PACK_SHARED = 4  # ... at least this many tokens, ...
PACK_SLOTS = 512  # ... and the row has at most this many slots (or twice the longest sequence): attention is quadratic
SHORT_ROW = 64  # prompts that share little are packed into rows of at most so many slots
DEEPEST = 64  # nested branchings considered; far more than prompts have


@dataclass(frozen=True)
class Row:
    """Sequences that branch from each other, as one list of S slots without the group's prefix.

    Attributes
    ----------
    tokens
        Token of each slot.
    position
        Position of each slot in its sequence, the prefix included.
    end
        For each slot, the slot after its last descendant.
    paths
        For each sequence of the row, its slots.
    """

    tokens: Tokens
    position: tuple[int, ...]
    end: tuple[int, ...]
    paths: dict[Tokens, tuple[int, ...]]

    @property
    def branches(self) -> bool:
        """Whether it has more than one sequence."""
        return len(self.paths) > 1


@dataclass(frozen=True)
class Group:
    """Rows that follow the same prefix, which may be empty."""

    prefix: Tokens
    rows: tuple[Row, ...]


def owners(sequences: Sequence[Tokens]) -> dict[Tokens, Tokens]:
    """Map each sequence to the longest one that starts with it; in sorted order, those follow directly."""
    ordered = sorted(set(sequences))
    owner = {tokens: tokens for tokens in ordered}
    for tokens, longer in zip(reversed(ordered[:-1]), reversed(ordered[1:]), strict=True):
        if longer[: len(tokens)] == tokens:
            owner[tokens] = owner[longer]
    return owner


def separate(sequences: Sequence[Tokens]) -> list[Group]:
    """Give every sequence its own row."""
    return [Group((), tuple(_row([tokens], [0], 0) for tokens in sorted(set(sequences))))]


def rows_behind(prefix: int, sequences: Sequence[Tokens], *, widest: int) -> tuple[list[Row], list[Path]]:
    """Return rows for sequences behind a common prefix, and each sequence's row and slots.

    Parameters
    ----------
    prefix
        Length of the prefix, which is part of the sequences; 0: there is none.
    sequences
        Token sequences longer than the prefix.
    widest
        Most slots of a row in which sequences branch from each other, where that saves enough tokens; 0: none do.
    """
    owner = owners(sequences)
    leaves = sorted(set(owner.values()))
    rows = _packed(prefix, leaves, widest) if widest > 0 else _alone(prefix, leaves)
    place = {leaf: (at, path) for at, row in enumerate(rows) for leaf, path in row.paths.items()}
    places = [place[owner[tokens]] for tokens in sequences]
    return rows, [(at, path[: len(one) - prefix]) for one, (at, path) in zip(sequences, places, strict=True)]


def _alone(prefix: int, leaves: Sequence[Tokens]) -> list[Row]:
    rows = []
    for leaf in leaves:
        size = len(leaf) - prefix
        rows.append(Row(leaf[prefix:], tuple(range(prefix, len(leaf))), (size,) * size, {leaf: tuple(range(size))}))
    return rows


def _packed(prefix: int, leaves: Sequence[Tokens], widest: int) -> list[Row]:
    """Neighbours share a row if they share a token, and the row is short or they share much of their tokens."""
    common = [0, *(common_beginning(*pair) for pair in pairwise(leaves))]
    starts, sizes = [0], [len(leaves[0]) - prefix]
    for at in range(1, len(leaves)):
        own, shared = len(leaves[at]) - prefix, common[at] - prefix
        most = max(SHORT_ROW, min(PACK_SLOTS, 4 * own)) if shared >= PACK_SHARE * own else SHORT_ROW
        if shared > 0 and sizes[-1] + own - shared <= min(most, widest):
            sizes[-1] += own - shared
        else:
            starts.append(at)
            sizes.append(own)
    alone = len(leaves) * (max(map(len, leaves)) - prefix)
    if len(sizes) * max(sizes) > PACK_COST * alone:
        return _alone(prefix, leaves)
    ends = [*starts[1:], len(leaves)]
    return [_row(leaves[lo:hi], [prefix, *common[lo + 1 : hi]], prefix) for lo, hi in zip(starts, ends, strict=True)]


def share(first_read: dict[Tokens, int]) -> list[Group]:
    """Group sequences so that few tokens have to be read.

    Parameters
    ----------
    first_read
        Sequences, none of which is a prefix of another, with the first position at which each one's logits are read.
        That position is never inside a prefix.

    Returns
    -------
    groups
        Each sequence is in exactly one row of one group. At most one group, the first, has no prefix.
    """
    return _Tree(first_read).groups() if first_read else []


Range = tuple[int, int]  # of sorted sequences


class _Tree:
    """Sorted sequences with the lengths of the prefixes that neighbours share: a radix tree, as ranges."""

    def __init__(self, first_read: dict[Tokens, int]) -> None:
        self.leaves = sorted(first_read)
        self.first_read = [first_read[leaf] for leaf in self.leaves]
        self.lengths = [len(leaf) for leaf in self.leaves]
        self.common = [0, *(common_beginning(*pair) for pair in pairwise(self.leaves))]  # with the previous leaf
        self.new = [0]  # tokens that the leaves before this one add
        for length, common in zip(self.lengths, self.common, strict=True):
            self.new.append(self.new[-1] + length - common)

    def groups(self) -> list[Group]:
        alone: list[Range] = []
        groups = []
        for prefix, rows in self._groups((0, len(self.leaves)), DEEPEST)[1]:
            if prefix:
                groups.append(self._group(prefix, rows))
            else:
                alone.extend(rows)
        return [self._group(0, alone), *groups] if alone else groups

    def _group(self, prefix: int, rows: Sequence[Range]) -> Group:
        built = (_row(self.leaves[lo:hi], [prefix, *self.common[lo + 1 : hi]], prefix) for lo, hi in rows)
        return Group(self.leaves[rows[0][0]][:prefix], tuple(built))

    def _groups(self, leaves: Range, depth: int) -> tuple[int, list[tuple[int, list[Range]]]]:
        """The cheaper of one prefix for all these leaves and the best groups below, with its cost in tokens."""
        if self._packs(leaves, 0) or depth == 0:
            rows = self._rows(leaves, 0, depth)
            return self._cost(rows, 0), [(0, rows)]
        below, groups = 0, []
        for child in self._children(leaves):
            cost, best = self._groups(child, depth - 1)
            below += cost
            groups += best
        prefix = min(self._branching(leaves), *self.first_read[slice(*leaves)])
        if prefix * (leaves[1] - leaves[0] - 1) > PASS_COST:  # else it saves less than its forward pass costs
            rows = self._rows(leaves, prefix, depth)
            cost = PASS_COST + prefix + self._cost(rows, prefix)
            if cost <= PREFIX_COST * below:
                return cost, [(prefix, rows)]
        return below, groups

    def _rows(self, leaves: Range, prefix: int, depth: int) -> list[Range]:
        if self._packs(leaves, prefix):
            return [leaves]
        if depth == 0:
            return [(at, at + 1) for at in range(*leaves)]
        return [row for child in self._children(leaves) for row in self._rows(child, prefix, depth - 1)]

    def _packs(self, leaves: Range, prefix: int) -> bool:
        if leaves[1] - leaves[0] == 1:
            return True
        shared = self._branching(leaves) - prefix
        longest = max(self.lengths[slice(*leaves)]) - prefix
        if shared < max(PACK_SHARED, PACK_SHARE * longest):
            return False
        return self._slots(leaves) - prefix <= max(PACK_SLOTS, 2 * longest)

    def _branching(self, leaves: Range) -> int:
        """Length of the prefix that the leaves (at least two) share."""
        return min(self.common[leaves[0] + 1 : leaves[1]])

    def _children(self, leaves: Range) -> Iterator[Range]:
        depth, start = self._branching(leaves), leaves[0]
        for at in range(leaves[0] + 1, leaves[1]):
            if self.common[at] == depth:
                yield start, at
                start = at
        yield start, leaves[1]

    def _slots(self, leaves: Range) -> int:
        return self.lengths[leaves[0]] + self.new[leaves[1]] - self.new[leaves[0] + 1]

    def _cost(self, rows: Sequence[Range], prefix: int) -> int:
        return sum(self._slots(row) - prefix for row in rows)


def common_beginning(one: Tokens, other: Tokens) -> int:
    """Return the length of the prefix that two sequences share."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


def _row(leaves: Sequence[Tokens], common: Sequence[int], prefix: int) -> Row:
    """The depth-first order of sorted leaves, each of which shares `common` tokens with the previous one."""
    tokens: list[int] = []
    position: list[int] = []
    end: list[int] = []
    path: list[int] = []
    paths: dict[Tokens, tuple[int, ...]] = {}
    for leaf, shared in zip(leaves, common, strict=True):
        size = len(tokens)
        for slot in path[shared - prefix :]:
            end[slot] = size
        path[shared - prefix :] = range(size, size + len(leaf) - shared)
        tokens += leaf[shared:]
        position += range(shared, len(leaf))
        end += [0] * (len(leaf) - shared)
        paths[leaf] = tuple(path)
    for slot in path:
        end[slot] = len(tokens)
    return Row(tuple(tokens), tuple(position), tuple(end), paths)
