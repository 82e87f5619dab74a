"""One-line texts about other code's errors."""

from evomerge.files.messages import LONGEST, one_line, reason


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
