"""What every strategy must do, as a suite of tests to subclass.

::

    from evomerge.testing import StrategySuite

    class TestMine(StrategySuite):
        config = MineConfig(population=6)  # resolved: nothing in it is `auto`

pytest then drives it through planted problems: of reals, mixed, with one gene and with five hundred; with failures,
constant fitness, several workers, and a replay of what was recorded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from evomerge.strategies.base import AskTellError, Candidate, Evaluated, Genotype, Strategy
from evomerge.testing.planted import evaluate, mixed, reals
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Score = Callable[[Genotype], Evaluation]


class StrategySuite:
    """Tests that every strategy passes; subclass it as ``Test...`` and give its config.

    Attributes
    ----------
    config
        Resolved settings, with a small population.
    objectives
        How many objectives candidates are told.
    steady_state
        Whether results count one by one, so that what it proposes depends on their order. Otherwise it proposes the
        same in whatever order a generation's results come in.
    seeded
        Whether another seed gives other proposals.
    most_genes
        The largest space it takes.
    """

    config: ClassVar[Any]
    objectives: ClassVar[int] = 1
    steady_state: ClassVar[bool] = False
    seeded: ClassVar[bool] = True
    most_genes: ClassVar[int] = 500

    @pytest.fixture(params=[reals, mixed], ids=["reals", "mixed"])
    def make(self, request: pytest.FixtureRequest) -> Callable[[int], SearchSpace]:
        """Return a maker of spaces with so many planted genes."""
        return lambda count: self.around(request.param(count))

    def around(self, planted: SearchSpace) -> SearchSpace:
        """Return what the strategy searches: the planted space; one of spaces of a kind puts it into such a space."""
        return planted

    def score(self, space: SearchSpace) -> Score:
        """Return what scores genotypes of a space: a planted optimum."""
        return lambda genotype: evaluate(space, genotype, self.objectives)

    def drive(self, strategy: Strategy, score: Score, count: int) -> list[Candidate]:
        """Ask and tell one by one, until it has finished or `count` are told; return the proposals."""
        proposals: list[Candidate] = []
        while len(proposals) < count:
            asked = strategy.ask(1)
            if not asked:
                assert strategy.finished
                break
            proposals += asked
            strategy.tell([Evaluated(asked[0].id, score(asked[0].genotype))])
        return proposals

    def same(self, a: list[Candidate], b: list[Candidate]) -> None:
        """Compare proposals to the last bit."""
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert (one.id, one.kind, one.generation) == (other.id, other.kind, other.generation)
            assert np.array_equal(one.genotype, other.genotype)

    # --- proposals ---

    def test_ids_count_from_zero_and_genotypes_stay_in_the_box(self, make: Callable[[int], SearchSpace]) -> None:
        """Every proposal decodes to a recipe."""
        space = make(5)
        proposals = self.drive(self.config.build(space, seed=1), self.score(space), 60)
        assert [candidate.id for candidate in proposals] == list(range(len(proposals)))
        for candidate in proposals:
            assert candidate.genotype.shape == (space.dimension,)
            assert candidate.genotype.dtype == np.float64
            assert np.all(candidate.genotype >= space.low) and np.all(candidate.genotype <= space.high)
            space.decode(candidate.genotype)

    def test_generations_count_upwards_from_zero(self) -> None:
        """The driver judges whole generations."""
        space = self.around(reals(3))
        strategy = self.config.build(space, 0)
        generations = [candidate.generation for candidate in self.drive(strategy, self.score(space), 60)]
        assert generations[0] == 0
        assert set(np.diff(generations).tolist()) <= {0, 1}
        assert strategy.population >= 1

    def test_the_seed_decides(self, make: Callable[[int], SearchSpace]) -> None:
        """Equal seeds, equal proposals."""
        space = make(4)
        runs = [self.drive(self.config.build(space, seed), self.score(space), 40) for seed in (3, 3, 4)]
        self.same(runs[0], runs[1])
        differs = any(not np.array_equal(a.genotype, b.genotype) for a, b in zip(runs[0], runs[2], strict=True))
        assert differs == self.seeded

    def test_global_generators_are_neither_read_nor_moved(self, make: Callable[[int], SearchSpace]) -> None:
        """Neither numpy's nor Python's."""
        space = make(4)
        self.drive(self.config.build(space, 0), self.score(space), 1)  # imports may move them, once
        np.random.seed(0)
        random.seed(0)
        before = _global_states()
        first = self.drive(self.config.build(space, 0), self.score(space), 30)
        assert _global_states() == before
        np.random.seed(99)
        random.seed(99)
        self.same(first, self.drive(self.config.build(space, 0), self.score(space), 30))

    def test_one_gene(self) -> None:
        """A single coefficient can be searched."""
        space = self.around(reals(1))
        proposals = self.drive(self.config.build(space, 0), self.score(space), 40)
        assert all(candidate.genotype.shape == (space.dimension,) for candidate in proposals)

    def test_many_genes(self, make: Callable[[int], SearchSpace]) -> None:
        """As many as a large model has."""
        space = make(self.most_genes)
        proposals = self.drive(self.config.build(space, 0), self.score(space), 30)
        assert proposals[-1].genotype.shape == (space.dimension,)
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)

    def test_what_it_recommends_lies_in_the_box(self, make: Callable[[int], SearchSpace]) -> None:
        """Before the first result, and later; a strategy may have nothing to recommend."""
        space = make(4)
        strategy = self.config.build(space, 0)
        guesses = [strategy.recommend()]
        self.drive(strategy, self.score(space), 30)
        guesses.append(strategy.recommend())
        for guess in guesses:
            if guess is not None:
                space.decode(guess)

    # --- order of calls ---

    @pytest.mark.parametrize("batch", [1, 4, 100])
    def test_asking_many_at_once_equals_asking_one_by_one(self, batch: int) -> None:
        """And for synchronous strategies the order of a generation's results counts for nothing."""
        if self.steady_state:
            pytest.skip("what it proposes depends on the results so far")
        space = self.around(reals(4))
        score = self.score(space)
        expected = self.drive(self.config.build(space, 0), score, 40)
        strategy = self.config.build(space, 0)
        proposals: list[Candidate] = []
        while len(proposals) < len(expected):
            asked = strategy.ask(batch)
            proposals += asked
            strategy.tell(Evaluated(candidate.id, score(candidate.genotype)) for candidate in reversed(asked))
        self.same(expected, proposals[: len(expected)])

    def test_a_replay_equals_the_original(self, make: Callable[[int], SearchSpace]) -> None:
        """Several workers finish in any order; led through the same asks and tells, it proposes the same."""
        space = make(4)
        score = self.score(space)
        order = np.random.default_rng(0)
        strategy = self.config.build(space, 7)
        running: list[Candidate] = []
        events: list[tuple[Candidate, Evaluation | None]] = []
        while len(events) < 120:
            asked = strategy.ask(1) if len(running) < 3 else []
            if asked:
                running += asked
                events.append((asked[0], None))
            elif running:
                candidate = running.pop(int(order.integers(len(running))))
                evaluation = score(candidate.genotype)
                strategy.tell([Evaluated(candidate.id, evaluation)])
                events.append((candidate, evaluation))
            else:
                assert strategy.finished
                break
        replayed = self.config.build(space, 7)
        for candidate, told in events:
            if told is None:
                self.same(replayed.ask(1), [candidate])
            else:
                replayed.tell([Evaluated(candidate.id, told)])

    def test_an_unknown_id_is_an_error_that_names_the_call(self) -> None:
        """With what to do instead."""
        strategy = self.config.build(self.around(reals(3)), 0)
        with pytest.raises(AskTellError, match=r"candidate 7 was never asked; tell each candidate once"):
            strategy.tell([Evaluated(7, Evaluation.failed("never asked"))])

    def test_a_second_tell_is_an_error(self) -> None:
        """Results are told once."""
        space = self.around(reals(3))
        strategy = self.config.build(space, 0)
        (candidate,) = strategy.ask(1)
        result = Evaluated(candidate.id, self.score(space)(candidate.genotype))
        strategy.tell([result])
        with pytest.raises(AskTellError, match="candidate 0 has been told already"):
            strategy.tell([result])

    def test_asking_for_nothing_is_an_error(self) -> None:
        """At least one."""
        with pytest.raises(AskTellError, match="at least one"):
            self.config.build(self.around(reals(3)), 0).ask(0)

    def test_a_callers_change_to_a_genotype_changes_nothing(self) -> None:
        """Proposals are copies."""
        space = self.around(reals(4))
        score = self.score(space)
        expected = self.drive(self.config.build(space, 0), score, 40)
        strategy = self.config.build(space, 0)
        for reference in expected:
            (candidate,) = strategy.ask(1)
            assert np.array_equal(candidate.genotype, reference.genotype)
            evaluation = score(candidate.genotype)
            candidate.genotype[:] = 0.0
            strategy.tell([Evaluated(candidate.id, evaluation)])

    # --- results of all kinds ---

    @pytest.mark.parametrize("share", [0.3, 1.0])
    def test_failed_candidates_do_not_stop_it(self, make: Callable[[int], SearchSpace], share: float) -> None:
        """Some, or all: it goes on proposing recipes."""
        space = make(4)
        score, rng = self.score(space), np.random.default_rng(0)
        proposals = self.drive(
            self.config.build(space, 0),
            lambda genotype: Evaluation.failed("injected") if rng.random() < share else score(genotype),
            80,
        )
        for candidate in proposals:
            space.decode(candidate.genotype)

    def test_values_that_are_not_numbers_count_as_failures(self) -> None:
        """A NaN that got past the evaluator ends no search."""
        space = self.around(reals(4))
        nan = Evaluation("ok", (float("nan"),) * self.objectives, (0.0,) * self.objectives)
        score, rng = self.score(space), np.random.default_rng(0)
        proposals = self.drive(
            self.config.build(space, 0), lambda genotype: nan if rng.random() < 0.3 else score(genotype), 60
        )
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)

    def test_constant_fitness_does_not_stop_it(self, make: Callable[[int], SearchSpace]) -> None:
        """Nothing can be learnt, and nothing breaks."""
        space = make(4)
        constant = self.score(space)(space.start)
        proposals = self.drive(self.config.build(space, 0), lambda genotype: constant, 200)
        for candidate in proposals:
            space.decode(candidate.genotype)

    # --- settings ---

    def test_settings_survive_the_config_file(self) -> None:
        """What is written to the run's config reads back equal, and resolving it again changes nothing."""
        config = type(self.config)
        assert config.model_validate(self.config.model_dump(mode="json")) == self.config
        assert self.config.resolved(self.around(reals(3)), noise=0.1, evaluations=1000) == self.config
        assert self.config.objectives in (("several", "any") if self.objectives > 1 else ("one", "any"))


def _global_states() -> tuple[object, ...]:
    """Return the states of numpy's and Python's global generators, to be compared."""
    numpy: Any = np.random.get_state(legacy=False)
    return numpy["state"]["key"].tolist(), numpy["state"]["pos"], random.getstate()
