"""One-line texts about other code's errors."""

from evomerge.files.messages import LONGEST, nearest, one_line, reason


def test_lines_are_joined():
    error = ValueError("first\n  second")
    assert one_line(error) == "ValueError: first second"
    assert reason(error) == "first second"


def test_an_error_without_a_text():
    assert one_line(KeyError()) == "KeyError: no message"
    assert reason(KeyError()) == "KeyError"


def test_long_texts_are_cut():
    assert reason(ValueError("x" * LONGEST)) == "x" * LONGEST
    assert reason(ValueError("x" * (LONGEST + 1))) == "x" * LONGEST + " ..."


def test_the_nearest_name():
    assert nearest("tie", ["linear", "ties"]) == "ties"
    assert nearest("xyz", ["linear", "ties"]) is None
    assert nearest(3, ["linear"]) is None
