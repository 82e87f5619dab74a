"""Packed rows and common prefixes: what they contain, and that every sequence can be read from them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fitness.scoring.prefix_tree import PACK_SLOTS, Group, Row, Tokens, owners, separate, share

few = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)  # few tokens: many shared beginnings


def size(groups: list[Group]) -> int:
    return sum(len(group.prefix) + sum(len(row.tokens) for row in group.rows) for group in groups)


def ancestors(row: Row, slot: int) -> list[int]:
    """The definition in the module's head."""
    return [at for at in range(slot + 1) if slot < row.end[at]]


def words(rng: random.Random, count: int) -> Tokens:
    return tuple(rng.randrange(1000) for _ in range(count))


def questions(rng: random.Random, prefix: Tokens, count: int, *, context: int, choice: int) -> dict[Tokens, int]:
    """Questions with four choices behind a prefix, with the first positions whose logits are read."""
    found = {}
    for _ in range(count):
        question = prefix + words(rng, context)
        found.update({question + words(rng, choice): len(question) - 1 for _ in range(4)})
    return found


@given(
    st.dictionaries(few, st.integers(0, 13), min_size=1, max_size=25),
    st.lists(few, max_size=2),
    st.integers(0, 400),
)
def test_every_sequence_is_read_from_its_row(reads: dict[Tokens, int], heads: list[Tokens], length: int) -> None:
    owner = owners(list(reads))
    long = tuple(n % 5 for n in range(length))  # so long that a prefix pays
    first_read = {
        long * (at % 2) + head + tokens: len(long) * (at % 2) + min(read, len(tokens) - 1)
        for head in heads or [()]
        for at, (tokens, read) in enumerate(reads.items())
        if owner[tokens] == tokens
    }
    owner = owners(list(first_read))
    first_read = {tokens: read for tokens, read in first_read.items() if owner[tokens] == tokens}
    groups = share(first_read)
    seen = []
    for group in groups:
        for row in group.rows:
            for tokens, path in row.paths.items():
                seen.append(tokens)
                assert group.prefix + tuple(row.tokens[slot] for slot in path) == tokens
                assert [row.position[slot] for slot in path] == list(range(len(group.prefix), len(tokens)))
                assert ancestors(row, path[-1]) == list(path)
                assert first_read[tokens] >= len(group.prefix)
    assert sorted(seen) == sorted(first_read)
    assert size(groups) <= size(separate(list(first_read)))
    assert sum(not group.prefix for group in groups) <= 1


@given(st.lists(few, min_size=1, max_size=30))
def test_an_owner_begins_with_what_it_owns(sequences: list[Tokens]) -> None:
    owner = owners(sequences)
    for tokens in sequences:
        longest = owner[tokens]
        assert longest[: len(tokens)] == tokens
        assert owner[longest] == longest
    rows = set(owner.values())
    assert not any(a != b and b[: len(a)] == a for a in rows for b in rows)


def test_choices_are_packed_behind_their_question() -> None:
    (group,) = share(questions(random.Random(0), (), 5, context=20, choice=6))
    assert group.prefix == ()
    assert [len(row.tokens) for row in group.rows] == [20 + 4 * 6] * 5


def test_few_shot_examples_are_read_once() -> None:
    rng = random.Random(0)
    shots = words(rng, 300)
    (group,) = share(questions(rng, shots, 20, context=40, choice=6))
    assert group.prefix == shots
    assert [len(row.tokens) for row in group.rows] == [40 + 4 * 6] * 20


def test_each_task_has_its_own_examples() -> None:
    rng = random.Random(0)
    description = words(rng, 10)
    shots = [description + words(rng, 300) for _ in range(3)]
    loose = questions(rng, description, 3, context=20, choice=4)
    many = {
        tokens: read for prefix in shots for tokens, read in questions(rng, prefix, 20, context=40, choice=6).items()
    }
    first, *others = share(many | loose)
    assert first.prefix == ()
    assert {tokens for row in first.rows for tokens in row.paths} == set(loose)
    assert sorted(group.prefix for group in others) == sorted(shots)


def test_a_passage_is_packed_with_its_few_questions() -> None:
    rng = random.Random(0)
    (group,) = share(questions(rng, words(rng, 200), 3, context=15, choice=5))
    assert [len(row.tokens) for row in group.rows] == [200 + 3 * (15 + 4 * 5)]


def test_rows_stay_short() -> None:
    """Attention is quadratic: so many questions on a passage get rows of their own behind it."""
    rng = random.Random(0)
    passage = words(rng, 200)
    (group,) = share(questions(rng, passage, 60, context=15, choice=5))
    assert group.prefix == passage
    assert max(len(row.tokens) for row in group.rows) <= PACK_SLOTS


def test_a_prefix_does_not_reach_what_is_read() -> None:
    rng = random.Random(0)
    prompt = words(rng, 400)  # the same for all, with long answers
    answers = {prompt + words(rng, 900): 399 for _ in range(4)}
    (group,) = share(answers)
    assert group.prefix == prompt[:399]


def test_deep_trees_end() -> None:
    """A branch at each of 500 positions, as a conversation that grows by one turn per item has."""
    trunk = words(random.Random(0), 500)
    reads = {(*trunk[:at], 1000): at - 1 for at in range(1, 500)}
    assert {tokens for group in share(reads) for row in group.rows for tokens in row.paths} == set(reads)
