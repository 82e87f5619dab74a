"""What cosmic-ray changes in a source, which changes are drawn, and the text of each."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from experiments.mutants.listed import LISTED
from experiments.mutants.modules import MODULES

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change: the line as it is and as it becomes, and whether a test noticed.

    Attributes
    ----------
    killed
        None: not tried yet.
    killer
        The test that failed, or how the tests ended.
    tests
        Number of tests that were to run.
    late
        It survived at first; the test that kills it was written because of that.
    """

    module: str
    line: int
    before: str
    after: str
    operator: str
    killed: bool | None = None
    killer: str = ""
    tests: int = 0
    late: bool = False


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
    return None if changed is None or meaning(changed) == meaning(source) else changed


GUARDS = {"zip": ("strict",), "dataclass": ("frozen", "eq"), "lru_cache": ("maxsize",)}
"""Arguments by function that only guard against faults elsewhere, or set a size: without them nothing else happens."""


def meaning(source: str) -> str | None:
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


def described(module: str, operator: str, source: str, changed: str) -> Mutant:
    """Return the mutant that a changed source is."""
    lines = list(unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:]
    number = int(lines[0].split()[1].removeprefix("-").partition(",")[0])
    before = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    after = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    return Mutant(module, number, before, after, operator.removeprefix("core/"))


def drawn(count: int, seed: int, tree: Path = ROOT) -> list[tuple[Mutant, str]]:
    """Return `count` changes of different lines, each with the changed source; all lines are equally likely."""
    sources = {module: (tree / module).read_text(encoding="utf-8") for module in MODULES}
    known = {module: changes(source) for module, source in sources.items()}
    lines = [(module, line) for module, found in known.items() for line in sorted(found)]
    rng = random.Random(seed)
    rng.shuffle(lines)
    found: list[tuple[Mutant, str]] = []
    for module, line in lines:
        options = known[module][line]
        for change in rng.sample(options, len(options)):
            changed = changed_by(sources[module], change)
            if changed is not None:
                found.append((described(module, change[0], sources[module], changed), changed))
                break
        if len(found) == count:
            break
    return found


def listed(tree: Path = ROOT) -> list[tuple[Mutant, str]]:
    """Return the changes of ``listed.py``, each with the changed source.

    Raises
    ------
    ValueError
        If the text of one no longer occurs once; the list must follow the code.
    """
    found = []
    for module, before, after in LISTED:
        source = (tree / module).read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise ValueError(f"{module}: {before!r} occurs {source.count(before)} times; correct listed.py")
        changed = source.replace(before, after)
        found.append((described(module, "listed", source, changed), changed))
    return found


def made_again(mutant: Mutant, tree: Path = ROOT) -> str | None:
    """Return a module's source with a recorded change of one line; None if the line is no longer there."""
    lines = (tree / mutant.module).read_text(encoding="utf-8").splitlines()
    places = [index for index, line in enumerate(lines) if line.strip() == mutant.before]
    if not places:
        return None
    index = min(places, key=lambda place: abs(place + 1 - mutant.line))
    indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
    lines[index] = indent + mutant.after
    return "\n".join(lines) + "\n"
