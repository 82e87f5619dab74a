"""Plug-ins of other packages: loaded once, and a failing one is one line and leaves nothing behind."""

import logging
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from evomerge import plugins
from evomerge.plugins import load_plugins
from evomerge.workers.config import InlineConfig
from evomerge.workers.registry import WORKERS

ROOT = Path(__file__).parent.parent
GOOD = """
from typing import Literal
from evomerge.workers.config import InlineConfig
from evomerge.workers.registry import register_workers

@register_workers
class LuckyConfig(InlineConfig):
    kind: Literal["lucky"] = "lucky"
"""
TAKEN = GOOD.replace("lucky", "inline").replace("Lucky", "Other")
LOOSE = GOOD.replace("lucky", "loose").replace("Lucky", "Loose") + "    model_config = {'extra': 'allow'}\n"
HALF = GOOD.replace("lucky", "half").replace("Lucky", "Half") + "\nraise RuntimeError('no\\n  licence')\n"


class Distribution:
    def __init__(self, name):
        self.name, self.version = name, "1.2"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that makes these modules look like the plug-ins of installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    names = set()

    def installed(**modules):
        found = []
        for name, text in modules.items():
            (tmp_path / f"plug_{name}.py").write_text(text)
            names.add(f"plug_{name}")
            found.append(EntryPoint(name, f"plug_{name}", plugins.GROUP)._for(Distribution(f"evomerge-{name}")))
        monkeypatch.setattr(plugins, "entry_points", lambda group: found)
        load_plugins.cache_clear()
        return load_plugins()

    assert InlineConfig in WORKERS.values()  # ours are registered before
    before = set(WORKERS)
    yield installed
    for name in set(WORKERS) - before:
        WORKERS._values.pop(name)
        WORKERS._origins.pop(name)
    for name in names:
        sys.modules.pop(name, None)
    load_plugins.cache_clear()


def test_a_plugin_is_named_in_a_search_file_like_our_own(installed, tmp_path):
    (plugin,) = installed(good=GOOD)
    assert plugin.error is None
    assert WORKERS.origin("lucky") == "evomerge-good"
    from evomerge.config.errors import ConfigError
    from evomerge.config.load import load
    from evomerge.config.reference import reference

    path = tmp_path / "search.yaml"
    path.write_text("models: {a: o/a, b: o/b}\nfitness: {tasks: [t]}\nworkers: {kind: lucky, threads: 3}\n")
    config = load(path)
    assert (config.workers.kind, config.workers.threads) == ("lucky", 3)
    path.write_text(config.to_yaml())
    assert load(path) == config
    path.write_text("models: {a: o/a, b: o/b}\nfitness: {tasks: [t]}\nworkers: {kind: luky, threads: 3}\n")
    with pytest.raises(
        ConfigError, match=r"search\.yaml:3: workers\.kind: kind 'luky' is unknown; did you mean `lucky`\?"
    ):
        load(path)
    with pytest.raises(ConfigError, match=r"workers\.threads: write a whole number from 1 to 1,024 \(got 0\)"):
        load(path, ["workers.kind=lucky", "workers.threads=0"])
    assert "`kind: lucky`" in reference()


def test_one_that_fails_is_one_line_and_the_others_work(installed, caplog):
    with caplog.at_level(logging.ERROR, logger="evomerge"):
        found = installed(
            absent="import not_there_at_all\n",
            good=GOOD,
            half=HALF,
            leaves="raise SystemExit(3)",
            loose=LOOSE,
            taken=TAKEN,
        )
    assert [plugin.error is None for plugin in found] == [False, True, False, False, False, False]
    assert "lucky" in WORKERS and "half" not in WORKERS and "loose" not in WORKERS
    assert WORKERS.origin("inline") == "evomerge"
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "plug-in evomerge-absent 1.2 (absent = plug_absent): not loaded, ModuleNotFoundError: No module named "
        "'not_there_at_all'",
        "plug-in evomerge-half 1.2 (half = plug_half): not loaded, RuntimeError: no licence",
        "plug-in evomerge-leaves 1.2 (leaves = plug_leaves): not loaded, SystemExit: 3",
        "plug-in evomerge-loose 1.2 (loose = plug_loose): not loaded, ValueError: LooseConfig: settings must be "
        'frozen and refuse unknown keys; write model_config = ConfigDict(frozen=True, extra="forbid")',
        "plug-in evomerge-taken 1.2 (taken = plug_taken): not loaded, ValueError: worker kind 'inline' is taken, "
        "evomerge registers it; use another name",
    ]


def test_what_one_prints_is_not_a_commands_output(installed, capsys):
    installed(loud="print('hello')\n")
    assert capsys.readouterr() == ("", "hello\n")


def test_they_are_loaded_once(installed):
    assert installed(good=GOOD) is load_plugins()


def test_without_plugins_there_is_nothing_to_say(installed):
    assert installed() == ()


BROKEN = """
import evomerge.merging.methods
from evomerge.workers.config import InlineConfig
from fitness.config import FitnessConfig
raise ValueError("broken")
"""
SHOWN = """
from evomerge.plugins import load_plugins
(plugin,) = load_plugins()
from evomerge.merging.methods.registry import IMPLEMENTATIONS
from evomerge.strategies.registry import STRATEGIES
from evomerge.workers.registry import WORKERS
from fitness.estimation.registry import ESTIMATORS
from search_spaces.recipes.methods import METHODS
from search_spaces.spaces.registry import SPACES
print(plugin.error)
for registry in (IMPLEMENTATIONS, METHODS, STRATEGIES, WORKERS, ESTIMATORS, SPACES):
    print(len(registry) > 1, {registry.origin(name) for name in registry})
"""


def test_what_a_plugin_imports_of_ours_stays_ours(tmp_path):
    """A plug-in may be the first to import our modules, and fail after that."""
    (tmp_path / "broken.py").write_text(BROKEN)
    metadata = tmp_path / "evomerge_broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: evomerge-broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[evomerge.plugins]\nmine = broken\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["ValueError: broken", *["True {'evomerge'}"] * 6]
    assert done.stderr == "plug-in evomerge-broken 1.0 (mine = broken): not loaded, ValueError: broken\n"
