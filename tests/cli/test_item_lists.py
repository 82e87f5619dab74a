"""`fitness.subset: {ids: FILE}`: candidates are asked the listed items, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.search.problem import Problem
from fitness.estimation.evaluation_plan import FixedItemsPlan


@pytest.fixture
def opened(tmp_path: Path, write: Any, config: Any) -> Any:
    """Return a function that opens a search that asks the items in a text."""

    def opened(text: str, **subset: Any) -> Problem:
        (tmp_path / "ids.txt").write_text(text, encoding="utf-8")
        fitness = config()["fitness"] | {"subset": {"ids": "ids.txt", **subset}}
        return Problem(load(write(tmp_path, fitness=fitness)), scan=False)

    return opened


def test_candidates_are_asked_the_listed_items(opened: Any) -> None:
    problem = opened("# chosen\nzoo_target_gen/validation/7\n\nzoo_target_gen/validation/2\n")
    assert problem.subset == ("zoo_target_gen/validation/2", "zoo_target_gen/validation/7")
    assert len(problem.search_items) == 100
    assert not problem.needs_sources
    plan = problem.evaluation_plan(scorer=None)
    assert isinstance(plan, FixedItemsPlan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "zoo_target_gen/validation/7000",
            r"item 'zoo_target_gen/validation/7000' is not a search item \(1 such\)",
        ),
        ("zoo_target_gen/test/1", "item 'zoo_target_gen/test/1' is held out"),
        ("", "task 'zoo_target_gen' has no item in the list"),
    ],
)
def test_lists_that_cannot_be_asked(opened: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(text)


def test_a_missing_file(tmp_path: Path, write: Any, config: Any) -> None:
    fitness = config()["fitness"] | {"subset": {"ids": "none.txt"}}
    with pytest.raises(ConfigError, match=r"fitness.subset.ids: .*none.txt: cannot be read"):
        Problem(load(write(tmp_path, fitness=fitness)), scan=False)


@pytest.mark.parametrize("more", [{"items": 5}, {"rotate": True}, {"estimator": "inherited"}])
def test_ids_stand_alone(opened: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ids lists the items"):
        opened("zoo_target_gen/validation/7", **more)
