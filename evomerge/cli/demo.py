"""`evomerge demo`: from nothing to a merged model, on four tiny models, by the commands that a user would type."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

from evomerge.cli.printing import duration
from evomerge.demo.files import SEARCH_FILE, write_files
from evomerge.files.messages import say
from evomerge.runs.run import is_run

ABOUT = (
    "This merges four models of 0.7 M parameters, on the processor and without a network.",
    "A base and three experts: ops knows list operations in English; ja and eo",
    "read Japanese and Esperanto. The target is a skill that none of them has: list",
    "operations, asked in Japanese and Esperanto.",
)
PRODUCTS = (
    (SEARCH_FILE, "what was searched; change it and search again"),
    ("run/report.html", "the run as one page; open it in a browser"),
    ("recipe.yaml", "what is merged, and how"),
    ("merged/", "the merged model; transformers loads it"),
    ("models/, tasks/", "what the search began with"),
)
NEXT = (
    "evomerge init --models BASE EXPERT EXPERT --tasks TASK   # writes search.yaml",
    "evomerge plan search.yaml                                # prints the expected cost",
    "evomerge search search.yaml",
)
"""The commands for models of one's own; TASK is a task of lm-eval."""


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes
    ----------
    sentence
        What the command does.
    arguments
        The command line after `evomerge`.
    writes
        The folder that the command makes, where it refuses one that is there: then the step was done before.
    """

    sentence: str
    arguments: Sequence[str]
    writes: Path | None = None


def demo(folder: Path, seed: int | None, run_command: Callable[[Sequence[str]], None]) -> None:
    """Write the demo's files to a folder, then search, report, export, merge and evaluate there.

    Parameters
    ----------
    folder
        A new or empty folder, or one of an earlier demo, which continues.
    seed
        Seed of the search; None: the search file's.
    run_command
        Runs a command line of evomerge, given without the program's name.

    Raises
    ------
    DemoError
        If the folder holds something else.
    """
    started = time.monotonic()
    for line in ABOUT:
        say(line)
    write_files(folder)
    steps = _steps(folder, seed)
    try:
        for number, step in enumerate(steps, start=1):
            say(f"\n[{number}/{len(steps)}] {step.sentence}")
            say(f"$ evomerge {join(step.arguments)}")
            if step.writes is not None and step.writes.exists():
                say(f"{step.writes} exists already")
            else:
                run_command(step.arguments)
    except (KeyboardInterrupt, SystemExit):
        say(f"or continue the whole demo: evomerge demo {quote(str(folder))}")
        raise
    say(f"\ndone in {duration(time.monotonic() - started)}; {folder} holds")
    for name, what in PRODUCTS:
        say(f"  {name:<16} {what}")
    say("\nnext, with your own models:")
    for line in NEXT:
        say(f"  {line}")


def _steps(folder: Path, seed: int | None) -> list[Step]:
    run, recipe, merged = (str(folder / name) for name in ("run", "recipe.yaml", "merged"))
    seeded = [] if seed is None else ["--set", f"seed={seed}"]
    search = Step(
        "Search, then score the result and its alternatives on items not seen before.",
        ["search", str(folder / SEARCH_FILE), "--run", run, *seeded],
    )
    resume = Step("Continue the search where it stopped.", ["resume", run, *seeded])
    return [
        resume if is_run(folder / "run") else search,
        Step("Write the run as one HTML page.", ["report", run]),
        Step("Write the recipe that was found.", ["export", run, "-o", recipe]),
        Step("Write the model that the recipe describes.", ["merge", recipe, merged], folder / "merged"),
        Step("Score that model on the held-out items, as the table did.", ["evaluate", merged, "--like", run]),
    ]
