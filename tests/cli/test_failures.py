"""What the command prints about errors: sentences for those of other packages, cut and without control characters."""

import errno
import io
import sys
from pathlib import Path

import pytest

from evomerge.cli import main as command_line
from evomerge.cli.failures import LONGEST_MESSAGE, explained
from evomerge.cli.main import main
from evomerge.cli.printing import console, grid, only_json
from evomerge.config.errors import ConfigError
from evomerge.files.messages import counted, say

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202eevil\u2066\n\rfaked"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J\\u202eevil\\u2066\\n\\rfaked"


def raised(work):
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


def test_errors_of_ours_are_their_lines():
    assert explained(ConfigError("one\ntwo")) == (["one", "two"], 2)
    assert explained(type("SomeError", (RuntimeError,), {"__module__": "evomerge.x"})("it"))[1] == 1


def test_what_others_print_is_not_in_json(capsys):
    for as_json in (True, False):
        with only_json(as_json):
            print(f"json: {as_json}")
    assert capsys.readouterr() == ("json: False\n", "json: True\n")


def test_many_and_long_lines_are_cut():
    lines, _ = explained(ConfigError("\n".join(f"{number} " + "x" * 3000 for number in range(50))))
    assert sum(map(len, lines)) <= LONGEST_MESSAGE + 100
    assert lines[-1] == "... and 49 more mistakes of this kind; fix these first"


def test_control_characters_are_shown_not_sent():
    lines, _ = explained(ConfigError(ESCAPES.replace("\n", "").replace("\r", "")))
    assert lines == [SHOWN.replace("\\n", "").replace("\\r", "")]


def test_errors_of_the_file_system_are_sentences():
    lines, code = explained(raised(lambda: Path("/" + "x" * 300).read_text()))
    assert code == 2 and "File name too long; check the path" in lines[0]
    lines, code = explained(OSError(errno.EACCES, "Permission denied", "/a/b"))
    assert (lines, code) == (["/a/b: Permission denied; check the path, its permissions and its disk"], 1)


def test_errors_of_the_system_say_what_to_do():
    many = "/a/b: Too many open files; raise the number of open files (`ulimit -n 4096`)"
    assert explained(OSError(errno.EMFILE, "Too many open files", "/a/b")) == ([many], 1)
    full = "No space left on device (standard output or a temporary file); free some space"
    assert explained(OSError(errno.ENOSPC, "No space left on device")) == ([full], 1)


def test_errors_of_libraries_name_them():
    from safetensors import safe_open
    from tokenizers import Tokenizer

    for work in (lambda: safe_open(__file__, "pt"), lambda: Tokenizer.from_str("{")):
        assert explained(raised(work))[1] == 1

    def from_hub():
        from huggingface_hub import snapshot_download

        snapshot_download("a/b/c")

    (line,), _ = explained(raised(from_hub))
    assert line.startswith("huggingface_hub refuses: ") and "unexpected" not in line


def test_a_mistake_of_ours_says_so():
    (line,), code = explained(raised(lambda: {}["something"]))
    assert (code, "unexpected KeyError" in line) == (1, True)


def test_memory_that_ran_out():
    (line,), code = explained(MemoryError())
    assert code == 1 and "lower fitness.batch_size" in line


def test_tables_and_lines_show_control_characters(capsys):
    out = console()
    out.print(grid(["name"], [[ESCAPES]]))
    out.print(ESCAPES, soft_wrap=True)
    say(ESCAPES, stderr=True)
    said = capsys.readouterr()
    assert said.out.count(SHOWN) == 2 and said.err == SHOWN + "\n"
    assert "\x1b" not in said.out + said.err


def test_long_cells_are_cut(capsys):
    console().print(grid(["name"], [["x" * 5000]]))
    assert len(capsys.readouterr().out) < 300


def test_log_records_are_lines(caplog):
    import logging

    from evomerge.files.messages import PrintableFormatter

    record = logging.LogRecord("evomerge", logging.ERROR, "", 0, "reason: %s", (ESCAPES,), None)
    assert PrintableFormatter("%(message)s").format(record) == f"reason: {SHOWN}"
    assert command_line.PrintableFormatter is PrintableFormatter


def test_a_name_that_the_terminal_cannot_show_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "ü").mkdir()
    (tmp_path / "ü" / "events.sqlite").touch()
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["evomerge", "runs", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    printed.flush()
    assert not stop.value.code and b"/\\xfc  damaged" in printed.buffer.getvalue()


@pytest.mark.parametrize(("count", "said"), [(1, "1 recipe"), (0, "0 recipes"), (1200, "1,200 recipes")])
def test_one_thing_has_no_plural(count, said):
    assert counted(count, "recipe") == said
