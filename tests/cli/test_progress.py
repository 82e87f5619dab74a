"""What a search and `status --watch` show while it runs: on a terminal of 80 columns, without colour, and in pipes."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console

from evomerge.cli import watch
from evomerge.cli.progress import SearchProgress
from evomerge.cli.status import summarised
from evomerge.config.search_file import BudgetConfig
from evomerge.runs.bill import Bill, Line
from evomerge.runs.history import STAGES, RunHistory
from evomerge.runs.run import Run
from evomerge.search.forecast.progress import OPENING, Progress

BILL = Bill(40, {name: Line(4, 100, 100, 100) for name in STAGES})
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(states, **options):
    """Return what the progress of some states prints."""
    out = io.StringIO()
    with SearchProgress(Console(file=out, width=80, highlight=False, **options)) as progress:
        for state in states:
            progress(state)
    return out.getvalue()


@pytest.fixture(scope="module")
def events(finished):
    with Run.read(finished[0] / "run") as run:
        return list(run.events())


@pytest.fixture
def states(events):
    """Return the states of a whole search, as the search reports them."""
    history, found = RunHistory(), [Progress(RunHistory(), BudgetConfig(), 0, OPENING, "tasks")]
    bill = Bill(12, {name: Line(9, 120, 90, 150) for name in STAGES})
    for event in events:
        history.add(event)
        found.append(
            Progress(RunHistory(events[: len(found)]), BudgetConfig(evaluations=12), 0, history.stage, "", bill)
        )
    return found


def test_every_phase_has_a_line_with_what_is_done_in_a_pipe(states):
    lines = shown(states).splitlines()
    phases = [line.split(":")[0] for line in lines]
    assert phases == [phase for phase in STAGES if phase in {state.phase for state in states}]
    assert phases[-3:] == ["candidates", "finalists", "held-out"] or phases[-2:] == ["candidates", "held-out"]
    for line in lines:
        assert re.search(r": \d+(/\d+)? (answers|evaluations), \d", line), line
        assert not ESCAPE.search(line)
    (candidates,) = (line for line in lines if line.startswith("candidates"))
    assert "12/12 evaluations" in candidates and "best 0." in candidates and candidates.endswith(" left")


@pytest.mark.parametrize("options", [{}, {"no_color": True}, {"legacy_windows": False}])
def test_a_live_line_fits_on_80_columns(states, options):
    text = shown(states, force_terminal=True, **options)
    for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)):
        assert len(line) <= 80, line
    assert "evaluations" in text


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_no_colour_where_none_is_wanted(states, name, monkeypatch):
    monkeypatch.setenv(name, "dumb" if name == "TERM" else "1")
    text = shown(states, force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)


def test_what_is_left_shrinks_to_nothing(events):
    """Conditional on the events so far, whatever was expected."""
    bill = Bill(12, {name: Line(9, 120, 90, 150) for name in STAGES})
    history, left = RunHistory(), []
    for event in events:
        history.add(event)
        seconds = bill.remaining_seconds(history)
        left.append(seconds)
    known = [seconds for seconds in left if seconds is not None]
    assert known and all(seconds >= 0 for seconds in known)
    later = bill.remaining(history)
    assert all(later[stage].answers == 0 for stage in ("sources", "founders", "steps", "candidates", "finalists"))


def test_the_hours_end_the_search_before_its_evaluations(events):
    history = RunHistory()
    for event in events:
        history.add(event)
        if history.evaluations == 6:
            break
    bill = Bill(10_000, {name: Line(9, 120, 90, 150) for name in STAGES})
    assert bill.remaining_seconds(history) > bill.remaining_seconds(history, hours=(history.elapsed + 1) / 3600)


@pytest.fixture
def searching(finished, monkeypatch):
    """Make a finished run look as if a process searched in it for three looks."""
    looks = iter([True] * 3)
    monkeypatch.setattr("evomerge.cli.status.in_use", lambda path: next(looks, False))
    return finished[0] / "run"


def test_watching_prints_lines_in_a_pipe_and_ends_with_the_search(searching, capsys):
    waits = []
    watch.watch(searching, waits.append)
    lines = capsys.readouterr().out.splitlines()
    assert waits == [watch.PLAIN_INTERVAL] * 3
    assert [line.split(":")[0] for line in lines[:3]] == ["held-out"] * 3
    assert "12/12 evaluations" in lines[0] and "answers, best 0." in lines[0]
    assert any("finished, 12/12 evaluations" in line for line in lines[3:])


def test_the_dashboard_shows_where_the_run_stands(searching, monkeypatch):
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False, force_terminal=True, no_color=True)
    monkeypatch.setattr(watch, "console", lambda: console)
    watch.watch(searching, lambda seconds: None)
    text = ESCAPE.sub("", out.getvalue())
    for name in ("phase", "evaluations", "answers", "time", "best", "generation", "workers", "failures"):
        assert re.search(rf"^{name}\s+\S", text, re.MULTILINE), name
    assert "12 of 12" in text and ", mean 0." in text
    dashboard = text.split("held-out scores")[0].splitlines()
    assert all(len(line.rstrip()) <= 80 for line in dashboard[:12])


def test_watching_is_for_people(finished, refuse):
    refuse("status", finished[0] / "run", "--watch", "--json", words=["leave --json out"])


def test_status_says_what_each_stage_asked_and_was_expected_to_ask(finished, evomerge):
    folder, _ = finished
    summary = json.loads(evomerge("status", "run", "--json", cwd=folder))
    result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    assert summary["expected"] == {name: row["expected"] for name, row in result["stages"].items()}
    assert summary["expected_answers"] == pytest.approx(sum(summary["expected"].values()), rel=0.1)
    text = evomerge("status", "run", cwd=folder)
    assert re.search(r"candidates +192 +192 ", text)


def test_a_run_says_what_comes_next(finished, tmp_path, evomerge):
    folder, printed = finished
    wanted = ["open run/report.html in a browser", "evomerge export run -o recipe.yaml", "evomerge merge recipe.yaml"]
    for text in (printed, evomerge("status", "run", cwd=folder)):
        following = text.partition("next:\n")[2].splitlines()
        assert all(line.startswith(f"  {start}") for line, start in zip(following, wanted, strict=False))
        assert len(following) == 4
    shutil.copytree(folder / "run", tmp_path / "a run")
    (tmp_path / "a run" / "result.json").unlink()
    assert evomerge("status", "a run", cwd=tmp_path).endswith("next: evomerge resume 'a run'\n")


def test_a_run_of_an_older_version_has_no_bill(finished, tmp_path, evomerge):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    (tmp_path / "run" / "bill.json").unlink()
    summary = summarised(tmp_path / "run")[0]
    assert summary["expected_answers"] is None and summary["expected"] == {}
    (tmp_path / "run" / "bill.json").write_text("{", encoding="utf-8")
    assert "bill.json cannot be read" in evomerge("status", "run", cwd=tmp_path, code=1)
