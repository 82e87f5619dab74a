"""Another `fitness` or `search_spaces` on the path is named, in one line, however evomerge is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def started(*arguments: str, first: Path, cwd: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join(map(str, (first, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )


@pytest.mark.parametrize("name", ["fitness", "search_spaces"])
@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize(
    "start",
    [("-m", "evomerge", "--version"), ("-c", "import evomerge"), ("-c", "from evomerge.runs.run import Run")],
    ids=["command", "import", "submodule"],
)
def test_the_other_one_is_named(tmp_path, name, kind, start):
    other = tmp_path / "elsewhere" / (name if kind == "package" else f"{name}.py")
    made = other / "__init__.py" if kind == "package" else other
    made.parent.mkdir(parents=True)
    made.write_text("raise SystemExit('imported')", encoding="utf-8")
    done = started(*start, first=tmp_path / "elsewhere", cwd=tmp_path)
    assert done.returncode == 1
    line, *more = done.stderr.splitlines()
    assert not more
    assert line.startswith("evomerge: ") and str(other) in line and str(ROOT / name) in line


def test_a_folder_without_code_hides_nothing(tmp_path):
    """Python prefers a real package to a folder of the same name, such as one for a project's results."""
    (tmp_path / "fitness").mkdir()
    assert started("-m", "evomerge", "--version", first=tmp_path, cwd=tmp_path).returncode == 0


def test_the_error_can_be_caught_and_other_errors_keep_their_traceback(tmp_path):
    (tmp_path / "fitness.py").touch()
    code = (
        "try:\n    import evomerge\nexcept ImportError as error:\n    assert error.name == 'fitness'\n"
        "    raise RuntimeError('caught') from None"
    )
    done = started("-c", code, first=tmp_path, cwd=tmp_path)
    assert done.stderr.startswith("Traceback") and "RuntimeError: caught" in done.stderr


def test_one_that_was_imported_before_is_named(tmp_path):
    (tmp_path / "fitness.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fitness; del sys.path[0]; import evomerge"
    done = started("-c", code, first=ROOT, cwd=ROOT)
    assert done.returncode == 1 and str(tmp_path / "fitness.py") in done.stderr
