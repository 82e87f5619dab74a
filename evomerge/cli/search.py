"""`evomerge search` and `evomerge resume`: printing and signals; the search itself is `evomerge.search.api`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from rich.console import Console

from evomerge.cli.printing import console, only_json, print_held_out, print_next
from evomerge.cli.progress import SearchProgress
from evomerge.config.load import located
from evomerge.files.messages import say
from evomerge.runs.result import Result
from evomerge.runs.run import is_run
from evomerge.search.api import default_run, resume_search, run_search


def search(
    config_file: Path, overrides: Sequence[str], path: Path | None, warm_start: Path | None, as_json: bool
) -> None:
    """Create a run and search, from the results of another run if one is given."""
    out = console(stderr=as_json)
    path = path or default_run(config_file)
    with only_json(as_json), _shown(out, path) as progress, located(config_file, overrides):
        result = run_search(
            config_file, path, progress, overrides=overrides, warm_start=warm_start, say=progress.message
        )
    _print_end(path, result, out, as_json)


def resume(path: Path, overrides: Sequence[str], trust_tasks: bool, as_json: bool) -> None:
    """Continue a run; the budget, the workers, the table and places of files may change."""
    out = console(stderr=as_json)
    with only_json(as_json), _shown(out, path) as progress, located(path / "config.yaml", overrides):
        result = resume_search(path, progress, overrides=overrides, trust_tasks=trust_tasks, say=progress.message)
    _print_end(path, result, out, as_json)


@contextmanager
def _shown(out: Console, run: Path) -> Iterator[SearchProgress]:
    """Show a search's progress; end with a sentence and exit code 130 on Ctrl-C or SIGTERM."""
    existed = is_run(run)
    resumable = f"stopped; nothing scored is lost. Continue with: evomerge resume {quote(str(run))}"
    try:
        with SearchProgress(out) as progress:
            yield progress
    except KeyboardInterrupt:
        began = existed or is_run(run)
        out.print(resumable if began else "stopped before the search began; nothing was saved", soft_wrap=True)
        raise SystemExit(130) from None
    except SystemExit:  # nobody reads the output any more, or Ray ends this process
        if existed or is_run(run):
            say(resumable, stderr=True)
        raise


def _print_end(path: Path, result: Result, out: Console, as_json: bool) -> None:
    if as_json:
        print(result.to_json())
        return
    print_held_out(out, result)
    if result.verdict is not None:
        out.print(result.verdict.sentence, soft_wrap=True)
    if result.selection:
        out.print(result.selection)
    print_next(out, path)
