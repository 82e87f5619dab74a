from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from fitness.estimation.racing_rules import (
    Race,
    _binomial_tail,
    _signed_rank_test,
    _t_test,
    common_correlation,
    expected_loss,
    log_e_value,
    probability_among_best,
)
from fitness.results import Estimate


def answers(seed: int, abilities: list[float], items: int) -> np.ndarray:
    """0/1 answers with items of different difficulty, shared by the candidates."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 0.15, items)
    return (rng.random((len(abilities), items)) < np.array(abilities)[:, None] + difficulty).astype(float)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 0), (5, 2), (1, 6), (10, 10)])
def test_the_sign_test_is_the_exact_binomial_one(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse, 0.5, alternative="greater").pvalue if better + worse else 1.0
    assert _binomial_tail(np.array(better), np.array(worse)) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [-0.3, 0.2, 1.0])
def test_tests_of_means_and_ranks_are_the_textbook_ones(shift: float) -> None:
    """The t-test has one further item, half the range away, in its squares; ranks leave out what does not differ."""
    spread = 2.0
    difference = np.random.default_rng(0).normal(shift, 0.8, 12).round(1)
    square = ((difference - difference.mean()) ** 2).sum() + (spread / 2) ** 2
    t = difference.mean() / np.sqrt(square / 11 / 12)
    assert _t_test(difference, spread) == pytest.approx(stats.t(11).sf(t))
    difference[:3] = 0.0
    expected = stats.wilcoxon(difference, alternative="greater", correction=True, method="asymptotic")
    assert _signed_rank_test(difference, spread) == pytest.approx(expected.pvalue)


def test_a_test_that_may_be_repeated_needs_more_answers_than_one_at_a_single_look() -> None:
    """Seven better answers and no worse: p = 1/128, and the mixture's odds are 2^8 / 8 = 32 < 50."""
    scores = np.array([[0.0] * 7, [1.0] * 7])
    assert Race(2, keep=1, error=0.02, looks=1, test="exact").update(scores).tolist() == [True, False]
    assert not Race(2, keep=1, error=0.02, looks=1, test="sprt").update(scores).any()


def run(race: Race, scores: np.ndarray, ends: tuple[int, ...]) -> int:
    """Play a race block by block; return the number of answers asked."""
    seen = np.full(scores.shape, np.nan)
    asked, start = 0, 0
    for end in ends:
        seen[race.active, start:end] = scores[race.active, start:end]
        asked += int(race.active.sum()) * (end - start)
        if end < ends[-1]:
            race.update(seen[:, :end])
        start = end
    return asked


@pytest.mark.parametrize("test", ["exact", "sprt", "t", "wilcoxon"])
def test_hopeless_candidates_stop_early_and_good_ones_stay(test: str) -> None:
    scores = answers(0, [0.9, 0.88, 0.85, 0.2, 0.1, 0.15], 100)
    race = Race(candidates=6, keep=3, error=0.05, looks=4, test=test)
    asked = run(race, scores, (20, 40, 60, 80, 100))
    assert race.active.tolist() == [True] * 3 + [False] * 3
    assert asked < 450


@pytest.mark.filterwarnings("ignore:Sample size too small")
@pytest.mark.parametrize("test", ["exact", "sprt", "t", "wilcoxon"])
def test_a_candidate_that_matters_is_stopped_no_more_often_than_the_error_says(test: str) -> None:
    wrong = 0
    for seed in range(150):  # all equal: whoever is best by index must not be stopped more than `error`
        race = Race(candidates=4, keep=1, error=0.2, looks=4, test=test)
        run(race, answers(seed, [0.6] * 4, 50), (10, 20, 30, 40, 50))
        wrong += not race.active[0]
    assert wrong / 150 < 0.2 + 3 * (0.2 * 0.8 / 150) ** 0.5


@pytest.mark.parametrize(("candidates", "looks", "stops"), [(2, 1, True), (3, 1, False), (2, 2, False)])
def test_the_error_is_shared_among_rivals_and_looks(candidates: int, looks: int, stops: bool) -> None:
    """Five better answers and no worse have p = 1/32: below 5 %, and above half of it."""
    scores = np.array([[0.0] * 5, *[[1.0] * 5] * (candidates - 1)])
    race = Race(candidates, keep=1, error=0.05, looks=looks, test="exact")
    assert race.update(scores)[0] == stops


def test_nobody_stops_where_all_matter() -> None:
    race = Race(candidates=3, keep=3)
    assert not race.update([[1.0] * 50, [0.0] * 50, [0.0] * 50]).any() and race.active.all()


def test_equal_answers_stop_nobody() -> None:
    for test in ("exact", "sprt", "t", "wilcoxon"):
        assert not Race(2, 1, 0.5, test=test).update(np.ones((2, 30))).any()


def test_a_candidate_is_only_stopped_if_enough_others_beat_it() -> None:
    scores = np.array([[1.0] * 40, [0.0] * 40, [0.0] * 40])
    assert Race(3, 2).update(scores).tolist() == [False] * 3
    assert Race(3, 1).update(scores).tolist() == [False, True, True]


def test_stopped_candidates_stay_stopped_and_need_no_answers() -> None:
    race = Race(3, 1, error=0.1, looks=2)
    assert race.update([[1.0] * 20, [1.0] * 20, [0.0] * 20]).tolist() == [False, False, True]
    later = np.ones((3, 40))
    later[2, 20:] = np.nan
    later[2, :20] = 0
    assert not race.update(later).any()
    assert race.active.tolist() == [True, True, False]


def test_fractional_scores_use_the_t_test() -> None:
    rng = np.random.default_rng(0)
    common = rng.random(60) * 0.3
    scores = np.stack([common + 0.5, common + 0.5 + 0.05 * rng.normal(size=60), common + 0.05 * rng.normal(size=60)])
    assert Race(3, 2).update(scores).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="use test='t'"):
        Race(3, 2, test="exact").update(scores)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 1), (12, 0), (40, 22)])
def test_e_value_equals_its_integral(better: int, worse: int) -> None:
    integral, _ = integrate.quad(lambda x: 2 * (2 * x) ** better * (2 - 2 * x) ** worse, 0.5, 1)
    assert log_e_value(better, worse) == pytest.approx(np.log(integral), abs=1e-6)


def test_chance_of_being_among_the_best_equals_simulation() -> None:
    rng = np.random.default_rng(0)
    value, error = np.array([0.5, 0.55, 0.6, 0.4, 0.58]), np.array([0.05, 0.02, 0.1, 0.05, 0.03])
    draws = value + error * rng.normal(size=(40_000, 5))
    for keep in (1, 2, 4):
        among = (stats.rankdata(-draws, axis=1) <= keep).mean(0)
        assert probability_among_best(value, error, keep) == pytest.approx(among, abs=0.02)
    assert probability_among_best(value, error, 5).tolist() == [1] * 5


def test_estimates_decide_by_their_errors() -> None:
    sharp = [Estimate(0.8, 0.02), Estimate(0.7, 0.02), Estimate(0.5, 0.02)]
    vague = [Estimate(0.8, 0.2), Estimate(0.7, 0.2), Estimate(0.5, 0.2)]
    assert Race(3, 2).update_estimates(sharp).tolist() == [False, False, True]
    assert not Race(3, 2).update_estimates(vague).any()
    exact = [Estimate(0.8, 0.0), Estimate(0.8, 0.0), Estimate(0.1, 0.0)]
    assert Race(3, 1).update_estimates(exact).tolist() == [False, False, True]


def estimated_race(seed: int, looks: int, error: float) -> tuple[np.ndarray, int]:
    """Race six candidates whose answers come one a look: which are stopped, and which is the best in the end."""
    rng = np.random.default_rng(seed)
    score_CI = rng.normal(size=(6, 1)) + 2 * rng.normal(size=(6, looks + 1))
    race = Race(6, 1, error=error, looks=looks)
    for look in range(1, looks + 1):
        posterior = 1 / (1 + look / 4)  # variance of a candidate's mean: N(0, 1), and `look` answers with variance 4
        estimates = [Estimate(row[:look].sum() / 4 * posterior, posterior**0.5) for row in score_CI]
        race.update_estimates(estimates, answered=look / (looks + 1))
    return ~race.active, int(score_CI.sum(1).argmax())


def test_of_the_stopped_candidates_no_more_would_have_been_best_than_the_error_says() -> None:
    found = [estimated_race(seed, looks=7, error=0.1) for seed in range(300)]
    stopped = sum(int(out.sum()) for out, _ in found)
    wrong = sum(bool(out[best]) for out, best in found)
    assert stopped > 300  # it does stop some
    assert wrong / stopped < 0.1 + 3 * (0.1 * 0.9 / stopped) ** 0.5
    assert wrong > 0


def test_errors_in_common_do_not_keep_candidates_in_the_race() -> None:
    estimates = [Estimate(0.8, 0.1), Estimate(0.6, 0.1)]
    apart = stats.norm.cdf(-0.2 / (0.1 * 2**0.5))
    together = stats.norm.cdf(-0.2 / (0.1 * (2 * (1 - 0.75)) ** 0.5))  # the standard error of the difference
    assert together < 0.02 < apart
    assert not Race(2, 1, error=0.02).update_estimates(estimates).any()
    assert Race(2, 1, error=0.02).update_estimates(estimates, correlation=0.75).tolist() == [False, True]


def test_expected_loss_is_what_a_choice_of_two_costs() -> None:
    value, error = np.array([0.55, 0.5]), np.array([0.04, 0.03])
    gap, spread = 0.05, (0.04**2 + 0.03**2) ** 0.5
    # E max(X1, X2) − E X1 of two normal variables (Clark 1961)
    expected = spread * stats.norm.pdf(gap / spread) - gap * stats.norm.cdf(-gap / spread)
    own = 0.03 * stats.norm.pdf(gap / 0.03) - gap * stats.norm.cdf(-gap / 0.03)  # if the other answers on
    theirs = 0.04 * stats.norm.pdf(gap / 0.04) - gap * stats.norm.cdf(-gap / 0.04)
    assert expected_loss(value, error, 1, np.array([1, 0])) == pytest.approx([expected - theirs, expected], abs=6e-4)
    assert expected_loss(value, error, 1, np.array([0]))[0] == pytest.approx(expected - own, abs=6e-4)
    assert expected_loss(value, error, 2, np.array([1]))[0] == pytest.approx(expected - theirs, abs=6e-4)  # the best


def test_a_race_of_equals_ends_where_a_wrong_choice_costs_nothing() -> None:
    equal = [Estimate(0.6, 0.004)] * 4
    assert not Race(4, 2, error=0.01).update_estimates(equal).any()
    equal[0], equal[3] = Estimate(0.601, 0.004), Estimate(0.599, 0.004)
    stopped = Race(4, 2, error=0.01, indifference=0.02).update_estimates(equal)
    assert stopped[3] and not stopped[0]  # who is probably among the best continues
    unknown = [Estimate(0.6, 0.3)] * 4
    assert not Race(4, 2, error=0.01, indifference=0.02).update_estimates(unknown).any()


def test_each_check_spends_its_share_of_the_indifference() -> None:
    close = [Estimate(0.601, 0.01), Estimate(0.6, 0.01)]
    assert Race(2, 1, looks=1, indifference=0.01).update_estimates(close).tolist() == [False, True]
    assert not Race(2, 1, looks=8, indifference=0.01).update_estimates(close).any()


def indifferent_race(seed: int, looks: int, indifference: float) -> tuple[int, float]:
    """Race as `estimated_race`, keeping two: how many are stopped, and what the choice at the end costs."""
    rng = np.random.default_rng(seed)
    score_CI = rng.normal(size=(6, 1)) + 2 * rng.normal(size=(6, looks + 1))
    race = Race(6, 2, error=1e-6, looks=looks, indifference=indifference)
    last_C = np.zeros(6, int)
    for look in range(1, looks + 1):
        last_C[race.active] = look
        estimates = [
            Estimate(row[:n].sum() / (4 + n), (4 / (4 + n)) ** 0.5) for row, n in zip(score_CI, last_C, strict=True)
        ]
        race.update_estimates(estimates, answered=look / (looks + 1))
    stopped = int((~race.active).sum())
    last_C[race.active] = looks + 1
    whole_C = score_CI.sum(1) / (4 + looks + 1)
    found_C = np.array([row[:n].sum() / (4 + n) for row, n in zip(score_CI, last_C, strict=True)])
    best_two = np.sort(whole_C)[-2:].mean()
    return stopped, float(best_two - whole_C[np.argsort(found_C)[-2:]].mean())


def test_all_checks_together_cost_no_more_than_the_indifference() -> None:
    found = np.array([indifferent_race(seed, looks=7, indifference=0.2) for seed in range(150)])
    stopped, cost = found.mean(0)
    assert stopped > 1
    assert 0 < cost < 0.2


def test_what_the_open_answers_cannot_change_is_settled() -> None:
    estimates = [Estimate(0.8, 0.1), Estimate(0.6, 0.1)]
    overtakes = stats.norm.cdf(-0.2 / (0.1 * (2 * (1 - 0.75)) ** 0.5))  # a quarter of the variance is still to come
    assert overtakes < 0.02 < stats.norm.cdf(-0.2 / (0.1 * 2**0.5))
    assert not Race(2, 1, error=0.02).update_estimates(estimates).any()
    assert Race(2, 1, error=0.02).update_estimates(estimates, answered=0.75).tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Race(3, 4), "give 1 to 3"),
        (lambda: Race(3, 1, indifference=-0.1), "difference of scores >= 0"),
        (lambda: Race(3, 1, error=0), "between 0 and 1"),
        (lambda: Race(3, 1, looks=0), "number of blocks"),
        (lambda: Race(3, 1, test="guess"), "give auto, exact, sprt, t or wilcoxon"),
        (lambda: Race(3, 1).update(np.ones((2, 4))), r"give \[3, items\]"),
        (lambda: Race(2, 1).update([[1.0, np.nan], [1, 1]]), "ask all active candidates the same items"),
        (lambda: Race(2, 1).update_estimates([Estimate(0, 1)]), "give one for each"),
        (lambda: Race(1, 1).update_estimates([Estimate(float("nan"), 1)]), "leave failed candidates out"),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0, 2.0])
def test_the_correlation_of_answers_to_common_items(shared: float) -> None:
    rng = np.random.default_rng(0)
    answers = shared * rng.normal(size=400) + rng.normal(size=(12, 1)) + rng.normal(size=(12, 400))
    assert common_correlation(answers) == pytest.approx(shared**2 / (shared**2 + 1), abs=0.05)


def test_the_correlation_of_little_or_nothing() -> None:
    assert common_correlation(np.zeros((3, 4))) == 0
    assert common_correlation(np.array([[1.0, 0.0], [np.nan, 1.0]])) == 0
    assert common_correlation(np.array([[1.0], [0.0]])) == 0
    assert common_correlation(np.tile([1.0, 0.0], (4, 3))) == 0.9
    assert common_correlation(np.tile([1.0, 0.0], (2, 3))) == 0.9
