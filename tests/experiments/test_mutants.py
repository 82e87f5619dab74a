"""Mutation testing: what counts as a change, and when a mutant is killed."""

import subprocess
from pathlib import Path

import pytest

from experiments.mutants.__main__ import Mutant, _meaning, _mutant, check, is_killed, listed, tables, tried
from experiments.mutants.modules import MODULES, Module

ROOT = Path(__file__).parents[2]


def test_all_modules_and_their_tests_are_there():
    for module in MODULES:
        assert (ROOT / module.path).is_file()
        assert all((ROOT / tests).exists() for tests in module.tests)


def test_the_list_follows_the_code():
    """Each text that is changed occurs once, and what it becomes is another program."""
    for module, mutant, changed in listed():
        assert _meaning(changed) not in (None, _meaning((ROOT / module.path).read_text(encoding="utf-8"))), mutant


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
    assert (_meaning("def f(x: int) -> int:\n    y: int = x + 1\n    return y\n") == _meaning(other)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("zip(a, b, strict=True)", "zip(a, b, strict=False)"),
        ("@dataclass(frozen=True)\nclass A: pass", "@dataclass(frozen=False)\nclass A: pass"),
        ("@lru_cache(maxsize=256)\ndef f(): pass", "@lru_cache(maxsize=257)\ndef f(): pass"),
    ],
)
def test_a_change_of_a_guard_is_none(one, other):
    assert _meaning(one) == _meaning(other)
    assert _meaning("f(a, strict=True)") != _meaning("f(a, strict=False)")


def test_a_mutant_says_where_and_what():
    mutant = _mutant(Module("a.py", ()), "core/AddNot", "x = 1\nif x:\n    y = 2\n", "x = 1\nif not x:\n    y = 2\n")
    assert mutant == Mutant("a.py", 2, "if x:", "if not x:", "AddNot")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "double.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_double.py").write_text("from double import double\n\ndef test_it():\n    assert double(3) == 6\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(("line", "killed"), [("return 3 * x", True), ("return x + x", False)])
def test_a_mutant_is_killed_if_a_test_fails(tree, line, killed):
    module = Module("double.py", ("test_double.py",))
    mutant = Mutant("double.py", 2, "return 2 * x", line, "NumberReplacer")
    found = tried(tree, module, mutant, f"def double(x):\n    {line}\n")
    assert found.killed is killed
    assert (tree / "double.py").read_text() == "def double(x):\n    return 2 * x\n"
    summary, rows, others = tables({"drawn": [vars(found)], "listed": []})
    assert f"| all | 1 | {int(killed)} |" in summary
    assert f"| double.py:2 | `return 2 * x` | `{line}` | {'yes' if killed else 'no'} |" in rows
    assert len(others.splitlines()) == 2


def test_tests_that_fail_anyway_are_refused(tree):
    module = Module("double.py", ("test_double.py",))
    check(tree, module)
    (tree / "double.py").write_text("def double(x):\n    return x\n")
    with pytest.raises(RuntimeError, match=r"double\.py: its tests fail without a change: test_double\.py"):
        check(tree, module)


def test_tests_that_are_not_there_are_no_kill(tree):
    (tree / "test_double.py").write_text("")
    with pytest.raises(RuntimeError, match=r"test_double\.py: no test was found; correct"):
        is_killed(tree, Module("double.py", ("test_double.py",)))
