"""Places in YAML texts: lines, and numbers that YAML 1.1 reads otherwise than they look."""

from __future__ import annotations

import pytest

from search_spaces.yaml_lines import misread_numbers


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("010", "as 8; write 8 or 10, or '010' in quotes if it is text"),
        ("-0_17", "as -15; write -15 or -17, or"),
        ("1:30", "as 90; write 90, or '1:30' in quotes if it is text"),
        ("1:30.5", "as 90.5; write 90.5, or"),
    ],
)
def test_numbers_that_are_not_what_they_look_like(written: str, read: str) -> None:
    (found,) = misread_numbers(f"a: 1\nb:\n- {{c: 3}}\n- {{c: {written}}}\n")
    assert found.keys == ("b", 1, "c")
    assert found.line == 4
    assert f"YAML reads {written} {read}" in str(found)


@pytest.mark.parametrize(
    "written", ["0", "007", "1_000", ".5", "1e3", "0x10", "0b11", "08", "010.5", "0o10", "'010'", "x:1:30", "{10: 3}"]
)
def test_numbers_that_are_what_they_look_like(written: str) -> None:
    assert not list(misread_numbers(f"a: [{written}]"))
