"""``python -m experiments.audit`` recomputes all published figures and prints those that differ or follow from nothing.

Tables and figures of an experiment's README, and figures that other pages quote, are made again from the committed
results. What is left in sentences must be a setting or be published elsewhere, and say so. It needs no model and takes
seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from experiments.harness import FIGURE, Experiment, with_figures

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"


def experiments() -> list[Experiment]:
    """Return every experiment that has results."""
    found = []
    for folder in sorted(path.parent for path in FOLDER.glob("*/__init__.py")):
        for file in sorted(folder.glob("*.py")):
            if re.search(r"^EXPERIMENT = ", file.read_text(encoding="utf-8"), re.MULTILINE):
                experiment: Experiment = import_module(f"experiments.{folder.name}.{file.stem}").EXPERIMENT
                if (experiment.folder / experiment.file).exists():
                    found.append(experiment)
    return found


def pages() -> list[Path]:
    """Return the pages that a reader sees, without the experiments' own."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", FOLDER / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def figures_of(experiment: Experiment) -> Mapping[str, str]:
    """Return the figures of an experiment by name."""
    return experiment.figures(experiment.read(experiment.folder)) if experiment.figures is not None else {}


def differences() -> Iterator[str]:
    """Yield a line for each table or figure that does not follow from the results."""
    quoted: dict[str, str] = {}
    for experiment in experiments():
        name = experiment.folder.name
        figures = figures_of(experiment)
        quoted |= {f"{name}.{key}": figure for key, figure in figures.items()}
        readme = experiment.folder / "README.md"
        text = readme.read_text(encoding="utf-8")
        yield from _changed(readme, text, experiment.filled(text, experiment.read(experiment.folder)))
    for page in pages():
        text = page.read_text(encoding="utf-8")
        yield from _changed(page, text, with_figures(text, quoted))
    local = {name.split(".", 1)[0]: set[str]() for name in quoted}
    for name in quoted:
        local[name.split(".", 1)[0]].add(name.split(".", 1)[1])
    for page in [*pages(), *sorted(FOLDER.glob("*/README.md"))]:
        own = local.get(page.parent.name, set()) if page.parent.parent == FOLDER else set(quoted)
        for found in FIGURE.finditer(re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))):
            if found["name"] not in own:
                yield f"{page.relative_to(ROOT)}: no experiment makes a figure called {found['name']}"


def _changed(page: Path, old: str, new: str) -> Iterator[str]:
    for number, (before, after) in enumerate(zip(old.splitlines(), new.splitlines(), strict=False), start=1):
        if before != after:
            yield f"{page.relative_to(ROOT)}:{number}: is {before.strip()!r}, follows as {after.strip()!r}"
    if len(old.splitlines()) != len(new.splitlines()):
        yield f"{page.relative_to(ROOT)}: has {len(old.splitlines())} lines, {len(new.splitlines())} follow"


CHECKED = re.compile(
    r"<!-- (?P<mark>(?!given|figure)\w+) -->.*?<!-- /(?P=mark) -->"  # generated
    r"|<!-- (?:figure [\w.-]+|given) -->.*?<!-- / -->"
    r"|```.*?```|`[^`\n]*`"  # code
    r"|^    .*?$"
    r"|\]\([^)]*\)",  # links
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d+\.\d+|\d+ ?%|±|\d times|\d of \d")
"""What looks like a measurement: counts and sizes do not."""
VERSION = re.compile(
    r"(?:Python|torch|mergekit|numba|transformers|lm-eval|jax|[Aa]pache|arXiv:?|numpy)[- ]?\d[\d.+\w]*"
)


SHARE = re.compile(r"\d ?%|± ?\d|\d times|\d of \d")
"""What looks like a measurement in a page of documentation, where most decimals are settings."""


def unchecked() -> Iterator[str]:
    """Yield each line of a page with a number that follows from no results and is not given."""
    own = [(page, NUMBER) for page in sorted(FOLDER.glob("*/README.md"))]
    for page, pattern in [*own, *((page, SHARE) for page in pages() if page.name != "reference.md")]:
        text = page.read_text(encoding="utf-8")
        kept = CHECKED.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        for number, line in enumerate(kept.splitlines(), start=1):
            if pattern.search(VERSION.sub("", line)):
                yield f"{page.relative_to(ROOT)}:{number}: {line.strip()}"


SAID = {
    "the command": r"python -m experiments",
    "seeds": r"[Ss]eed",
    "the machine": r"[Mm]achine",
    "the date": r"20\d\d-\d\d-\d\d",
    "what was tuned": r"tuned|picked|tried on",
}
"""What the README of an experiment with results says about how they were made."""


def unsaid() -> Iterator[str]:
    """Yield a line for each thing that an experiment's README leaves out about how its results were made."""
    for folder in sorted({experiment.folder for experiment in experiments() if experiment.tables is not None}):
        text = (folder / "README.md").read_text(encoding="utf-8")
        for what, pattern in SAID.items():
            if not re.search(pattern, text):
                yield f"{(folder / 'README.md').relative_to(ROOT)}: does not say {what}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what differs and what is unchecked; return 1 if there is any."""
    del arguments
    wrong, loose = [*differences(), *unsaid()], list(unchecked())
    for line in wrong:
        print(line)
    for line in loose:
        print(f"{line}  (follows from no results: mark it as given, make it a figure, or remove it)")
    found = experiments()
    print(
        f"{len(found)} experiments, {sum(len(figures_of(e)) for e in found)} figures in sentences: "
        f"{len(wrong)} differ, {len(loose)} lines follow from nothing"
    )
    return 1 if wrong or loose else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
