"""Readers of untrusted data end in a value or in an error of evomerge's own, whatever the bytes."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.runs.run import Asked, Run, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation
from tests.attacks.readers import READERS, event_log

RECIPE = b"""merge_method: ties
base_model: ./base
slices:
- sources:
  - {model: ./base, layer_range: [0, 2]}
  - {model: ./expert, layer_range: [0, 2], parameters: {weight: [0.1, 0.5], density: 0.3}}
dtype: bfloat16
"""
SEARCH = b"""models: {base: ./base, expert: ./expert}
space: {kind: layer_coefficients, method: ties, weight: {low: 0, high: 1}}
strategy: {kind: cma_es, sigma: 0.2}
fitness: {tasks: [{task: a, weight: 2.0}], subset: {items: 20}}
budget: {evaluations: 3}
"""
CONFIG = b'{"num_hidden_layers": 4, "model_type": "llama", "layer_types": ["a", {"num_experts": 8}]}'
SEEDS = {"recipe": RECIPE, "search_file": SEARCH, "model_files": CONFIG}

edits = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.integers(0, 12), st.binary(max_size=8) | st.sampled_from([b"*a", b"&a ", b"!!"])
    ),
    min_size=1,
    max_size=6,
)


def edited(seed: bytes, changes: list) -> bytes:
    """Return `seed` with some stretches replaced."""
    for place, length, new in changes:
        start = place % (len(seed) + 1)
        seed = seed[:start] + new + seed[start + length :]
    return seed


@pytest.mark.parametrize("reader", SEEDS)
@given(changes=edits)
def test_edited_files(reader, changes):
    READERS[reader](edited(SEEDS[reader], changes))


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes(reader, data):
    READERS[reader](data)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Return the bytes of an event log."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    with Run.create(path, "", {}) as run:
        for number in range(5):
            run.record(Asked(Candidate(number, np.zeros(3), "sample", 0), f"hash{number}"))
            seconds = {"merge": 0.1, "score": 0.2, "wait": 0.0}
            evaluation = Evaluation("ok", (1.0,), (0.0,), ("t/0", "t/1"), np.ones(2, np.float32), seconds)
            run.record(Told(number, evaluation, False, 1.0))
    connection = sqlite3.connect(path / "events.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (path / "events.sqlite").read_bytes()


@given(changes=edits)
def test_edited_logs(log, changes):
    event_log(edited(log, changes))
