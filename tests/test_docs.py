"""Pages name files and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
    ROOT / "experiments" / "README.md",
]
OURS = ("evomerge/", "search_spaces/", "fitness/", "tests/", "experiments/", "examples/", "docs/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    paths = [path for path in re.findall(r"`([\w./-]+)`", text) if path.startswith(OURS) and "NAME" not in path]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    pages += [f"api/{page.name}" for page in (ROOT / "docs" / "api").glob("*.md")]
    assert not [page for page in pages if f"({page})" not in index]


def test_every_page_of_the_field_is_in_the_comparison() -> None:
    comparison = (ROOT / "docs" / "field" / "comparison.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs" / "field").glob("*.md") if page.name != "comparison.md"]
    assert len(pages) > 5
    assert not [page for page in pages if f"({page})" not in comparison]
