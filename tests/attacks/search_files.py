"""Search files that somebody got wrong: mutations of valid files, drawn from a seed, for tests and for long runs.

python -m tests.attacks.search_files 10000 [SEED]      # plans each offline; prints what goes wrong
"""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fitness.tasks.loading import _installed_tasks
from tests import command
from tests.zoo import ZOO, few_items

LONGEST_MESSAGE = 2000
"""Characters."""
LONGEST_TIME = 10
"""Seconds."""

MODELS = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")}
SPACES: list[Any] = [
    {"kind": "layer_coefficients", "method": "ties", "weight": [0, 1], "density": {"low": 0.2, "high": 0.9}},
    {"kind": "layer_coefficients", "method": ["ties", "linear"], "method_prior": {"ties": 0.7, "linear": 0.3}},
    {"method": "dare_ties", "layers_per_group": 3, "modules": ["attention", "mlp", "other"], "smooth": True},
    {"groups": {"early": ["embeddings", "0-2"], "late": ["3-5", "final"]}, "fixed": {"ops.weight[early]": 0.5}},
    {"method": "slerp", "t": [0, 1], "start": "uniform", "tie": ["*.weight[*]"]},
    {"kind": "mixture", "chunks": 8, "weights": "simplex", "noise": {"terms": 2, "sigma": 0.01}},
    {"kind": "data_flow", "repeats": 2, "scales": "slot", "scale": [0.5, 1.5], "max_layers": 9},
    {"kind": "two_stage", "parameters": {"method": "linear"}, "path": {"repeats": 2}},
]
STRATEGIES: list[Any] = [
    "random",
    {"kind": "cma_es", "population": 8, "sigma": 0.2, "restarts": "ipop"},
    {"kind": "m2n2", "archive": 9, "alpha": 1.0, "warm_up": 4},
    {"kind": "genetic", "population": 6, "succession": {"step": 0.4}, "elite": 0.2},
    {"kind": "map_elites", "cells": 4, "axes": [["zoo_target_gen"], ["zoo_target_mc"]]},
    {"kind": "staged", "first": {"kind": "random"}, "evaluations": 5, "then": {"kind": "cma_es"}},
    {"kind": "gradient", "steps": 4, "items": 5, "then": {"kind": "cma_es"}},
    {"kind": "grid", "points": 3},
]
REST: list[dict[str, Any]] = [
    {"budget": 20, "workers": 1},
    {"budget": {"evaluations": 20, "hours": 1.5}, "workers": {"threads": 1, "device": "cpu"}, "seed": 3},
    {"workers": {"kind": "ray", "count": 2, "cpus_per_worker": 0.5, "timeout": 60}, "out_dtype": "float32"},
    {"vocabulary": "union", "adapters": "full", "allow_unrelated": True, "trackers": [{"kind": "csv"}]},
]
FITNESS: list[dict[str, Any]] = [
    {"tasks": ["zoo_target_gen", "zoo_target_mc"], "subset": 8},
    {"tasks": [{"task": "zoo_target_gen", "weight": 2, "metric": "answer_loss"}, "zoo_target_mc"], "held_out": 0.4},
    {
        "tasks": [{"task": "zoo_target_mc", "min_share_of_best_source": 0.9}, "zoo_target_gen"],
        "subset": {"items": 8, "estimator": "mean", "rotate": True},
        "racing": {"test": "posterior", "error": 0.05, "block": 4},
        "finalists": 4,
        "batch_size": 8,
        "max_length": 128,
        "num_fewshot": 1,
    },
]
TEXTS = (
    "", "x", "auto", "none", "all", "0", "1e9999", "-", "~", "~nobody/x", "~root", ".", "..", "/", "/proc", "/dev/zero",
    "/dev/stdin", "/etc/passwd", "org/name", "org/name@", "a+b", "+", "http://localhost/x", "base",
    "\x00", "a\x00b", "\x1b[2J\x1b]0;x\x07", "\u202eevil\u2066", "a\nb", "\r\n", "\ufeff", "\U0001f600" * 9, "x" * 300,
    "y" * 100_000, "%s %n {0} {{x}}", "{{ 7 * 7 }}", "!!python/name:os.system", "ﬀ", "İ", "१२", "1_000", "0x10", "1:30",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 10**5, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 0.5, -0.5, 1e-320, 1e308,
    1e300, math.inf, -math.inf, math.nan, True, False,
)  # fmt: skip
YAML_TEXTS = (
    "*a", "&a ", "&a [*a]", "!!python/object/apply:os.system ['x']", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    "!x y", "<<: *a", "<<: {a: 1}", "? [a, b]\n: c\n", "---\n", "...\n", "%YAML 9.9\n", "2001-99-99", "2001-01-01",
    "\t", "{", "]", "'", '"', "|\n", ">-\n", "# ", ": ", "- ", "\n  ", "\x07", "\x85", "\u2028", "\ufeff", "0o17", "1e",
)  # fmt: skip
TYPOS = "abcdefghijklmnopqrstuvwxyz_-. 0"


def valid(rng: random.Random, tasks: Path) -> dict[str, Any]:
    """Return a search file that can be planned, or nearly: some combinations of its parts are refused."""
    fitness = rng.choice(FITNESS) | {"include_path": str(tasks)}
    parts = {"models": MODELS, "space": rng.choice(SPACES), "strategy": rng.choice(STRATEGIES), "fitness": fitness}
    return copy.deepcopy(parts | rng.choice(REST))


def mutated(rng: random.Random, tasks: Path, odd: list[str]) -> bytes:
    """Return a search file after one to four mutations of its structure, and perhaps of its text."""
    values: Any = valid(rng, tasks)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        values = _changed(rng, values, valid(rng, tasks), odd)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=rng.random() < 0.5)
    if rng.random() < 0.35:
        for _ in range(rng.randint(1, 3)):
            text = _edited(rng, text)
    data = text.encode("utf-8", errors="replace")
    if rng.random() < 0.02:
        data = rng.choice(
            (text.encode("utf-16"), data[: rng.randrange(len(data) + 1)] + b"\xff\xfe", b"\xef\xbb\xbf" + data)
        )
    return data


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _changed(rng: random.Random, values: Any, other: Any, odd: list[str]) -> Any:
    places = list(_places(values))
    if not places:
        return rng.choice((None, [], {}, "x", 3))
    *above, key = rng.choice(places)
    target, value = _at(values, tuple(above)), _at(values, (*above, key))
    what = rng.choice(
        ("delete", "odd", "odd", "odd", "number", "number", "wrap", "rename", "add", "graft", "key", "many")
    )
    if what == "delete":
        del target[key]
    elif what == "odd":
        target[key] = _odd(rng, odd)
    elif what == "number":
        target[key] = rng.choice(NUMBERS)
    elif what == "wrap":
        target[key] = rng.choice(([value], [value, value], {"kind": value}, {"a": value}, {key: value}, str(value)))
    elif what == "graft":
        target[key] = copy.deepcopy(_at(other, rng.choice(list(_places(other)))))
    elif what == "many":
        count = rng.choice((50, 2000))
        target[key] = rng.choice(([value] * count, {f"m{n}": value for n in range(count)}))
    elif isinstance(target, list):
        target.insert(rng.randrange(len(target) + 1), _odd(rng, odd))
    elif what == "rename":
        target[_typo(rng, str(key))] = target.pop(key)
    elif what == "key":
        target[rng.choice((None, 1, 2.5, True, "", "\x1b[31m", "x" * 5000, "kind", "\u202e", "1"))] = value
    else:
        names = [name for path in _places(other) if isinstance(name := path[-1], str)]
        target[rng.choice(names)] = _odd(rng, odd)
    return values


def _odd(rng: random.Random, odd: list[str], depth: int = 0) -> Any:
    if depth < 3 and rng.random() < 0.3:
        if rng.random() < 0.5:
            return [_odd(rng, odd, depth + 1) for _ in range(rng.randrange(4))]
        return {str(_odd(rng, odd, 9))[:50]: _odd(rng, odd, depth + 1) for _ in range(rng.randrange(3))}
    return rng.choice((None, rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(TEXTS), rng.choice(odd)))


def _typo(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return rng.choice((text[:at] + rng.choice(TYPOS) + text[at:], text[:at] + text[at + 1 :], text.upper(), text * 2))


def _edited(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    lines = text.splitlines(keepends=True) or [""]
    line = rng.randrange(len(lines))
    what = rng.choice(("insert", "insert", "cut", "repeat", "drop", "indent", "deep"))
    if what == "insert":
        return text[:at] + rng.choice(YAML_TEXTS) + text[at:]
    if what == "cut":
        return text[:at] + text[at + rng.randint(1, 40) :]
    if what == "deep":
        return text[:at] + rng.choice("[{") * rng.choice((3, 40, 5000)) + text[at:]
    if what == "repeat":
        lines.insert(line, lines[line])
    elif what == "drop":
        del lines[line]
    else:
        lines[line] = rng.choice(("  ", "\t", " ")) + lines[line]
    return "".join(lines)


def odd_places(folder: Path) -> list[str]:
    """Make files that are not what a search file's paths should name; return their paths."""
    os.mkfifo(folder / "pipe")
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "bytes").write_bytes(bytes(range(256)) * 20)
    (folder / "recipe.yaml").write_text("merge_method: linear\nmodels: [{model: ops, parameters: {weight: 1}}]\n")
    (folder / "model").mkdir()
    os.mkfifo(folder / "model" / "config.json")
    (folder / "tasks").mkdir()
    os.mkfifo(folder / "tasks" / "zoo_target_gen.yaml")
    (folder / "run").mkdir()
    os.mkfifo(folder / "run" / "events.sqlite")
    (folder / "deep").mkdir()
    (folder / "deep" / "config.json").write_text("[" * 100_000)
    return [str(path) for path in folder.iterdir()] + [str(folder / "nothing"), str(folder / "empty" / "below")]


class Hang(BaseException):
    """A file took longer than `LONGEST_TIME`."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` where the block takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_TIME)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(data: bytes, folder: Path) -> str | None:
    """Plan a search file offline; return what is wrong with the answer, None if nothing is."""
    (folder / "search.yaml").write_bytes(data)
    try:
        with limited():
            code, _, err = command.run("plan", "--offline", "search.yaml", cwd=folder)
    except Hang as error:
        return "it hangs in " + " < ".join(
            f"{frame.name}" for frame in traceback.extract_tb(error.__traceback__)[:-4:-1]
        )
    except BaseException as error:  # what escapes the command is a fault, too
        return f"{type(error).__name__}: {error}"
    if code not in (0, 1, 2):
        return f"exit {code}: {err}"
    if "unexpected" in err or "Traceback" in err:
        return err
    if len(err) > LONGEST_MESSAGE:
        return f"a message of {len(err)} characters: {err}"
    shown = err.replace("\n", "")
    if not shown.isprintable():
        return f"control characters: {err!r}"
    return None


def faults(count: int, seed: int, folder: Path) -> Iterator[tuple[int, bytes, str]]:
    """Yield the number, the contents and the fault of each search file that is not answered well."""
    tasks = few_items(folder / "zoo_tasks", ("zoo_target_gen", "zoo_target_mc"), 20)
    (folder / "odd").mkdir()
    _installed_tasks()  # this and the imports take seconds, once
    (folder / "search.yaml").write_text(yaml.safe_dump(valid(random.Random(seed), tasks)))
    command.run("plan", "--offline", "search.yaml", cwd=folder)
    odd = odd_places(folder / "odd")
    for number in range(count):
        data = mutated(random.Random(f"{seed}/{number}"), tasks, odd)
        found = fault(data, folder)
        if found is not None:
            yield number, data, found


def main() -> None:
    """Plan so many mutated files and print the faults."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started, found = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, data, what in faults(count, seed, Path(folder)):
            found += 1
            print(f"--- {number}: {what[:1500]}\n{data[:1500].decode(errors='replace')}", flush=True)
    print(f"{count} search files, {found} faults, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
