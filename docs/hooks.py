"""The site has the repository's own layout, so that a link between pages works in both.

mkdocs wants all pages in one folder; ours lie where they belong, in `docs/`, beside each experiment and at the top.
This hook gives mkdocs every page under its place in the repository, the notebook as a page, and the files that pages
link to.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()([^)#\s]+)([^)\s]*)(?=[^)]*\))")
"""What a link of a page leads to, and the place in it."""
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
NOTEBOOK = "docs/notebook.ipynb"


def pages() -> list[str]:
    """Return the pages of the repository, relative to it."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    found += [*(ROOT / "experiments").glob("README.md"), *(ROOT / "experiments").glob("*/README.md")]
    return sorted(page.relative_to(ROOT).as_posix() for page in [*found, *(ROOT / "examples").glob("*/README.md")])


def links(page: str, text: str) -> set[str]:
    """Return the files and folders that a page's links lead to, relative to the repository."""
    given = [match[1] for part in CODE.split(text)[::2] for match in LINK.finditer(part)]
    return {
        normpath(join(dirname(page), link)) for link in given if "://" not in link and not link.startswith("mailto:")
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give mkdocs all pages and what they link to."""
    placed = Files([file for file in files if file.src_dir != config.docs_dir])  # the theme's
    known = pages()
    for page in known:
        placed.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    placed.append(File.generated(config, "docs/notebook.md", content=notebook_page(ROOT / NOTEBOOK)))
    linked = {link for page in known for link in links(page, (ROOT / page).read_text(encoding="utf-8"))}
    for link in sorted(linked - set(known)):
        if (ROOT / link).is_file():
            placed.append(File.generated(config, link, abs_src_path=str(ROOT / link)))
    return placed


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a link to a folder to its README, and one to the notebook to its page."""
    place = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2]
        target = normpath(join(dirname(place), link))
        if "://" in link:
            return match[0]
        if target == NOTEBOOK:
            return link.replace(".ipynb", ".md") + anchor
        folder = (ROOT / target).is_dir()
        return join(link, "README.md") + anchor if folder and (ROOT / target / "README.md").is_file() else match[0]

    parts = CODE.split(markdown)
    return "".join(part if at % 2 else LINK.sub(lead, part) for at, part in enumerate(parts))


def notebook_page(file: Path) -> str:
    """Return a notebook as a page: its texts, its cells, and their printed outputs."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [f"```text\n{printed}\n```" for printed in map(_printed, cell.get("outputs", [])) if printed]
    return "\n\n".join(parts) + "\n"


def _printed(output: dict[str, Any]) -> str:
    return "".join(output.get("text", [])).rstrip()
