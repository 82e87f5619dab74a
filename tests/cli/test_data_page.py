"""Every command of the page on data runs, in order, on a finished run."""

import re
import shlex
import shutil
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_commands_run_in_order(finished, tmp_path, evomerge):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "evomerge"
        evomerge(*arguments, cwd=tmp_path)
