"""Odd values at every place of a search file: lines in words of the file, never a traceback or a validator's label."""

import copy
import random

import pytest
import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.schema import alternatives, bare, described, hint_of, kind_of, sections
from evomerge.config.search_file import SearchConfig

LABELS = ("constrained", "input tag", "instance of", "function-", "literal[", "is-instance", "Config", "discriminator")
ODD = (
    None, 0, -1, 2.5, float("inf"), float("nan"), True, "", "x", "auto", "9" * 300, 10**300, [], [1], [0, 1],
    ["a", "a"], [[]], {}, {"low": 0, "high": 1}, {"kind": "x"}, {"kind": ["x"]}, {1: 2}, {"run": "x"},
)  # fmt: skip
MODELS = {"base": "org/base", "expert": "org/expert"}


def places(hint, value=None, depth=0):
    """Yield pairs of a path and a function that puts a value there, for all keys of all kinds of sections."""
    for section in sections(hint):
        for name, field in section.model_fields.items():
            kind = {} if kind_of(section) is None else {"kind": kind_of(section)}
            yield (*((kind,) if depth else ()), name)
            if depth < 2:
                for rest in places(hint_of(field), depth=depth + 1):
                    yield (name, *rest)


def put(path, odd):
    """Return a small search file with an odd value at a path of keys; mappings in the path are other keys there."""
    values = {"models": dict(MODELS), "fitness": {"tasks": ["a", "b"]}}
    target = values
    for key in path[:-1]:
        if isinstance(key, dict):
            target |= key
        else:
            target[key] = dict(target[key]) if isinstance(target.get(key), dict) else {}
            target = target[key]
    target[path[-1]] = copy.deepcopy(odd)
    return values


def test_an_odd_value_at_each_place(tmp_path):
    rng = random.Random(0)
    file = tmp_path / "search.yaml"
    refused = 0
    found = sorted(set(map(str, places(SearchConfig))))
    assert len(found) > 150
    for path in places(SearchConfig):
        for odd in rng.sample(ODD, 4):
            file.write_text(yaml.safe_dump(put(path, odd)), encoding="utf-8")
            try:
                load(file)
            except ConfigError as error:
                refused += 1
                for line in str(error).splitlines():
                    assert line.startswith(f"{file}:"), line
                    assert not any(label in line for label in LABELS), line
                    assert len(line) < 1000 + len(str(file)), line
    assert refused > 300


@pytest.mark.parametrize(
    "text",
    [
        "x.y.z=1",
        "budget=+1",
        "space.weight.low=a",
        "fitness=3",
        "models.b.c=1",
        "a.0=1",
        "=",
        "==",
        "fitness.tasks.²=b",
    ],
)
def test_odd_overrides(tmp_path, text):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({"models": MODELS, "fitness": {"tasks": ["a"]}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"--set|{file}"):
        load(file, [text])


def numbers(section, seen):
    """Yield every key of a section, nested ones included, that takes a number, with the number's type."""
    for name, field in section.model_fields.items():
        for member in alternatives(hint_of(field)):
            if bare(member) in (int, float):
                yield f"{section.__name__}.{name}", member
        for inner in sections(hint_of(field)):
            if inner not in seen:
                seen.add(inner)
                yield from numbers(inner, seen)


BOUNDED_ELSEWHERE = {"Range.start", "MixtureConfig.chunks"}
"""By the range that it is in; by a validator."""


def test_every_number_has_a_largest_value():
    found = dict(numbers(SearchConfig, set()))
    assert len(found) > 60
    bounds = {key: described(member) for key, member in found.items()}
    without = {key for key, words in bounds.items() if not any(word in words for word in ("to ", "at most", "below"))}
    assert without == BOUNDED_ELSEWHERE


@pytest.mark.parametrize(
    ("path", "value", "bound"),
    [
        (["strategy", {"kind": "cma_es"}, "population"], 2**63, "from 4 to 10,000"),
        (["strategy", {"kind": "m2n2"}, "archive"], 10**30, "from 2 to 10,000"),
        (["workers", {"kind": "inline"}, "threads"], 10**5, "from 1 to 1,024"),
        (["workers", {"kind": "ray"}, "count"], 10**9, "from 1 to 10,000"),
        (["budget", "evaluations"], 2**63, "from 1 to 10,000,000"),
        (["budget", "hours"], 1e300, "at most 100,000"),
        (["fitness", "batch_size"], 2**31, "from 1 to 100,000"),
        (["fitness", "max_length"], 10**12, "from 2 to 100,000,000"),
        (["fitness", "subset", "items"], 10**18, "from 1 to 1,000,000"),
        (["seed"], 2**64, "from 0 to 4,294,967,295"),
        (["space", {"kind": "mixture"}, "chunks"], 10**9, "1 to 4096"),
        (["space", {"kind": "layer_coefficients"}, "weight"], [0, 1e308], "from -1,000 to 1,000"),
    ],
)
def test_numbers_that_no_machine_has_room_for(tmp_path, path, value, bound):
    file = tmp_path / "search.yaml"
    values = put(path, value)
    values["fitness"].setdefault("tasks", ["a", "b"])
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=bound):
        load(file)
