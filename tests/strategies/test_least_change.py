"""AdaMMS's choice: the point whose answers differ least from its neighbours', whatever the scores."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from evomerge.config.search_file import SearchConfig
from evomerge.strategies import AnyStrategy, Evaluated, LeastChangeConfig
from evomerge.testing.planted import mixed, reals
from fitness.results import Evaluation

ITEMS = tuple(f"t/test/{at}" for at in range(4))


def search(answers, space=None, points=5):
    """Ask for the whole grid; the answers to four items follow from the genotype, all of them score the same."""
    strategy = LeastChangeConfig(points=points).build(space or reals(1), 0)
    while not strategy.finished:
        for candidate in strategy.ask(3):
            told = answers(candidate.genotype)
            if told is None:
                result = Evaluation.failed("no")
            else:
                result = Evaluation("ok", (0.5,), (0.1,), ITEMS, np.full(4, 0.5, np.float32), answers=tuple(told))
            strategy.tell([Evaluated(candidate.id, result)])
    return strategy


def test_the_point_whose_neighbours_answer_alike_is_chosen():
    """Five points; the answers of the last three differ in one item, the others in all. An end is never chosen."""
    told = ["aaaa", "bbbb", "cccc", "cccd", "cccd"]
    space = reals(1)
    at = np.linspace(space.low[0], space.high[0], 5)
    strategy = search(lambda x: told[int(np.argmin(np.abs(at - x[0])))], space)
    assert [strategy.change((place,)) for place in range(5)] == [None, 1.0, 0.625, 0.125, None]
    assert strategy.recommend().tolist() == [at[3]]


def test_equal_points_are_chosen_from_the_middle():
    strategy = search(lambda x: "aaaa")
    assert strategy.recommend()[0] == pytest.approx((reals(1).low[0] + reals(1).high[0]) / 2)


def test_a_failed_point_is_no_neighbour():
    space = reals(1)
    at = np.linspace(space.low[0], space.high[0], 5)
    assert search(lambda x: None if x[0] == at[1] else "aaaa", space).recommend()[0] == at[3]
    assert search(lambda x: None if x[0] == at[2] else "aaaa", space).recommend() is None


def test_neighbours_lie_along_every_gene():
    """With two genes only the middle of a three by three grid has all four neighbours."""
    strategy = search(lambda x: "aaaa" if x[0] < x[1] else "aaab", reals(2), points=3)
    assert strategy.recommend().tolist() == ((reals(2).low + reals(2).high) / 2).tolist()
    # its answers are those of (low, middle) and of (middle, high) with the last item changed
    assert strategy.change((1, 1)) == pytest.approx((0.25 + 0 + 0 + 0.25) / 4)


def test_what_it_cannot_search_is_refused():
    with pytest.raises(ValueError, match=r"some genes of this space are choices; write space.groups: model"):
        LeastChangeConfig().resolved(mixed(4), noise=0.1, evaluations=300)
    with pytest.raises(
        ValueError, match=r"3 values for each of 9 genes has more points than budget.evaluations \(300\)"
    ):
        LeastChangeConfig().resolved(reals(9), noise=0.1, evaluations=300)
    assert LeastChangeConfig().resolved(reals(1), noise=0.1, evaluations=11).points == 11
    with pytest.raises(ValidationError, match="greater than or equal to 3"):
        TypeAdapter(AnyStrategy).validate_python({"kind": "least_change", "points": 2})


@pytest.mark.parametrize(
    ("fitness", "message"),
    [
        ({"racing": {}}, r"compares all answers, and a race keeps none; remove fitness\.racing"),
        ({"subset": 20}, r"compares answers to the same items; write fitness\.subset\.rotate: false"),
    ],
)
def test_answers_must_be_complete_and_to_the_same_items(fitness, message):
    with pytest.raises(ValidationError, match=message):
        SearchConfig(models={"a": "x", "b": "y"}, strategy="least_change", fitness={"tasks": ["t"]} | fitness)
