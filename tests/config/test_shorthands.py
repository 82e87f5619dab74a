import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.search_file import SearchConfig

MODELS = "models: {base: org/base, expert: org/expert}\n"
MINIMAL = MODELS + "fitness:\n  tasks: [{task: arithmetic}]\n"

SAME = {
    "strategy: m2n2": "strategy: {kind: m2n2}",
    "strategy: nevergrad:TwoPointsDE": "strategy: {kind: nevergrad, optimizer: TwoPointsDE}",
    "space: mixture": "space: {kind: mixture}",
    "budget: 200": "budget: {evaluations: 200}",
    "workers: ray": "workers: {kind: ray}",
    "workers: 4": "workers: {kind: ray, count: 4}",
    "space: {weight: [0, 1]}": "space: {weight: {low: 0, high: 1}}",
    "space: {method: ties, ranges: {lambda: [0, 1]}}": "space: {method: ties, ranges: {lambda: {low: 0, high: 1}}}",
    "space: {kind: mixture, weight: [0, 1]}": "space: {kind: mixture, weight: {low: 0, high: 1}}",
    "space: {kind: data_flow, scale: [0.5, 2]}": "space: {kind: data_flow, scale: {low: 0.5, high: 2}}",
    "workers: 1": "workers: {kind: inline}",
}


@pytest.mark.parametrize("short", SAME)
def test_a_short_form_is_its_section(write, short):
    assert load(write(MINIMAL + short)) == load(write(MINIMAL + SAME[short]))


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("tasks: [a, b]", "tasks: [{task: a}, {task: b}]"),
        ("tasks: a", "tasks: [{task: a}]"),
        ("tasks: [a, {task: b, weight: 2}]", "tasks: [{task: a}, {task: b, weight: 2}]"),
        ("tasks: [a]\n  subset: 20", "tasks: [{task: a}]\n  subset: {items: 20}"),
        ("tasks: [a]\n  engine: vllm", "tasks: [{task: a}]\n  engine: {kind: vllm}"),
        ("tasks: [a]\n  engine: transformers", "tasks: [{task: a}]\n  engine: {}"),
        ("tasks: [a]\n  subset: all", "tasks: [{task: a}]\n  subset: {items: all}"),
    ],
)
def test_short_forms_of_fitness(write, short, whole):
    assert load(write(f"{MODELS}fitness:\n  {short}\n")) == load(write(f"{MODELS}fitness:\n  {whole}\n"))


def test_short_forms_work_from_python_too():
    values = {"models": {"base": "org/base", "expert": "org/expert"}, "fitness": {"tasks": ["a"]}, "budget": 7}
    assert SearchConfig.model_validate(values).budget.evaluations == 7
    assert values["budget"] == 7  # the caller's mapping is left alone


@pytest.mark.parametrize(
    ("overrides", "get", "value"),
    [
        (["strategy.population=9"], lambda c: (c.strategy.kind, c.strategy.population), ("nsga2", 9)),
        (["budget.hours=2"], lambda c: (c.budget.evaluations, c.budget.hours), (200, 2)),
        (["budget=+5"], lambda c: c.budget.evaluations, 205),
        (["budget.evaluations=+5"], lambda c: c.budget.evaluations, 205),
        (
            ["strategy=random", "strategy.population=9"],
            lambda c: (c.strategy.kind, c.strategy.population),
            ("random", 9),
        ),
        (
            ["space.weight=[0, 3]", "space.weight.start=2"],
            lambda c: (c.space.weight.high, c.space.weight.start),
            (3, 2),
        ),
        (["fitness.tasks.0.weight=2"], lambda c: (c.fitness.tasks[0].task, c.fitness.tasks[0].weight), ("a", 2)),
    ],
)
def test_an_override_changes_a_section_that_was_written_short(write, overrides, get, value):
    text = MODELS + "fitness: {tasks: [a, b], objectives: per_task}\nstrategy: nsga2\nbudget: 200\n"
    if "strategy=eda" in overrides:
        text = text.replace(", objectives: per_task", "")
    assert get(load(write(text), overrides)) == value


def test_true_is_no_number(write):
    with pytest.raises(ConfigError, match=r"budget: write a section with keys such as evaluations, hours \(got true\)"):
        load(write(MINIMAL + "budget: true"))
