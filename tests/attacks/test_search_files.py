"""Mutated search files are planned or refused in a few lines, without a hang; 10,000 of them in the slow suite."""

import pytest

from fitness.tasks import loading
from tests.attacks.search_files import faults


def test_some_mutated_search_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_installed_tasks", dict)  # takes seconds to index
    monkeypatch.setattr("tests.attacks.search_files._installed_tasks", dict)
    assert not list(faults(60, 1, tmp_path))


@pytest.mark.slow
def test_ten_thousand_mutated_search_files(tmp_path):
    assert not list(faults(10_000, 0, tmp_path))
