"""Every command of the page on data runs, in order, on a finished run."""

import re
import shlex
import shutil
from pathlib import Path

from tests.command import execute

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_is_run_here():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_the_commands_run_in_order(finished, tmp_path, evomerge):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    lines = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "evomerge"
        evomerge(*arguments, cwd=tmp_path)


def test_the_programs_run(finished):
    for program in [block for language, block in BLOCKS if language == "python"]:
        assert "gene." in execute(program, cwd=finished[0])
