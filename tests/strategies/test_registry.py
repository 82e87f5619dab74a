"""A strategy is one file: the rest of evomerge needs only what its config declares."""

import inspect
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from evomerge.config.search_file import SearchConfig
from evomerge.strategies import STRATEGIES, AnyStrategy, RandomConfig, register_strategy
from evomerge.strategies.registry import import_files, named_kind
from evomerge.testing.planted import reals
from search_spaces.registry import registering

SEARCH = {"models": {"base": "/m/base", "a": "/m/a"}, "fitness": {"tasks": ["a", "b"], "racing": {"test": "t"}}}
MINE = """
    from typing import Literal
    from evomerge.strategies.base import Strategy, StrategyConfig
    from evomerge.strategies.registry import register_strategy
    from evomerge.strategies.warm_start import WarmStartPopulation

    @register_strategy
    class MineConfig(StrategyConfig):
        warm_start_type = WarmStartPopulation
        kind_argument = "flavour"

        kind: Literal["mine"] = "mine"
        flavour: str = "plain"
        warm_start: WarmStartPopulation | None = None

        @property
        def keeps_archive(self):
            return self.flavour == "archive"

        def check_tasks(self, tasks):
            if "c" not in tasks and self.flavour == "c":
                raise ValueError("strategy.flavour: c needs task c; add it to fitness.tasks")

        def build(self, space, seed):
            return Mine(space, seed)

    class Mine(Strategy):
        population = 4

        def _propose(self, n):
            return [(self.space.sample(self.rng), "sample", 0) for _ in range(n)]

        def _learn(self, candidate, evaluation):
            pass
"""


class Undo(Exception):
    """Takes back what was registered."""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file in a folder of strategies, imported as `evomerge.strategies` imports its own files."""
    (tmp_path / "plugged").mkdir()
    (tmp_path / "plugged" / "mine.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Undo), registering("somebody-else"):
        import_files("plugged", [str(tmp_path / "plugged")])
        yield
        del sys.modules["plugged.mine"], sys.modules["plugged"]
        raise Undo


def test_a_file_in_the_folder_can_be_named_in_a_search_file(mine):
    config = SearchConfig.model_validate({**SEARCH, "strategy": "mine"})
    (candidate,) = config.strategy.resolved(reals(3), noise=0.1, evaluations=9).build(reals(3), 0).ask(1)
    assert candidate.genotype.shape == (3,)
    assert STRATEGIES.origin("mine") == "somebody-else"
    assert TypeAdapter(AnyStrategy).validate_python("mine:sweet").flavour == "sweet"
    assert SearchConfig.model_validate(config.model_dump(mode="json")) == config
    assert named_kind({"kind": "mine", "flavour": "sweet"}) == "mine:sweet"
    assert [named_kind({"kind": kind}) for kind in ("mine", "cma_es", "of_another_package")] == [
        "mine",
        "cma_es",
        "of_another_package",
    ]
    staged = {"kind": "staged", "first": {"kind": "mine"}}
    assert TypeAdapter(AnyStrategy).validate_python(staged).first == config.strategy


def test_its_traits_decide_what_is_refused_and_what_a_earlier_run_gives(mine):
    with pytest.raises(ValueError, match=r"racing.test t compares a generation's candidates, and mine:archive has"):
        SearchConfig.model_validate({**SEARCH, "strategy": "mine:archive"})
    with pytest.raises(ValueError, match=r"strategy.flavour: c needs task c; add it"):
        SearchConfig.model_validate({**SEARCH, "strategy": {"kind": "mine", "flavour": "c"}}).check_tasks(["a"])
    space = reals(3)
    warm = TypeAdapter(AnyStrategy).validate_python("mine").warm_started(space, [space.start])
    assert warm.earlier_run.points(space)[0] == pytest.approx(space.start)


def test_a_genetic_algorithm_that_replaces_the_worst_has_an_archive():
    """It is built as M2N2, which races each candidate against the members."""
    replacing = {"kind": "genetic", "preset": "replace_worst"}
    with pytest.raises(ValueError, match=r"genetic has an archive instead; write fitness.racing.test: posterior"):
        SearchConfig.model_validate({**SEARCH, "strategy": replacing})
    SearchConfig.model_validate({**SEARCH, "strategy": "genetic"})


def test_settings_that_are_no_strategy_are_refused():
    with pytest.raises(ValueError, match=r"int: a strategy's settings must be a subclass of StrategyConfig"):
        register_strategy(int)
    with pytest.raises(ValueError, match="strategy 'random' is taken, evomerge registers it; use another name"):
        register_strategy(RandomConfig)


def test_a_strategy_without_a_earlier_run_refuses_one():
    space = reals(2)
    with pytest.raises(ValueError, match=r"strategy.kind grid cannot use an earlier run; write another strategy.kind"):
        TypeAdapter(AnyStrategy).validate_python("grid").warm_started(space, [space.start])


def test_the_example_in_the_docs_passes_the_suite():
    """Every test of the suite that needs no argument."""
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    section = page.split("## A strategy of your own\n")[1].split("\n## ")[0]
    code = textwrap.dedent("\n".join(line for line in section.splitlines() if not line or line.startswith("    ")))
    with pytest.raises(Undo), registering("somebody-else"):
        names = {"__name__": "mine"}
        exec(code, names)
        suite = names["TestMine"]()
        tests = [getattr(suite, name) for name in dir(suite) if name.startswith("test_")]
        run = [test() for test in tests if not inspect.signature(test).parameters]
        assert len(run) > 8
        raise Undo
    assert "mine" not in STRATEGIES
