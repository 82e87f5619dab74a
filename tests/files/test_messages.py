"""One-line texts about other code's errors."""

import io
import sys
from pathlib import Path

import pytest

from evomerge.files.messages import LONGEST, nearest, one_line, print_file, printable, reason


def test_lines_are_joined():
    error = ValueError("first\n  second")
    assert one_line(error) == "ValueError: first second"
    assert reason(error) == "first second"


def test_an_error_without_a_text():
    assert one_line(KeyError()) == "KeyError: no message"
    assert reason(KeyError()) == "KeyError"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "None there", "/a/b"), OSError("None there: '/a/b'")])
def test_a_file_is_named_once(error):
    """Python's errors of files have the name as an attribute, those of compiled packages in their text."""
    assert reason(error, Path("/a/b")) == "None there"
    assert "/a/b" in reason(error)
    assert "/a/b" in reason(error, "/a/other")
    assert reason(ValueError("a choice is empty: ''")) == "a choice is empty: ''"


def test_long_texts_are_cut():
    assert reason(ValueError("x" * LONGEST)) == "x" * LONGEST
    assert reason(ValueError("x" * (LONGEST + 1))) == "x" * LONGEST + " ..."


def test_the_nearest_name():
    assert nearest("tie", ["linear", "ties"]) == "ties"
    assert nearest("xyz", ["linear", "ties"]) is None
    assert nearest(3, ["linear"]) is None
    assert nearest("cma", ["map", "cma_es"]) == "cma_es"  # which begins so


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本 \u3000 \xa0 😀", "plain ä 日本 \u3000 \xa0 😀"),
        ("\x1b[31m\x00\x7f\x9b", "\\x1b[31m\\x00\\x7f\\x9b"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\udc80\U000e0041", "\\udc80\\U000e0041"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown(text, shown):
    assert printable(text) == shown


def test_long_texts_keep_both_ends():
    text = printable("a" * 5000 + "b" * 5000, 90)
    assert text == "a" * 60 + " ... " + "b" * 30
    assert printable("a\nb", keep="\n") == "a\nb"


def test_a_file_is_printed_in_utf_8_whatever_the_locale(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    print_file("model: /ü\n")
    assert printed.getvalue().decode() == "model: /ü\n"
