"""The fast suite on a copy of the tree: which tests execute a line, and whether one of them fails on a change.

A run of the tests is a fork of a process that has already imported torch and the other large packages, so that a mutant
costs the time of its tests alone.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from experiments.mutants.changes import ROOT
from experiments.scale.processes import descendants

LARGE = (
    "torch",
    "transformers",
    "datasets",
    "lm_eval",
    "ray",
    "scipy.stats",
    "hypothesis",
    "safetensors.torch",
    "peft",
)
"""Packages to import once. None of them imports the code that is changed."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CI": "",
}
START = 60.0
"""Seconds that a run of tests may take beside their own."""
SLOWER = 10.0
"""How many times as long as without a change the tests of a mutant may take; they count as failed after that."""
MOST = 40.0
"""Processor seconds of tests (as traced) on one mutant: those after that are not run, so that some survivors might be
killed."""
DECLARATIONS = "tests/config/test_reference.py"
"""Compares what classes of settings declare with a page; it executes no line of them."""
UNKNOWN = 60.0
"""Seconds of a whole file of tests."""
MAP, COMMIT = "map.json", "commit"
OUT_OF_TIME = "(the tests did not end)"
BROKEN = "(the tests could not be imported)"


def warm_up() -> None:
    """Import the large packages, so that forks have them."""
    os.environ.update(SETTINGS)
    for name in LARGE:
        import_module(name)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def copy_of_the_tree(folder: Path) -> Path:
    """Copy all files that git knows into a folder, where they can be changed."""
    for name in filter(None, _git("ls-files", "-z").split("\0")):
        if (ROOT / name).is_file():
            contents = (ROOT / name).read_bytes()
            if not (folder / name).is_file() or (folder / name).read_bytes() != contents:  # compiled files stay valid
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(contents)
    return folder


class _Selected:
    """Plug-in of pytest: run these tests only, in this order of files, and note the first that fails."""

    def __init__(self, tests: Sequence[str] | None) -> None:
        self.order = None if tests is None else {test: place for place, test in enumerate(tests)}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.order is not None:
            order = self.order
            items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(BROKEN)


class _Traced:
    """Plug-in of pytest: note the lines that each test executes, and each fixture that several tests share.

    Seconds are the processor's: what else the machine does must not decide which tests fit into `MOST`.
    """

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.context = coverage, ""
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}

    def _enter(self, context: str) -> str:
        before, self.context = self.context, context
        self.coverage.switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        started, before = time.process_time(), self._enter(item.nodeid)
        try:
            return (yield)
        finally:
            self._enter(before)
            self.seconds[item.nodeid] = round(time.process_time() - started, 4)
            self.fixtures[item.nodeid] = list(item.fixturenames)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self._enter(self.context if fixturedef.scope == "function" else f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self._enter(before)


@dataclass
class Suite:
    """Tests with their seconds, the lines that each executes, and the copied tree in which they run.

    Attributes
    ----------
    lines
        By module and line, the tests that execute it, or whose shared fixtures do.
    """

    tree: Path
    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path) -> Suite:
        """Return the suite of a folder with a copied tree and, if one was made before, the map of tests and lines."""
        if not (work / MAP).is_file():
            copy_of_the_tree(work / "tree")
            (work / COMMIT).write_text(_git("rev-parse", "--short", "HEAD"), encoding="utf-8")
            return cls(work / "tree")
        suite = cls(work / "tree")  # as it was when the map was made
        found = json.loads((work / MAP).read_text(encoding="utf-8"))
        suite.take(found)
        for module, source in found["sources"].items():  # one that was stopped may have left a change
            (suite.tree / module).write_text(source, encoding="utf-8")
        return suite

    @property
    def commit(self) -> str:
        """The commit that was copied."""
        return (self.tree.parent / COMMIT).read_text(encoding="utf-8")

    def take(self, found: dict[str, Any]) -> None:
        """Take what a trace has found."""
        self.seconds = found["seconds"]
        self.lines = {path: {int(n): tests for n, tests in lines.items()} for path, lines in found["lines"].items()}

    def trace(self, folders: Sequence[str], modules: Sequence[str]) -> None:
        """Run the fast tests of these folders and note which lines of the modules each executes.

        A test that fails without a change is left out: it would kill everything.
        """
        found = self.run(lambda: self._trace(folders, modules), None)
        found["sources"] = {module: (self.tree / module).read_text(encoding="utf-8") for module in modules}
        for test in found.pop("failed"):
            print(f"fails without a change, and is left out: {test}", flush=True)
        (self.tree.parent / MAP).write_text(json.dumps(found), encoding="utf-8")
        self.take(found)

    def _trace(self, folders: Sequence[str], modules: Sequence[str]) -> dict[str, Any]:
        from coverage import Coverage

        coverage = Coverage(data_file=None, include=[str(self.tree / module) for module in modules])
        traced, selected = _Traced(coverage), _Selected(None)
        coverage.start()
        pytest.main(["-q", "-m", "not slow", *folders], plugins=[selected, traced])
        coverage.stop()
        for test in selected.failed:
            traced.seconds.pop(test, None)
            traced.fixtures.pop(test, None)
        using = defaultdict(list)
        for test, names in traced.fixtures.items():
            for name in names:
                using[f"fixture {name}"].append(test)
        data, lines = coverage.get_data(), {}
        for module in modules:
            contexts = data.contexts_by_lineno(str(self.tree / module))
            lines[module] = {
                line: sorted({test for name in names for test in using.get(name, [name]) if test in traced.seconds})
                for line, names in contexts.items()
            }
        return {"seconds": traced.seconds, "lines": lines, "failed": selected.failed}

    def tests_of(self, module: str, line: int) -> list[str]:
        """Return the tests that execute a line; of a line outside of functions, those that execute any of the module.

        The file named after the module comes first, then those that need the least time, up to `MOST` seconds.
        """
        executed = self.lines[module]
        part = _statement(ast.parse((self.tree / module).read_text(encoding="utf-8")), line)
        tests = {test for number in part or executed for test in executed.get(number, ())}
        if not part:
            tests |= {test for test in self.seconds if test.startswith(f"{DECLARATIONS}::")}
        files: dict[str, float] = defaultdict(float)
        for test in tests:
            files[test.partition("::")[0]] += self.seconds[test]
        own = f"test_{Path(module).stem}.py"
        ranks = {file: (not file.endswith(f"/{own}"), seconds) for file, seconds in files.items()}
        places = {test: place for place, test in enumerate(self.seconds)}
        ordered = sorted(tests, key=lambda test: (*ranks[test.partition("::")[0]], places[test]))
        ends = accumulate(self.seconds[test] for test in ordered)
        return [test for test, end in zip(ordered, ends, strict=True) if end <= MOST] or ordered[:1]

    def killer(self, module: str, changed: str, tests: Sequence[str]) -> str:
        """Return the first of the tests that fails on a changed module; empty if none does."""
        file = self.tree / module
        original = file.read_text(encoding="utf-8")
        try:
            file.write_text(changed, encoding="utf-8")
            return self.failing(tests)
        finally:
            file.write_text(original, encoding="utf-8")

    def failing(self, tests: Sequence[str]) -> str:
        """Return the first of these tests (or of files and folders of tests) that fails; empty if none does.

        Raises
        ------
        RuntimeError
            If pytest fails, or none of the tests is found.
        """
        seconds = sum(self.seconds.get(test, UNKNOWN) for test in tests)
        found: str = self.run(lambda: _failing(tests), seconds)
        if found.startswith("error"):
            raise RuntimeError(f"pytest ended with {found} on {tests[0]}, ...")
        return found

    def run(self, function: Callable[[], Any], seconds: float | None) -> Any:
        """Return what a function returns in a fork within the tree, or OUT_OF_TIME.

        Parameters
        ----------
        function
            What it returns must be JSON.
        seconds
            What it takes without a change; None: unknown.
        """
        with tempfile.TemporaryDirectory(prefix="m") as folder:
            answer, said = Path(folder) / "answer", Path(folder) / "said"
            process = os.fork()
            if not process:
                _within(self.tree, Path(folder), said, seconds, lambda: answer.write_text(json.dumps(function())))
            limit = time.monotonic() + (3600 if seconds is None else 2 * START + SLOWER * seconds)
            while not (ended := os.waitpid(process, os.WNOHANG))[0]:
                if time.monotonic() > limit:
                    for one in [*descendants(process), process]:
                        os.kill(one, signal.SIGKILL)
                time.sleep(0.02)
            if os.WIFSIGNALED(ended[1]):
                return OUT_OF_TIME
            if ended[1]:
                raise RuntimeError(said.read_text(errors="replace")[-3000:])
            return json.loads(answer.read_text())


def _failing(tests: Sequence[str]) -> str:
    whole = any("::" not in test for test in tests)
    selected = _Selected(None if whole else tests)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    code = pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *files], plugins=[selected])
    if selected.failed:
        return selected.failed[0]
    if code == pytest.ExitCode.USAGE_ERROR:
        return BROKEN
    return "" if code == pytest.ExitCode.OK else f"error {int(code)}"


def _within(tree: Path, folder: Path, said: Path, seconds: float | None, function: Callable[[], object]) -> None:
    """Run a function as if its process had been started in the tree; never return."""
    os.setsid()
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if seconds is not None:
            sys.dont_write_bytecode = True  # the next mutant may be as long and of the same second
            most = int(START + SLOWER / 2 * seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        os.chdir(tree)
        os.environ.update({"PYTHONPATH": str(tree), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"})
        tempfile.tempdir = None
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
            del sys.modules[name]
        function()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _statement(tree: ast.AST, line: int) -> list[int]:
    """Return the lines of the innermost statement around a line, without those of its body; empty outside functions."""
    found: list[int] = []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for part in (part for function in functions for part in ast.walk(function)):
        if isinstance(part, ast.stmt | ast.ExceptHandler) and part not in functions:
            body = getattr(part, "body", None)
            last = max(body[0].lineno - 1, part.lineno) if body else part.end_lineno or part.lineno
            if part.lineno <= line <= last:
                found = list(range(part.lineno, last + 1))
    return found
