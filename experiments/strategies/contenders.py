"""The strategies that are compared, with their settings and how their candidates are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fitness.estimation.evaluation_plan import FixedItemsPlan
from fitness.items import task_of
from fitness.objectives import Objectives


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes
    ----------
    name
        Name in the table.
    strategy
        The `strategy` part of a search file.
    items
        Items that a candidate answers, over all tasks together.
    changes
        Further differences from `zoo/cma_es.yaml`'s search file, as `evomerge search --set` takes them.
    fresh
        Whether each generation answers other items (`FreshItems`).
    longer
        Item evaluations beyond the budget at which its guess is scored too, to see when it reaches the level.
    """

    name: str
    strategy: Mapping[str, Any]
    items: int = 50
    changes: tuple[str, ...] = ()
    fresh: bool = False
    longer: tuple[int, ...] = ()
    group: Literal["strategies", "levers"] = "strategies"


PLAIN = Contender("CMA-ES, 200 items", {"kind": "cma_es"}, items=200, longer=(12_000, 16_000, 24_000), group="levers")
"""CMA-ES at its default settings, with as many items per candidate as `zoo/cma_es.yaml` asks."""

STRATEGIES = (
    Contender("CMA-ES", {"kind": "cma_es"}),
    Contender("random", {"kind": "random"}),
    Contender("EDA", {"kind": "eda"}),
    Contender("CatCMA", {"kind": "catcma"}),
    Contender("CMA-ES, adapted rate", {"kind": "cma_es", "learning_rate": "adapted"}),
    Contender("nevergrad:TBPSA", {"kind": "nevergrad:TBPSA"}),
    Contender("nevergrad:TwoPointsDE", {"kind": "nevergrad:TwoPointsDE"}),
    Contender("M2N2, mutation 0.5", {"kind": "m2n2", "mutation": 0.5}),
    Contender("M2N2, mixtures", {"kind": "m2n2"}, changes=("space={kind: mixture, chunks: layers}",)),
    Contender("genetic", {"kind": "genetic"}),
    Contender("GENOME+", {"kind": "genetic", "preset": "genome_plus"}),
    # The cells need two scores: the target's halves, which are tasks too.
    Contender(
        "MAP-Elites", {"kind": "map_elites"}, changes=("fitness.tasks=[{task: zoo_target_ja}, {task: zoo_target_eo}]",)
    ),
)
LEVERS = (
    PLAIN,
    Contender("CMA-ES, 100 items", {"kind": "cma_es"}, items=100, group="levers"),
    Contender("CMA-ES, 25 items", {"kind": "cma_es"}, items=25, group="levers"),
    Contender("CMA-ES, 50 fresh items", {"kind": "cma_es"}, fresh=True, group="levers"),
    Contender("CMA-ES, 25 fresh items", {"kind": "cma_es"}, items=25, fresh=True, group="levers"),
    Contender("CMA-ES, σ 0.1", {"kind": "cma_es", "sigma": 0.1}, group="levers"),
    Contender("CMA-ES, σ 0.05", {"kind": "cma_es", "sigma": 0.05}, group="levers"),
    *(
        Contender(
            f"CMA-ES, σ {sigma}, 25 fresh items",
            {"kind": "cma_es", "sigma": sigma},
            items=25,
            fresh=True,
            longer=(12_000, 16_000),
            group="levers",
        )
        for sigma in (0.1, 0.05)
    ),
)


class FreshItems(FixedItemsPlan):
    """Each generation answers the next items of a shuffled list, task by task; at its end the list starts again.

    A search file's ``fitness.subset: {rotate: true, estimator: mean}`` draws each generation's items independently of
    those before, so that some items come up twice before others come up at all. The results were measured with the
    list, which asks every item once before any item twice; this class stays until they are measured again.
    """

    def __init__(self, items: Sequence[str], count: int, objectives: Objectives, seed: int) -> None:
        super().__init__(items, objectives)
        rng = np.random.default_rng(seed)
        self._count = count
        self._shuffled: dict[str, list[str]] = {}
        for item in rng.permutation(np.array(items, dtype=object)):
            self._shuffled.setdefault(task_of(item), []).append(item)

    def items(self, generation: int) -> tuple[str, ...]:
        """Return a generation's items."""
        return tuple(
            items[(generation * self._count + offset) % len(items)]
            for items in self._shuffled.values()
            for offset in range(self._count)
        )
