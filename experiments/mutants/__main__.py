"""``python -m experiments.mutants`` changes lines of the core one at a time and runs the tests on each change.

The changes are those of cosmic-ray (`pip install cosmic-ray`): another operator, another number, a loop that does not
run, ... Lines are drawn from the modules in ``modules.py`` by a seed, one change each; changes in annotations alone are
none. A mutant is killed if a fast test fails or none ends in time. Results are written after each mutant; ``--go-on``
keeps those that are there.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import unified_diff
from pathlib import Path

from experiments.harness import Experiment, Results
from experiments.mutants.listed import LISTED
from experiments.mutants.modules import MODULES, Module

ROOT = Path(__file__).parents[2]
COUNT, SEED = 100, 0
SECONDS = 300
"""Longest run of the tests of one mutant."""
LONGEST = 90
"""Characters of a line that the table shows."""
PASSED, NONE_FAILED = 0, 5  # pytest's exit codes; the second: no test was found


@dataclass(frozen=True)
class Mutant:
    """One change: the line as it is and as it becomes, and whether a test noticed (None: not tried)."""

    module: str
    line: int
    before: str
    after: str
    operator: str
    killed: bool | None = None
    seconds: float = 0.0


Change = tuple[str, int]
"""Name of cosmic-ray's operator, and which of the places where it applies."""


def changes(source: str) -> dict[int, list[Change]]:
    """Return the changes that cosmic-ray knows of a source, by line.

    Operators of bits are left out: on anything but whole numbers they fail at once, which any test would notice.
    """
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(source)))
    found: dict[int, list[Change]] = {}
    for name in sorted(plugins.operator_names()):
        kind = plugins.get_operator(name)
        if kind.arguments() or any(bits in name for bits in ("Bit", "Shift", "Invert")):
            continue
        operator = kind()
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(places):
            found.setdefault(start[0], []).append((name, occurrence))
    return found


def changed_by(source: str, change: Change) -> str | None:
    """Return a source after a change; None if it does the same, as where only an annotation or a guard is another."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    name, occurrence = change
    changed: str | None = mutate_code(source, plugins.get_operator(name)(), occurrence)
    return None if changed is None or _meaning(changed) == _meaning(source) else changed


GUARDS = {"zip": ("strict",), "dataclass": ("frozen", "eq"), "lru_cache": ("maxsize",)}
"""Arguments by function that only guard against faults elsewhere, or set a size: without them nothing else happens."""


def _meaning(source: str) -> str | None:
    """Return what a source does, without annotations and guards; None if it cannot be read."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs):
                argument.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            guards = GUARDS.get(node.func.id, ())
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in guards]
    return ast.dump(tree)


def _mutant(module: Module, operator: str, source: str, changed: str) -> Mutant:
    lines = list(unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:]
    number = int(lines[0].split()[1].removeprefix("-").partition(",")[0])
    before = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    after = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    return Mutant(module.path, number, before, after, operator.removeprefix("core/"))


def drawn(count: int, seed: int) -> list[tuple[Module, Mutant, str]]:
    """Return `count` changes of different lines, each with the changed source; all lines are equally likely."""
    sources = {module: (ROOT / module.path).read_text(encoding="utf-8") for module in MODULES}
    known = {module: changes(source) for module, source in sources.items()}
    lines = [(module, line) for module, found in known.items() for line in sorted(found)]
    rng = random.Random(seed)
    rng.shuffle(lines)
    found: list[tuple[Module, Mutant, str]] = []
    for module, line in lines:
        options = known[module][line]
        for change in rng.sample(options, len(options)):
            changed = changed_by(sources[module], change)
            if changed is not None:
                found.append((module, _mutant(module, change[0], sources[module], changed), changed))
                break
        if len(found) == count:
            break
    return found


def listed() -> list[tuple[Module, Mutant, str]]:
    """Return the changes of ``listed.py``, each with the changed source.

    Raises
    ------
    ValueError
        If the text of one no longer occurs once; the list must follow the code.
    """
    found = []
    for module, before, after in LISTED:
        source = (ROOT / module.path).read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise ValueError(f"{module.path}: {before!r} occurs {source.count(before)} times; correct listed.py")
        changed = source.replace(before, after)
        found.append((module, _mutant(module, "listed", source, changed), changed))
    return found


def copy_of_the_tree(folder: Path) -> Path:
    """Copy all files that git knows into a new folder, where they can be changed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def is_killed(tree: Path, module: Module) -> bool:
    """Return whether a fast test fails in a changed tree, or they do not end."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "CI": ""}
    for tests in module.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", tests]
        try:
            done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        if done.returncode == NONE_FAILED:
            raise RuntimeError(f"{tests}: no test was found; correct experiments/mutants/modules.py")
        if done.returncode != PASSED:
            return True
    return False


def check(tree: Path, module: Module) -> None:
    """Run a module's tests without a change; if they fail, every mutant would count as killed.

    Raises
    ------
    RuntimeError
        If they do.
    """
    if is_killed(tree, module):
        raise RuntimeError(f"{module.path}: its tests fail without a change: {', '.join(module.tests)}")


def tried(tree: Path, module: Module, mutant: Mutant, changed: str) -> Mutant:
    """Return a mutant with whether the tests noticed it."""
    file = tree / module.path
    original = file.read_text(encoding="utf-8")
    started = time.perf_counter()
    try:
        file.write_text(changed, encoding="utf-8")
        killed = is_killed(tree, module)
    finally:
        file.write_text(original, encoding="utf-8")
    return Mutant(**{**asdict(mutant), "killed": killed, "seconds": round(time.perf_counter() - started, 1)})


def tables(results: Results) -> list[str]:
    """Return the README's tables: the share that was killed by module, the mutants drawn, and those of the list."""
    found = [Mutant(**row) for row in results["drawn"]]
    lines = ["| module | mutants | killed |", "|---|---|---|"]
    for path in dict.fromkeys(module.path for module in MODULES):
        own = [mutant for mutant in found if mutant.module == path]
        if own:
            lines.append(f"| `{path}` | {len(own)} | {sum(bool(m.killed) for m in own)} |")
    lines.append(f"| all | {len(found)} | {sum(bool(m.killed) for m in found)} |")
    return ["\n".join(lines), _rows(found), _rows([Mutant(**row) for row in results["listed"]])]


def _rows(mutants: Sequence[Mutant]) -> str:
    rows = ["| place | line | becomes | killed |", "|---|---|---|---|"]
    for mutant in mutants:
        before, after = (_code(text) for text in (mutant.before, mutant.after))
        rows.append(f"| {mutant.module}:{mutant.line} | {before} | {after} | {'yes' if mutant.killed else 'no'} |")
    return "\n".join(rows)


def _code(text: str) -> str:
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"`{short.replace('|', chr(92) + '|')}`" if short else "(removed)"


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences."""
    counts = {}
    for part in ("drawn", "listed"):
        killed = sum(bool(row["killed"]) for row in results[part])
        counts[part] = f"{killed} of {len(results[part])}"
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the mutants and write what became of them."""
    parser = EXPERIMENT.parser(__doc__, quick="three mutants")
    parser.add_argument("--count", type=int, default=COUNT, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=SEED, help="of the draw")
    parser.add_argument("--part", choices=("drawn", "listed"), help="these only; the results keep the others")
    parser.add_argument("--go-on", action="store_true", help="do not try again what the results have as killed")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    before = EXPERIMENT.read(out)
    results: Results = {"seed": given.seed, "drawn": before.get("drawn", []), "listed": before.get("listed", [])}
    parts = {"drawn": lambda: drawn(3 if given.quick else given.count, given.seed), "listed": listed}
    if given.quick:
        parts["listed"] = lambda: listed()[:1]
    with tempfile.TemporaryDirectory() as folder:
        tree, checked = copy_of_the_tree(Path(folder)), set[Module]()
        for part in [given.part] if given.part else list(parts):
            rows = results[part] if given.go_on else []
            known = {(row["module"], row["before"], row["after"]): Mutant(**row) for row in rows if row["killed"]}
            results[part] = []
            for module, mutant, changed in parts[part]():
                done = known.get((mutant.module, mutant.before, mutant.after))
                if done is None and module not in checked:
                    check(tree, module)
                    checked.add(module)
                found = replace(done, line=mutant.line) if done is not None else tried(tree, module, mutant, changed)
                print(f"{'killed' if found.killed else 'SURVIVED'}: {_place(found)}", flush=True)
                results[part].append(asdict(found))
                EXPERIMENT.write(out, results)
    print("\n" + tables(results)[0])
    EXPERIMENT.publish(out, results)


def _place(mutant: Mutant) -> str:
    return f"{mutant.module}:{mutant.line} {mutant.after}"


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
