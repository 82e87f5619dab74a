"""The documentation as a site: it builds without warnings and without a network, and what its pages show runs."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command import evomerge, execute

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS = re.compile(r"(<!-- not run here: [^>]+ -->\n)?```bash\n(.*?)```", re.DOTALL)
RUN_HERE = ("tutorial.md", "own-models.md")
RUN_ELSEWHERE = ("data.md",)
"""Pages whose commands another test runs, which names the page."""


def commands(page: str) -> list[str]:
    """Return the commands of a page that are not marked as impossible here."""
    found = COMMANDS.findall((DOCS / page).read_text(encoding="utf-8"))
    return [line for mark, text in found if not mark for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with nothing in it but the repository's experiments."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return tmp_path


def test_the_commands_of_every_page_are_run_or_marked():
    run = {line for page in (*RUN_HERE, *RUN_ELSEWHERE) for line in commands(page)}
    shown = {line for page in PAGES for line in commands(str(page.relative_to(DOCS)))}
    assert shown == run


@pytest.mark.parametrize("page", RUN_ELSEWHERE)
def test_the_commands_of_the_other_pages_are_run_by_a_test_that_names_the_page(page):
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(f'"{page}"' in path.read_text(encoding="utf-8") for path in tests)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_the_commands_run_in_order(page, folder):
    lines = commands(page)
    assert len(lines) >= 5
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "evomerge"
        evomerge(*arguments, cwd=folder)


@pytest.mark.slow
def test_the_notebook_runs(folder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    printed = execute("\n".join(cells), folder)
    assert "held-out: " in printed and "uniform average" in printed and "merge_method" in printed
    assert (folder / "search.png").stat().st_size > 10_000


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")]


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            (value,) = entry.values()
            yield from pages(value) if isinstance(value, list) else [value]

    listed = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= listed


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # what the theme says about another version
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in set(site.rglob("*.html")) - {site / "404.html"}:  # that one has no place of its own
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"#]+)"', text)
        assert any(place.endswith(".css") for place in fetched), page
        missing = [place for place in fetched if not (page.parent / place.split("?")[0]).exists()]
        assert not missing, page  # a place elsewhere does not exist here
    api = (site / "docs" / "api" / "search.html").read_text(encoding="utf-8")
    assert "Search for the best merge of some models" in api
    notebook = re.sub("<[^>]+>", "", (site / "docs" / "notebook.html").read_text(encoding="utf-8"))
    assert "evomerge.search(config" in notebook


def messages() -> str:
    """Return all texts of the code, with `...` for what is put into them."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        return "".join(text(part) if isinstance(part, ast.Constant) else "..." for part in node.values)

    found = []
    for package in ("evomerge", "fitness", "search_spaces"):
        for file in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            found += [text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]
    return "\n".join(found).replace("`", "")


def test_the_messages_on_the_page_of_errors_are_those_of_the_code():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\*\*`(.+?)`\.\*\*$", page, re.MULTILINE)
    assert len(shown) > 20
    code = messages()
    parts = {part.strip(" ;:,(") for line in shown for part in line.split("...")}
    assert not [part for part in parts if len(part) > 3 and part not in code]
