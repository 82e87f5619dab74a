import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load, load_mapping
from evomerge.config.names import check_tasks
from evomerge.config.overrides import override, setting

MINIMAL = """
models: {base: org/base, expert: org/expert}
fitness:
  tasks: [{task: arithmetic}]
"""


def test_a_minimal_file_has_defaults(write):
    config = load(write(MINIMAL))
    assert config.strategy.kind == "auto"
    assert config.workers.kind == "inline"
    assert config.budget.evaluations == 300
    assert config.base == "base"


def test_the_resolved_config_reads_back_equal(write, tmp_path):
    config = load(write(MINIMAL + "strategy: {kind: random}\nseed: 3\n"))
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml(), encoding="utf-8")
    assert load(copy) == config


def test_local_folders_become_absolute_and_hub_ids_stay(write, tmp_path):
    (tmp_path / "models").mkdir()
    text = MINIMAL.replace("org/expert", "models").replace("tasks:", "include_path: [tasks]\n  tasks:")
    config = load(write(text))
    assert config.models == {"base": "org/base", "expert": str(tmp_path / "models")}
    assert config.fitness.include_path == (str(tmp_path / "tasks"),)


def test_a_model_that_is_dequantised(write, tmp_path):
    (tmp_path / "fp8").mkdir()
    expert = "{path: fp8, dequantize: true}"
    config = load(write(MINIMAL.replace("org/expert", expert)))
    assert config.models["expert"] == f"{tmp_path / 'fp8'}+dequantize"
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml(), encoding="utf-8")
    assert load(copy) == config
    with pytest.raises(ConfigError, match=r"models.expert: unknown key 'dequantise'; did you mean 'dequantize'"):
        load(write(MINIMAL.replace("org/expert", "{path: fp8, dequantise: true}")))


def test_one_bound_of_a_range_may_be_set_alone(write):
    weight = load(write(MINIMAL), ["space.weight.high=3"]).space.weight
    assert (weight.low, weight.high) == (-0.5, 3.0)


def test_a_key_given_twice_is_refused(write):
    with pytest.raises(ConfigError, match="'expert' is given twice"):
        load(write("models: {base: a/b, expert: a/c, expert: a/d}\nfitness: {tasks: [{task: t}]}"))


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("budget.evaluations=7", lambda c: c.budget.evaluations, 7),
        ("space.weight.high=2", lambda c: c.space.weight.high, 2.0),
        ("fitness.tasks.0.weight=3", lambda c: c.fitness.tasks[0].weight, 3.0),
        ("strategy.kind=random", lambda c: c.strategy.kind, "random"),
        ("models.third=org/third", lambda c: c.models["third"], "org/third"),
    ],
)
def test_overrides(write, override, get, value):
    text = MINIMAL + "space: {weight: {low: 0, high: 1, start: 0.5}}\n"
    assert get(load(write(text), [override])) == value


def test_every_mistake_is_named_at_once(write):
    with pytest.raises(ConfigError) as error:
        load(write(MINIMAL + "budgt: {}\nspce: {}\n"))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("models: [", "not valid YAML"), ("- a\n- b\n", "expected keys such as `models:`"), ("", "expected keys")],
)
def test_other_files(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(text))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*evomerge init"):
        load(tmp_path / "none.yaml")


def test_yaml_tags_are_not_executed(write):
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(write("models: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize(
    "override",
    ["seed", "=3", "fitness.tasks.9.weight=1", "seed.deep.er=1", "fitness.include_path.0.x=1", "seed=[", "seed=-1"],
)
def test_bad_overrides(write, override):
    with pytest.raises(ConfigError):
        load(write(MINIMAL.replace("tasks:", "include_path: [x]\n  tasks:")), [override])


@pytest.mark.parametrize(
    ("tasks", "strategy", "message"),
    [
        ("[{task: a}]", "map_elites", "there is one axis; name two tasks or more in fitness.tasks"),
        (
            "[{task: a}, {task: b}]",
            "map_elites\n  axes: [[a], [c]]",
            "c is not in fitness.tasks; name tasks among a, b",
        ),
    ],
)
def test_a_grid_of_elites_needs_two_axes_of_known_tasks(write, tasks, strategy, message):
    config = load(write(MINIMAL.replace("[{task: arithmetic}]", tasks) + f"strategy:\n  kind: {strategy}\n"))
    with pytest.raises(ValueError, match=message):
        config.check_tasks([task.task for task in config.fitness.tasks])
    config.check_tasks(["a", "b", "c"])  # where a name stands for a group of these


def test_one_axis_is_no_grid(write):
    text = MINIMAL + "strategy: {kind: map_elites, axes: [[a, b]]}\n"
    with pytest.raises(ValueError, match="there is one axis"):
        load(write(text)).check_tasks(["a", "b"])


def test_tasks_are_those_that_are_scored(write, monkeypatch):
    """A group of the search file counts as its tasks, before models are opened and after."""
    text = MINIMAL + "  objectives: per_task\nstrategy: nsga2\n"
    grid = MINIMAL + "strategy: {kind: map_elites, axes: [[arithmetic], [c]]}\n"
    for scored, refused in ((["a", "b"], False), (["arithmetic"], True)):
        monkeypatch.setattr("fitness.tasks.offline.names_of_tasks", lambda fitness, names=scored: names)
        with pytest.raises(ConfigError, match="only one objective") if refused else nullcontext():
            check_tasks(load(write(text)))
    with pytest.raises(ConfigError, match="name tasks among a, b, c"):
        check_tasks(load(write(grid)), ["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"fitness\.tasks: the final table calls the mean of all tasks all"):
        check_tasks(load(write(MINIMAL)), ["a", "all"])


def test_a_race_against_an_archive_has_no_paired_test(write):
    text = MINIMAL + "  racing: {test: sprt}\n"
    with pytest.raises(ConfigError, match=r"m2n2 has an archive instead; write fitness\.racing\.test: posterior"):
        load(write(text + "strategy: {kind: m2n2}\n"))
    assert load(write(text + "strategy: {kind: cma_es}\n")).fitness.racing.test == "sprt"


def test_a_mapping_may_hold_paths_and_numpy_numbers(tmp_path):
    values = {
        "models": {"base": tmp_path, "one": Path("two") / "folders"},
        "fitness": {"tasks": ("some_task",), "include_path": [tmp_path]},
        "budget": np.int64(7),
        "space": {"weight": {"high": np.float32(1.5)}},
    }
    config = load_mapping(values)
    assert config.models["base"] == str(tmp_path)
    assert (config.budget.evaluations, config.space.weight.high) == (7, 1.5)
    assert isinstance(values["models"]["base"], Path)


@pytest.mark.parametrize("values", [None, [1], 3])
def test_what_is_not_a_mapping_is_named(values):
    with pytest.raises(ConfigError, match=r"config: give the path of a search file, or a mapping"):
        load_mapping(values)


def test_nothing_may_follow_the_last_three_dashes(write):
    assert load(write(f"---\n{MINIMAL}---\n")).budget.evaluations == load(write(MINIMAL)).budget.evaluations


def test_a_value_of_any_marks_is_set_as_it_is():
    values: dict[str, object] = {}
    override(values, setting("strategy.warm_start", "/runs: #2/[a] \U0001f600"))
    assert values == {"strategy": {"warm_start": "/runs: #2/[a] \U0001f600"}}


@pytest.mark.parametrize("text", [".=5", "budget..hours=5", "=5"])
def test_a_key_has_no_empty_part(text):
    with pytest.raises(ConfigError, match=r"^--set .*: write it as key\.path=value"):
        override({"budget": {}}, text)


def test_what_is_added_is_a_number(write):
    with pytest.raises(ConfigError, match=r"--set budget=\+1e1: '\+1e1' after =\+ is not a number; write one"):
        load(write(MINIMAL + "budget: 10\n"), ["budget=+1e1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: yes", "seed: write a whole number from 0 to 4,294,967,295 (got true)"),
        ("strategy: {kind: cma_es, sigma: off}", "strategy.sigma: write a number above 0 and at most 1 (got false)"),
        ("budget: {evaluations: 9, hours: on}", "budget.hours: write a number above 0 and at most 100,000 (got true)"),
    ],
)
def test_yes_and_no_are_no_numbers(write, text, said):
    with pytest.raises(ConfigError, match=rf"search.yaml:\d: {re.escape(said)}$"):
        load(write(f"{MINIMAL}{text}\n"))


def test_numbers_mean_what_they_look_like(write):
    with pytest.raises(ConfigError, match=r"\.yaml:6: seed: YAML reads 010 as 8; write 8 or 10"):
        load(write(MINIMAL + "budget: 1_000\nseed: 010\n"))
    with pytest.raises(ConfigError, match=r"--set seed=1:30: YAML reads 1:30 as 90"):
        load(write(MINIMAL), ["seed=1:30"])
    with pytest.raises(ConfigError, match=r"fitness\.tasks\.0\.task: write text in quotes \(got true\)"):
        load(write(MINIMAL.replace("[{task: arithmetic}]", "[on]")))


def test_yes_and_no_stand_for_truth_values(write):
    text = "allow_unrelated: yes\nspace: {method: ties, fixed: {normalize: no}}\n"
    config = load(write(MINIMAL.replace("tasks:", "subset: {items: 5, rotate: no}\n  tasks:") + text))
    assert config.allow_unrelated and config.fitness.subset.rotate is False and config.space.fixed["normalize"] is False
