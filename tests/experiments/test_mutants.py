"""Mutation testing: what counts as a change, and when a mutant is killed."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments.mutants.__main__ import draw, figures, tables, to_try
from experiments.mutants.changes import Mutant, described, listed, made_again, meaning
from experiments.mutants.equivalent import EQUIVALENT
from experiments.mutants.modules import FOLDERS, MODULES
from experiments.mutants.suite import BROKEN, OUT_OF_TIME, Suite

ROOT = Path(__file__).parents[2]


def test_all_modules_and_their_tests_are_there():
    assert all((ROOT / module).is_file() for module in MODULES)
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


def test_the_list_follows_the_code():
    """Each text that is changed occurs once, and what it becomes is another program."""
    for mutant, changed in listed():
        assert meaning(changed) not in (None, meaning((ROOT / mutant.module).read_text(encoding="utf-8"))), mutant


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def f(x: int) -> int:\n    y: float = x + 1\n    return y\n", True),
        ("def f(x: str | None) -> None:\n    y: int = x + 1  # more\n    return y\n", True),
        ("def f(x: int) -> int:\n    y: int = x - 1\n    return y\n", False),
        ("def f(x: int = 2) -> int:\n    y: int = x + 1\n    return y\n", False),
    ],
)
def test_a_change_of_annotations_is_none(other, same):
    assert (meaning("def f(x: int) -> int:\n    y: int = x + 1\n    return y\n") == meaning(other)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("zip(a, b, strict=True)", "zip(a, b, strict=False)"),
        ("@dataclass(frozen=True)\nclass A: pass", "@dataclass(frozen=False)\nclass A: pass"),
        ("@lru_cache(maxsize=256)\ndef f(): pass", "@lru_cache(maxsize=257)\ndef f(): pass"),
    ],
)
def test_a_change_of_a_guard_is_none(one, other):
    assert meaning(one) == meaning(other)
    assert meaning("f(a, strict=True)") != meaning("f(a, strict=False)")


def test_a_mutant_says_where_and_what():
    mutant = described("a.py", "core/AddNot", "x = 1\nif x:\n    y = 2\n", "x = 1\nif not x:\n    y = 2\n")
    assert mutant == Mutant("a.py", 2, "if x:", "if not x:", "AddNot")


def test_tests_are_chosen_by_the_lines_that_they_execute(tmp_path, monkeypatch):
    source = "A = 1\n\ndef f(x):\n    if x:\n        y = (\n            1\n        )\n        return y\n    return A\n"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f.py").write_text(source)
    seconds = {
        "t/test_g.py::test_a": 3.0,
        "t/test_f.py::test_b": 5.0,
        "t/test_f.py::test_c": 1.0,
        "t/h.py::test_d": 0.1,
    }
    one, two, three, four = seconds
    lines = {1: [], 4: [one, two, three], 6: [one, three], 8: [one, three], 9: [two]}
    suite = Suite(tmp_path / "tree", seconds, {"f.py": lines})
    assert suite.tests_of("f.py", 4) == [two, three, one]  # the module's own file first
    assert suite.tests_of("f.py", 5) == [three, one]
    assert suite.tests_of("f.py", 9) == [two]
    assert suite.tests_of("f.py", 1) == [two, three, one]  # outside functions: all that use the module
    assert four not in suite.tests_of("f.py", 1)
    monkeypatch.setattr("experiments.mutants.suite.MOST", 7.0)
    assert suite.tests_of("f.py", 4) == [two, three]  # no more than there is time for


SOURCE = "LIMIT = 3\n\n\ndef double(x):\n    return 2 * x\n"
TESTS = """
import pytest
from double import LIMIT, double

@pytest.fixture(scope="module")
def shared():
    return double(3)

def test_nothing():
    pass

def test_it(shared):
    assert shared == 6

def test_that_only_runs():
    double(1)
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    tree = tmp_path_factory.mktemp("work") / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "double.py").write_text(SOURCE)
    (tree / "tests" / "test_double.py").write_text(TESTS)
    suite = Suite(tree)
    names = [f"tests/test_double.py::test_{name}" for name in ("nothing", "it", "that_only_runs")]
    suite.take({"seconds": dict.fromkeys(names, 0.0), "lines": {"double.py": {"5": names[1:]}}})
    return suite


@pytest.mark.parametrize(
    ("line", "killer"),
    [
        ("return 3 * x", "tests/test_double.py::test_it"),
        ("return x + x", ""),
        ("return 2 * ", BROKEN),
        ("import os; os.kill(os.getpid(), 9)", OUT_OF_TIME),  # as the system does where the time is over
    ],
)
def test_a_mutant_is_killed_if_a_test_fails(suite, line, killer):
    tests = suite.tests_of("double.py", 5)
    assert suite.killer("double.py", SOURCE.replace("return 2 * x", line), tests) == killer
    assert (suite.tree / "double.py").read_text() == SOURCE


def test_tests_that_are_not_there_kill_nothing(suite):
    with pytest.raises(RuntimeError, match=r"pytest ended with error 5"):
        suite.failing(["tests/test_double.py::test_of_yesterday"])


def test_the_lines_of_tests_are_traced_with_the_fixtures_that_they_share(suite):
    pytest.importorskip("coverage", reason="`make mutants` installs it")
    suite.trace(["tests"], ["double.py"])
    name = "tests/test_double.py::test_"
    assert suite.lines["double.py"][5] == [f"{name}it", f"{name}that_only_runs"]
    assert list(suite.seconds) == [f"{name}nothing", f"{name}it", f"{name}that_only_runs"]
    (suite.tree / "double.py").write_text("left by a run that was stopped")
    assert Suite.of(suite.tree.parent) == suite
    assert (suite.tree / "double.py").read_text() == SOURCE


ONE = Mutant("fitness/a.py", 3, "x + 1", "x - 1", "ReplaceBinaryOperator")
OTHER = replace(ONE, line=9, before="y", after="not y")


def test_a_draw_is_kept_and_only_what_was_not_tried_is_tried():
    results = {"draws": []}
    rows = draw(results, 4, [(ONE, "changed"), (OTHER, "other")], "abc", keep=True)
    assert [place for place, *_ in to_try(rows, [(ONE, "changed"), (OTHER, "other")], ROOT, again=False)] == [0, 1]
    rows[0] |= {"killed": True, "killer": "tests/a.py::test_b"}
    rows[1] |= {"killed": False}
    assert draw(results, 4, [], "abc", keep=True) is rows
    assert list(to_try(rows, [], ROOT, again=False)) == []
    assert [tried[0] for tried in to_try(rows, [(OTHER, "other")], ROOT, again=True)] == [1]
    assert draw(results, 4, [(ONE, "changed")], "abc", keep=False) != rows and len(results["draws"]) == 1


def test_a_recorded_change_is_made_again_where_its_line_is_now():
    mutant = Mutant("experiments/mutants/modules.py", 1, "MODULES = (", "MODULES = [", "x")
    changed = made_again(mutant)
    assert "\nMODULES = [\n" in changed
    assert changed.replace("MODULES = [", "MODULES = (") == (ROOT / mutant.module).read_text()
    assert made_again(replace(mutant, before="MODULES = no longer there")) is None


def test_what_cannot_be_killed_is_counted_apart(monkeypatch):
    monkeypatch.setitem(EQUIVALENT, (OTHER.module, OTHER.before, OTHER.after), "y is never set")
    killed = replace(ONE, killed=True, killer="tests/fitness/test_a.py::test_b[case]", tests=4)
    drawn = [killed, replace(OTHER, killed=False), replace(ONE, line=5, killed=False)]
    results = {
        "draws": [{"seed": 4, "commit": "abc", "date": "2026-01-01", "mutants": [asdict(one) for one in drawn]}],
        "listed": [],
    }
    summary, _, rows, _ = tables(results)
    assert "| seed 4 | abc | 3 | 1 | 1 | 1 | 1 |" in summary
    assert "| `x + 1` | `x - 1` | `fitness/test_a.py::test_b` |" in rows
    assert "| cannot be: y is never set |" in rows
    assert "| `x + 1` | `x - 1` | **nothing** |" in rows
    assert figures(results)["seed.4"] == "1 of 3"
    assert figures(results)["seed.4.survived"] == "1"
    results["draws"][0]["mutants"][0]["late"] = True  # the test was written for it
    assert "| seed 4 | abc | 3 | 0 | 1 | 1 | 1 |" in tables(results)[0]
    assert figures(results)["seed.4.first"] == "0 of 3"
