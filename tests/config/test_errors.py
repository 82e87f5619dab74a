"""What is printed for a wrong search file: one line per mistake, with file, line and key, in words of the file."""

import re

import pytest
import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.load import load, located

MINIMAL = """\
models: {base: org/base, expert: org/expert}
fitness:
  tasks: [{task: arithmetic}]
"""

LABELS = re.compile(
    r"constrained|input tag|instance of|function-|literal\[|union|discriminator|is-instance|[a-z]+_type|Config\b"
)
"""Words of validators that mean nothing to the author of a file."""


def said(path, *overrides):
    """Return the lines that loading a file prints, without the folder."""
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    lines = str(error.value).splitlines()
    assert not any(LABELS.search(line) for line in lines), lines
    return [line.replace(f"{path.parent}/", "") for line in lines]


BAD = {
    "spce: {}": "spce: unknown key; did you mean `space`?",
    "space: {layer_per_group: 2}": "space.layer_per_group: unknown key; did you mean `layers_per_group`?",
    "strategy: {popsize: 9}": "strategy.popsize: unknown key; valid here: diagonal, kind, l1, learning_rate, ",
    "strategy: {kind: cmaes}": "strategy.kind: kind 'cmaes' is unknown; did you mean `cma_es`?",
    "strategy: cmaes": "strategy.kind: kind 'cmaes' is unknown; did you mean `cma_es`?",
    "space: {kind: 3}": "space.kind: kind 3 is unknown; write data_flow, layer_actions, layer_coefficients, mixture,",
    "strategy: {kind: staged, first: {population: 4}}": "strategy.first.kind: missing; write catcma, cma_es, ",
    "workers: {kind: rya}": "workers.kind: kind 'rya' is unknown; did you mean `ray`?",
    "workers: {kind: ray, count: 0}": "workers.count: write a whole number from 1 to 10,000, or auto (got 0)",
    "budget: {evaluations: 0}": "budget.evaluations: write a whole number from 1 to 10,000,000 (got 0)",
    "budget: {evaluations: many}": "budget.evaluations: write a whole number from 1 to 10,000,000 (got 'many')",
    "budget: many": "budget.evaluations: write a whole number from 1 to 10,000,000 (got 'many')",
    "strategy: []": "strategy: write a kind (cma_es, catcma, ",
    "strategy: {sigma: 2}": "strategy.sigma: write a number above 0 and at most 1 (got 2)",
    "strategy: {kind: m2n2, mutation: 2}": "strategy.mutation: write a number from 0 to 1 (got 2)",
    "space: {modules: attention}": "space.modules: write a list (each entry text), or all (got 'att",
    "workers: {kind: ray, cpus_per_worker: .inf}": "workers.cpus_per_worker: write a number above 0 and at most 1,024",
    "strategy: nsga2": "strategy.kind nsga2 searches for a Pareto front and there is only one objective; write",
    "budget: []": "budget: write a section with keys such as evaluations, hours (got a list)",
    "models: {base: org/base}": "models: write at least 2 entries of the form `name: text` (got 1)",
    "models: {base: org/a, b: 3}": "models.b: write text in quotes (got 3)",
    "models: {base: org/a, b: org/a}": "models: base and b are the same model, org/a; remove one of them",
    "models: {'a b': org/a, b: org/b}": "models: the model name 'a b' may contain only letters, digits, - and _; ",
    "space: {weight: {low: 1, high: 0}}": "space.weight: low 1.0 is not below high 0.0; write low < high",
    "space: {method: tise}": "space.method: 'tise' is not a merge method; did you mean 'ties'?",
    "out_dtype: bfloat": "out_dtype: 'bfloat' is not a choice here; did you mean `bfloat16`?",
    "out_dtype: 16": "out_dtype: write bfloat16, float16 or float32 (got 16)",
    "vocabulary: basis": "vocabulary: 'basis' is not a choice here; did you mean `base`?",
    "allow_unrelated: perhaps": "allow_unrelated: write true or false (got 'perhaps')",
    "seed:": "seed: write a whole number from 0 to 4,294,967,295 (got nothing)",
    "{strategy: {kind: eda}, population: 8}": "population: unknown key; it belongs elsewhere: write "
    "strategy.population",
    "space: {weight: [1, 0]}": "space.weight: low 1.0 is not below high 0.0; write low < high",
    "space: {weight: [0, 1, 2]}": "space.weight: write a range such as [0, 1] or {low: 0, high: 1}, numbers from -1",
    "space: {weight: [0, much]}": "space.weight: write a range such as [0, 1] or {low: 0, high: 1}, numbers from -1",
    "space: {weight: 2}": "space.weight: write a range such as [0, 1] or {low: 0, high: 1}, numbers from -1",
    "space: {weigth: {low: 0}}": "space.weigth: unknown key; did you mean `weight`?",
    "space: {method: breadcrumbs, gamma: 0.1}": "space.gamma: unknown key; it belongs elsewhere: write "
    "space.ranges.gamma or space.fixed.gamma",
    "space: {method: ties, normalize: true}": "space.normalize: unknown key; it belongs elsewhere: write "
    "space.fixed.normalize",
    "lambda: 0.8": "lambda: unknown key; it belongs elsewhere: write space.ranges.lambda or space.fixed.lambda",
    "space: {items: 8}": "space.items: unknown key; it belongs elsewhere: write fitness.subset.items",
}


@pytest.mark.parametrize("section", BAD)
def test_one_line_names_the_file_the_line_the_key_and_the_remedy(write, section):
    file = yaml.safe_load(MINIMAL) | yaml.safe_load(section)
    text = yaml.safe_dump(file, sort_keys=False, default_flow_style=True, width=10_000)  # all of it on line 1
    (line,) = said(write(text))
    assert line.startswith(f"search.yaml:1: {BAD[section]}"), line


BAD_FITNESS = {
    "held_out: 2": "fitness.held_out: write a number above 0 and below 1, or train, validation or test (got 2)",
    "held_out: tset": "fitness.held_out: 'tset' is not a choice here; did you mean `test`?",
    "subset: {items: -3}": "fitness.subset.items: write a whole number from 1 to 1,000,000, or all (got -3)",
    "subset: {items: 2.5}": "fitness.subset.items: write a whole number from 1 to 1,000,000, or all (got 2.5)",
    "subset: 0": "fitness.subset.items: write a whole number from 1 to 1,000,000, or all (got 0)",
    "subset: {itms: 3}": "fitness.subset.itms: unknown key; did you mean `items`?",
    "subset: {estimator: pirt}": "fitness.subset.estimator: 'pirt' is not a choice here; did you mean `p_irt`?",
    "items: 20": "fitness.items: unknown key; it belongs elsewhere: write fitness.subset.items",
    "tasks: []": "fitness.tasks: write a list with at least 1 entry (each entry a section with keys such as task, ",
    "tasks: [{task: a, weight: 0}]": "fitness.tasks.0.weight: a weight of 0 removes the effect of the task: remove",
    "tasks: [{weight: 1}]": "fitness.tasks.0.task: missing; write text (`evomerge init` writes an example)",
    "tasks: [a, a]": "fitness.tasks: task 'a' is listed twice: keep one entry and set its weight",
    "tasks: [3]": "fitness.tasks.0.task: write text in quotes (got 3)",
    "racing: {test: sprit}": "fitness.racing.test: 'sprit' is not a choice here; did you mean `sprt`?",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "genome: {models: [a]}\ntasks: [t]",
            "is a genome of mergekit-evolve; write a search file with `evomerge init ",
        ),
        ("merge_method: linear\nmodels: []", "is a recipe; merge it with `evomerge merge "),
    ],
)
def test_files_of_mergekit_are_named(write, text, message):
    (line,) = said(write(text))
    assert message in line


@pytest.mark.parametrize("key", BAD_FITNESS)
def test_mistakes_in_fitness(write, key):
    fitness = {"tasks": ["arithmetic"]} | yaml.safe_load(key)
    text = MINIMAL.splitlines()[0] + "\nfitness: " + yaml.safe_dump(fitness, default_flow_style=True, width=10_000)
    (line,) = said(write(text))
    assert line.startswith(f"search.yaml:2: {BAD_FITNESS[key]}"), line


def test_every_mistake_is_named_at_once_with_its_line(write):
    text = "budgt: {}\n" + MINIMAL + "spce: {}\nspace:\n  method: ties\n  modules:\n  - attention\n  - mlq\n"
    lines = said(write(text))
    places = {line.split(": ")[1]: line.split(": ")[0] for line in lines}
    assert places == {"budgt": "search.yaml:1", "spce": "search.yaml:5", "space.modules": "search.yaml:8"}


def test_a_key_of_a_merged_mapping_has_the_line_where_it_stands(write):
    (line,) = said(write("budget: {<<: &few\n  {evaluations: 0}}\n" + MINIMAL))
    assert line.startswith("search.yaml:2: budget.evaluations")


def test_a_mistake_on_the_command_line_names_the_option(write):
    path = write(MINIMAL)
    assert said(path, "fitness.held_out=2") == [
        "--set fitness.held_out=2: fitness.held_out: write a number above 0 and below 1, or train, validation or test "
        "(got 2)"
    ]
    assert said(path, "budget.evaluatons=2") == [
        "--set budget.evaluatons=2: budget.evaluatons: unknown key; did you mean `evaluations`?"
    ]
    assert said(path, "models.Qwen2.5=x") == [
        "search.yaml:1 with --set models.Qwen2.5=x: models: models.Qwen2: unknown key '5'; use one of lora, model"
    ]


def test_not_yaml_has_a_line(write):
    assert said(write("models: {a: b}\nfitness: [\n"))[0].startswith("search.yaml:3: not valid YAML: ")
    assert said(write("models: {a: b}\nseed: 1\nseed: 2\n")) == [
        "search.yaml:3: not valid YAML: the key 'seed' is given twice"
    ]


def test_an_error_that_shows_while_the_file_is_used_gets_its_line(write):
    path = write(MINIMAL + "seed: 1\n")
    with pytest.raises(ConfigError, match=r"search\.yaml:4: seed: too odd; write 2$"), located(path):
        raise ValueError("seed: too odd; write 2")
    with pytest.raises(ConfigError, match=r"^--set seed=3: seed: too odd"), located(path, ["seed=3"]):
        raise ValueError("seed: too odd; write 2")
    with pytest.raises(ValueError, match=r"^ops: not a key$"), located(path):
        raise ValueError("ops: not a key")


@pytest.mark.parametrize(("name", "shown"), [("1", "1"), ("no", "false"), ("2024-01-01", "2024-01-01")])
def test_a_name_that_yaml_does_not_take_for_text(write, name, shown):
    path = write(f"models:\n  base: org/base\n  {name}: org/expert\nfitness: {{tasks: [a]}}\n")
    with pytest.raises(ConfigError, match=f"models: the name {shown} is not text; put it in quotes"):
        load(path)
