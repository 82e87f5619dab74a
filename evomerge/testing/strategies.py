"""Conformance tests for strategies, as a suite to subclass.

::

    from evomerge.testing import StrategySuite

    class TestMine(StrategySuite):
        config = MineConfig(population=6)  # resolved: no setting is `auto`

pytest then runs the strategy on planted problems: with real genes only and with mixed ones, with one gene and with five
hundred, with failures, with constant fitness, with several workers, and as a replay of recorded events.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge.strategies import AnyStrategy, StrategyConfig
from evomerge.strategies.base import Archiving, AskTellError, Candidate, Evaluated, Genotype, Strategy
from evomerge.testing.planted import evaluate, mixed, reals
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Score = Callable[[Genotype], Evaluation]


class StrategySuite:
    """Tests that every strategy passes; subclass it as ``Test...`` and give the settings.

    Attributes
    ----------
    config
        Resolved settings, with a small population.
    objectives
        Number of objectives in the results.
    steady_state
        Whether its proposals depend on the order of results. If not, asking many at once must equal asking one by one.
    seeded
        Whether another seed gives other proposals.
    most_genes
        The largest number of genes that it is tested with.
    kinds_of_genes
        Planted spaces that it can search, as functions of a number of genes.
    """

    config: ClassVar[StrategyConfig]
    objectives: ClassVar[int] = 1
    steady_state: ClassVar[bool] = False
    seeded: ClassVar[bool] = True
    most_genes: ClassVar[int] = 500
    kinds_of_genes: ClassVar[tuple[Callable[[int], SearchSpace], ...]] = (reals, mixed)

    @pytest.fixture(params=[reals, mixed], ids=["reals", "mixed"])
    def make(self, request: pytest.FixtureRequest) -> Callable[[int], SearchSpace]:
        """Return a function from a number of genes to a planted space."""
        if request.param not in self.kinds_of_genes:
            pytest.skip("it refuses such genes")
        return lambda count: self.around(request.param(count))

    def around(self, planted: SearchSpace) -> SearchSpace:
        """Return the space to search; a strategy for one kind of space puts the planted space into such a space."""
        return planted

    def score(self, space: SearchSpace) -> Score:
        """Return the function that scores genotypes, with a planted optimum."""
        return lambda genotype: evaluate(space, genotype, self.objectives)

    def drive(self, strategy: Strategy, score: Score, count: int) -> list[Candidate]:
        """Ask and tell one by one until the strategy finishes or `count` results are told; return the proposals."""
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
        """Assert that two lists of proposals are equal to the last bit."""
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
        """Failures are counted per generation."""
        space = self.around(reals(3))
        strategy = self.config.build(space, 0)
        generations = [candidate.generation for candidate in self.drive(strategy, self.score(space), 60)]
        assert generations[0] == 0
        assert set(np.diff(generations).tolist()) <= {0, 1}
        assert strategy.population >= 1

    def test_the_seed_decides(self, make: Callable[[int], SearchSpace]) -> None:
        """Equal seeds give equal proposals, other seeds others."""
        space = make(4)
        runs = [self.drive(self.config.build(space, seed), self.score(space), 40) for seed in (3, 3, 4)]
        self.same(runs[0], runs[1])
        differs = any(not np.array_equal(a.genotype, b.genotype) for a, b in zip(runs[0], runs[2], strict=True))
        assert differs == self.seeded

    def test_global_generators_are_neither_read_nor_moved(self, make: Callable[[int], SearchSpace]) -> None:
        """All random numbers come from the strategy's own generator, not from numpy's or Python's global ones."""
        space = make(4)
        self.drive(self.config.build(space, 0), self.score(space), 1)  # importing a package may change them once
        np.random.seed(0)
        random.seed(0)
        before = _global_states()
        first = self.drive(self.config.build(space, 0), self.score(space), 30)
        assert _global_states() == before
        np.random.seed(99)
        random.seed(99)
        self.same(first, self.drive(self.config.build(space, 0), self.score(space), 30))

    def test_members_are_proposals_best_first(self) -> None:
        """A population or archive holds what was proposed; copies, since callers may change them."""
        space = self.around(reals(3))
        strategy, score = self.config.build(space, 0), self.score(space)
        proposed = {one.genotype.tobytes() for one in self.drive(strategy, score, 40)}
        members = strategy.members()
        assert all(member.tobytes() in proposed for member in members)
        if self.objectives == 1:
            fitness = [score(member).fitness for member in members]
            assert fitness == sorted(fitness, reverse=True)
        for member in members:
            member[:] = np.nan
        assert all(np.isfinite(member).all() for member in strategy.members())

    def test_one_gene(self) -> None:
        """A single coefficient can be searched."""
        space = self.around(reals(1))
        proposals = self.drive(self.config.build(space, 0), self.score(space), 40)
        assert all(candidate.genotype.shape == (space.dimension,) for candidate in proposals)

    def test_many_genes(self, make: Callable[[int], SearchSpace]) -> None:
        """A space with many genes can be searched."""
        space = make(self.most_genes)
        proposals = self.drive(self.config.build(space, 0), self.score(space), 30)
        assert proposals[-1].genotype.shape == (space.dimension,)
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)

    def test_what_it_recommends_lies_in_the_box(self, make: Callable[[int], SearchSpace]) -> None:
        """Before the first result and later; a strategy may have no recommendation."""
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
        """The order of the results within a generation has no effect either."""
        if self.steady_state:
            pytest.skip("its proposals depend on the results so far")
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
        """With several workers results come in any order; the same asks and tells give the same proposals."""
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
        """The message says what to do instead."""
        strategy = self.config.build(self.around(reals(3)), 0)
        with pytest.raises(AskTellError, match=r"candidate 7 was never asked; tell each candidate once"):
            strategy.tell([Evaluated(7, Evaluation.failed("never asked"))])

    def test_a_second_tell_is_an_error(self) -> None:
        """Each result is told once."""
        space = self.around(reals(3))
        strategy = self.config.build(space, 0)
        (candidate,) = strategy.ask(1)
        result = Evaluated(candidate.id, self.score(space)(candidate.genotype))
        strategy.tell([result])
        with pytest.raises(AskTellError, match="candidate 0 has been told already"):
            strategy.tell([result])

    def test_asking_for_nothing_is_an_error(self) -> None:
        """`ask` needs a number of at least one."""
        with pytest.raises(AskTellError, match="at least one"):
            self.config.build(self.around(reals(3)), 0).ask(0)

    def test_a_callers_change_to_a_genotype_changes_nothing(self) -> None:
        """Proposals are copies of what the strategy keeps."""
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
        """If some or all candidates fail, it keeps proposing recipes."""
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
        """A NaN in a result that is "ok" does not end the search."""
        space = self.around(reals(4))
        nan = Evaluation("ok", (float("nan"),) * self.objectives, (0.0,) * self.objectives)
        score, rng = self.score(space), np.random.default_rng(0)
        proposals = self.drive(
            self.config.build(space, 0), lambda genotype: nan if rng.random() < 0.3 else score(genotype), 60
        )
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)

    def test_constant_fitness_does_not_stop_it(self, make: Callable[[int], SearchSpace]) -> None:
        """There is nothing to learn, and no error."""
        space = make(4)
        constant = self.score(space)(space.start)
        proposals = self.drive(self.config.build(space, 0), lambda genotype: constant, 200)
        for candidate in proposals:
            space.decode(candidate.genotype)

    # --- settings ---

    def test_settings_survive_the_config_file(self) -> None:
        """What is saved with a run reads back equal through the registry, and resolving it again changes nothing."""
        read = TypeAdapter(AnyStrategy).validate_python(self.config.model_dump(mode="json"))
        assert type(read) is type(self.config) and read == self.config
        assert self.config.resolved(self.around(reals(3)), noise=0.1, evaluations=1000) == self.config

    def test_the_traits_say_what_the_strategy_does(self) -> None:
        """The driver, `evomerge plan` and races rely on them."""
        space = self.around(reals(3))
        strategy = self.config.build(space, 0)
        assert self.config.objectives in (("several", "any") if self.objectives > 1 else ("one", "any"))
        assert self.config.keeps_archive == isinstance(strategy, Archiving)
        assert self.config.places >= 1
        limit = self.config.most_in_flight
        asked = sum(len(strategy.ask(1)) for _ in range(40))
        assert asked <= (40 if limit is None else limit)

    def test_a_warm_start_changes_the_first_proposals(self, make: Callable[[int], SearchSpace]) -> None:
        """An earlier run's candidates become settings that can be saved, and the search starts from them."""
        space, rng = make(4), np.random.default_rng(5)
        points = [space.sample(rng) for _ in range(self.config.places)]
        if self.config.warm_start_type is None:
            assert "warm_start" not in type(self.config).model_fields
            with pytest.raises(ValueError, match="cannot use an earlier run"):
                self.config.warm_started(space, points)
            return
        warm = self.config.warm_started(space, points)
        assert warm.earlier_run is not None and warm.earlier_run.is_loaded
        assert type(warm).model_validate(warm.model_dump(mode="json")) == warm
        proposals, cold = (self.drive(config.build(space, 0), self.score(space), 8) for config in (warm, self.config))
        for candidate in proposals:
            space.decode(candidate.genotype)
        assert any(not np.array_equal(a.genotype, b.genotype) for a, b in zip(proposals, cold, strict=True))


def _global_states() -> tuple[object, ...]:
    """Return the states of numpy's and Python's global generators, in a form that can be compared."""
    numpy: Any = np.random.get_state(legacy=False)
    return numpy["state"]["key"].tolist(), numpy["state"]["pos"], random.getstate()
