import numpy as np
import pytest

from fitness.estimation import ESTIMATORS
from fitness.estimation.evaluation_plan import EstimatedPlan, FixedItemsPlan, check_item_banks, estimator_inputs
from fitness.estimation.item_banks import ItemBanks, Responses, fit_item_banks
from fitness.objectives import Objectives
from fitness.results import Evaluation, TaskError

ITEMS = {"a": tuple(f"a/validation/{i}" for i in range(60)), "b": tuple(f"b/validation/{i}" for i in range(40))}
OBJECTIVES = Objectives({"a": 1.0, "b": 3.0})
ALL = ITEMS["a"] + ITEMS["b"]


def truth(seed, accuracy):
    """Return the 0/1 score of a simulated model on every item."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).normal(size=len(ALL))
    right = rng.random(len(ALL)) < 1 / (1 + np.exp(difficulty - 4 * (accuracy - 0.5)))
    return dict(zip(ALL, right.astype(np.float32).tolist(), strict=True))


def scored(model):
    return Evaluation("ok", items=ALL, scores=np.array([model[item] for item in ALL], np.float32))


PARENTS = [scored(truth(seed, accuracy)) for seed, accuracy in ((1, 0.4), (2, 0.6))]


def plan(count=10, seed=0, estimator="inherited", rotate=True, item_banks=None):
    known = {task: estimator_inputs(task, ITEMS[task], PARENTS, item_banks, estimator) for task in ITEMS}
    return EstimatedPlan(ALL, known, OBJECTIVES, estimator, count, seed, rotate)


@pytest.fixture(scope="module")
def item_banks():
    """Thirty other models' answers, and item parameters."""
    rng = np.random.default_rng(3)
    models = [truth(1000 + number, rng.uniform(0.2, 0.9)) for number in range(30)]
    names = tuple(f"model-{number}" for number in range(30))
    responses = {
        task: Responses(names, items, np.array([[model[item] for item in items] for model in models]))
        for task, items in ITEMS.items()
    }
    return ItemBanks(responses, {task: fit_item_banks(found) for task, found in responses.items()})


def answer(model, items):
    scores = np.array([model[item] for item in items], np.float32)
    return Evaluation("ok", (float(scores.mean()),), (0.1,), tuple(items), scores)


def test_the_plain_measure_asks_the_same_items_and_takes_their_means():
    items = ALL[:5] + ALL[-3:]
    plain = FixedItemsPlan(items, OBJECTIVES)
    evaluation = answer(truth(3, 0.5), items)
    assert plain.items(0) == plain.items(7) == items
    expected = evaluation.scores[:5].mean() / 4 + 3 * evaluation.scores[5:].mean() / 4
    assert plain.judge(evaluation).fitness == pytest.approx(expected)


def test_each_generation_is_asked_other_items_and_so_many_of_each_task():
    asked = [plan().items(generation) for generation in range(4)]
    for items in asked:
        assert len(items) == len(set(items)) == 20
        assert sum(item in ITEMS["a"] for item in items) == 10
    assert len(set(asked)) == 4


def test_a_generations_items_do_not_change_once_they_are_chosen():
    known = plan()
    before = known.items(1)
    known.learn(answer(truth(5, 0.9), before))
    assert known.items(1) == before


def test_estimates_follow_the_candidates_from_the_first_generation_on():
    """Eight candidates do far better than their parents: the next generation's estimates know."""
    known = plan()
    items = known.items(0)
    right = Evaluation("ok", items=items, scores=np.ones(len(items), np.float32))
    little = Evaluation("ok", items=(items[0], items[-1]), scores=np.ones(2, np.float32))
    before = known.judge(little).fitness
    for _ in range(8):
        known.learn(right)
    assert known.judge(little).fitness == before  # not within a generation
    known.items(1)
    assert known.judge(little).fitness > before + 0.05


def test_the_same_events_give_the_same_items_and_estimates():
    def run():
        known, values = plan(), []
        for generation in range(3):
            for seed in range(4):
                evaluation = known.judge(answer(truth(10 + seed, 0.5), known.items(generation)))
                known.learn(evaluation)
                values.append((evaluation.objectives, evaluation.standard_errors, evaluation.items))
        return values

    assert run() == run()


def test_all_answers_give_the_weighted_mean():
    known, model = plan(count=60), truth(7, 0.5)
    (value,) = known.judge(answer(model, ALL)).objectives
    means = {task: np.mean([model[item] for item in items]) for task, items in ITEMS.items()}
    assert value == pytest.approx((means["a"] + 3 * means["b"]) / 4)


def test_few_answers_tell_better_models_from_worse_ones():
    errors, plain = [], []
    for seed in range(30):
        model, known = truth(100 + seed, 0.3 + 0.4 * (seed % 5) / 4), plan(seed=seed % 6)
        evaluation = answer(model, known.items(0))
        means = {task: np.mean([model[item] for item in items]) for task, items in ITEMS.items()}
        full = (means["a"] + 3 * means["b"]) / 4
        asked = {
            task: np.mean([model[item] for item in evaluation.items if item in items]) for task, items in ITEMS.items()
        }
        errors.append(abs(known.judge(evaluation).objectives[0] - full))
        plain.append(abs((asked["a"] + 3 * asked["b"]) / 4 - full))
    assert np.mean(errors) < np.mean(plain)


def test_a_failed_candidate_stays_failed():
    known = plan()
    failed = Evaluation.failed("out of memory")
    assert known.judge(failed) is failed
    known.learn(failed)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_every_estimator_can_be_searched_with(estimator, value, item_banks):
    """All wrong, all right and in between: finite scores with errors, and other items for each generation."""
    known = plan(estimator=estimator, item_banks=item_banks)
    for generation in range(2):
        items = known.items(generation)
        assert all(sum(item in ITEMS[task] for item in items) <= 10 for task in ITEMS)
        model = truth(5, 0.5)
        scores = np.array([model[item] if value == 0.5 else value for item in items], np.float32)
        found = known.judge(Evaluation("ok", items=items, scores=scores))
        assert -1e-9 < found.fitness < 1 + 1e-9  # a weighted sum of ones need not be 1 exactly
        assert 0 < found.standard_error < 1
        known.learn(found)
    assert known.items(0) != known.items(1)


def test_items_stay_where_they_are_not_rotated():
    known = plan(rotate=False)
    assert known.items(0) == known.items(1) == known.items(5)


def test_part_of_the_items_is_enough_for_an_estimate():
    known, model = plan(), truth(7, 0.5)
    items = known.items(0)
    part = [item for task in ITEMS for item in [name for name in items if name in ITEMS[task]][:3]]
    assert known.judge(answer(model, part)).standard_error > known.judge(answer(model, items)).standard_error


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if "item_bank" in ESTIMATORS[name].needs])
def test_an_estimator_that_lacks_item_parameters_says_so(estimator):
    known = plan(estimator=estimator)
    with pytest.raises(ValueError, match="run `evomerge fit-items` and name its file"):
        known.judge(answer(truth(1, 0.5), known.items(0)))


def test_scores_that_are_no_shares_are_refused():
    odd = Evaluation("ok", items=ALL, scores=np.full(len(ALL), 7, np.float32))
    with pytest.raises(
        TaskError, match=r"task 'a': .*rescale them to \[0, 1\] first; or set fitness.subset.estimator: auto"
    ):
        estimator_inputs("a", ITEMS["a"], [odd], None, "stratified_mean")


def test_losses_are_estimated_like_other_scores():
    """Fresh items with `answer_loss`: the default takes scores of any size, and learns from candidates."""
    items = ITEMS["a"]
    rng = np.random.default_rng(0)
    hard = rng.gamma(1.5, 2.0, len(items))
    models = [-hard * rng.lognormal(0, 0.2, len(items)) for _ in range(4)]
    parents = [Evaluation("ok", items=items, scores=model.astype(np.float32)) for model in models[:2]]
    inputs = {"a": estimator_inputs("a", items, parents, None, "inherited")}
    asking = EstimatedPlan(items, inputs, Objectives({"a": 1.0}), "inherited", 12, seed=0)
    for generation, model in enumerate(models[2:]):
        asked = asking.items(generation)
        known = dict(zip(items, model.tolist(), strict=True))
        told = answer(known, asked)
        judged = asking.judge(told)
        assert judged.fitness == pytest.approx(model.mean(), abs=3 * judged.standard_error)
        asking.learn(told)


def test_at_the_end_all_candidates_are_judged_anew():
    """What later candidates show counts for the first ones; later items are not affected."""
    known, other = plan(), plan()
    items = known.items(0)
    little = Evaluation("ok", items=(items[0], items[-1]), scores=np.ones(2, np.float32))
    right = Evaluation("ok", items=items, scores=np.ones(len(items), np.float32))
    before = known.judge(little).fitness
    for _ in range(8):
        known.learn(right)
        other.learn(right)
    again = known.judge_all([little, right])
    assert again[0].fitness > before + 0.05 and again[1].fitness >= again[0].fitness
    assert known.judge(little).fitness == before
    assert known.items(1) == other.items(1)
    assert FixedItemsPlan(items, OBJECTIVES).judge_all([little]) == [little]


def test_item_banks_without_what_an_estimator_needs_are_refused(item_banks):
    check_item_banks(ITEMS, item_banks, "blup", "banks.npz")
    check_item_banks(ITEMS, None, "auto", None)
    scores = item_banks.responses["b"].scores.copy()
    scores[0, :3] = np.nan
    known = item_banks.responses["b"]
    holes = ItemBanks({**item_banks.responses, "b": Responses(known.models, known.items, scores)}, item_banks.banks)
    for estimator in ("blup", "ridge", "gp_irt"):
        with pytest.raises(
            TaskError, match=rf"item_bank: banks.npz, task 'b': 3 of 1200 .* missing, which estimator {estimator} needs"
        ):
            check_item_banks(ITEMS, holes, estimator, "banks.npz")
    check_item_banks(ITEMS, holes, "p_irt", "banks.npz")
    with pytest.raises(TaskError, match=r"item_bank: banks.npz, task 'c': there is no item bank"):
        check_item_banks({"c": ("c/validation/0",)}, item_banks, "auto", "banks.npz")


def test_a_item_banks_of_other_items_is_refused(item_banks):
    with pytest.raises(
        TaskError, match=r"task 'c': there is no item bank for task 'c', only for a, b: fit its items too"
    ):
        estimator_inputs("c", ["c/validation/0"], [], item_banks, "p_irt")
    with pytest.raises(TaskError, match="fit the items of this task"):
        estimator_inputs("a", ["a/validation/99"], [], item_banks, "p_irt")


def test_the_mean_of_fresh_items_takes_scores_of_any_size():
    """Losses are outside [0, 1]; their mean needs no more than they do."""
    items = ITEMS["a"]
    losing = [Evaluation("ok", items=tuple(items), scores=np.full(len(items), -2.5, np.float32))]
    inputs = {"a": estimator_inputs("a", items, losing, None, "mean")}
    asking = EstimatedPlan(items, inputs, Objectives({"a": 1.0}), "mean", 4, seed=0)
    first, second = asking.items(0), asking.items(1)
    assert len(first) == 4 and first != second
    found = asking.judge(Evaluation("ok", items=first, scores=np.array([-1, -2, -3, -6], np.float32)))
    assert found.objectives == (-3.0,)
    with pytest.raises(TaskError, match=r"rescale them to \[0, 1\] first; or set fitness.subset.estimator: auto"):
        estimator_inputs("a", items, losing, None, "stratified_mean")
