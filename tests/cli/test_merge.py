"""`evomerge merge`: what it does before torch is there."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from evomerge.cli.merge import uncollected


def test_nothing_is_collected_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_later_merge_of_the_same_process_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_recipe_is_read_without_torch_and_pydantic() -> None:
    program = (
        "import sys, evomerge.cli.main, evomerge.cli.merge; from evomerge.plugins import load_plugins; load_plugins(); "
        "print({'torch', 'pydantic', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
