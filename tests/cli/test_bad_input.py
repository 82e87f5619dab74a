"""Bad input: one line that names the place and what to do."""

import json
import shutil
from pathlib import Path

import pytest

from evomerge.runs.run import RunError

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"


def test_an_unknown_key(refuse_search):
    refuse_search("search.yaml:28: budgte: unknown key; did you mean `budget`?", budgte={})


def test_a_missing_model_folder(refuse_search, config):
    refuse_search("search.yaml:3: models.ops: ", "nowhere: no such", models=config()["models"] | {"ops": "./nowhere"})


def test_a_folder_with_pickles_only(tmp_path, refuse_search, broken_expert):
    def only_pickles(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    refuse_search("expert", "safetensors", models=broken_expert(only_pickles))


def test_other_shapes(tmp_path, refuse_search, broken_expert):
    def widen(folder):
        data = json.loads((folder / "config.json").read_text())
        data["intermediate_size"] *= 2
        (folder / "config.json").write_text(json.dumps(data))

    refuse_search("expert", models=broken_expert(widen))


def test_other_vocabulary(tmp_path, refuse_search, broken_expert):
    def extend(folder):
        data = json.loads((folder / "config.json").read_text())
        data["vocab_size"] += 8
        (folder / "config.json").write_text(json.dumps(data))

    refuse_search("expert", models=broken_expert(extend))


def test_not_a_number_in_the_weights(tmp_path, refuse_search, broken_expert, alter_weights):
    def poison(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")

    models = broken_expert(alter_weights(poison))
    refuse_search("search.yaml:", ": models.ops: model.layers.2.mlp.up_proj.weight", "NaN", models=models)


def test_a_truncated_weight_file(tmp_path, refuse_search, broken_expert):
    def cut(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    refuse_search("model.safetensors", models=broken_expert(cut))


def test_a_task_that_does_not_exist(refuse_search, config):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gne"}]}
    refuse_search("search.yaml:18: fitness.tasks.0.task: no task 'zoo_target_gne'", "zoo_target_gen", fitness=fitness)


def test_a_test_split_must_be_acknowledged(refuse_search, config):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gen", "search_split": "test"}], "held_out": 0.5}
    refuse_search("search.yaml:", "fitness.tasks.0.task: ", "allow_test_split: true", fitness=fitness)


def test_a_task_with_no_items_left(refuse_search, config):
    fitness = config()["fitness"] | {"held_out": 1e-9}
    refuse_search("no held-out items left", "fitness.held_out", fitness=fitness)


def test_what_is_wrong_with_a_worker_shows_before_the_run_exists(refuse_search, config):
    refuse_search("search.yaml:", "workers.device: device 'foo' cannot be used", "write cpu", workers={"device": "foo"})
    refuse_search("search.yaml:", "fitness.tasks: ", "max_length", fitness=config()["fitness"] | {"max_length": 4})


def test_a_folder_without_runs(refuse):
    refuse("runs", "nowhere", words=["nowhere: no such folder; name the folder with your run directories"])


def test_weights_with_nan_are_not_merged_alone(tmp_path, refuse, broken_expert, alter_weights):
    broken_expert(alter_weights(lambda tensors: tensors["model.norm.weight"].fill_(float("inf"))))
    (tmp_path / "one.yaml").write_text("merge_method: linear\nmodels: [{model: expert, parameters: {weight: 1.0}}]\n")
    refuse("merge", "one.yaml", "out", words=["model.norm.weight", "NaN or infinite"])
    refuse("evaluate", "expert", "--tasks", "zoo_read_ja", "--include-path", ZOO / "tasks", words=["model.norm.weight"])


def test_evaluating_nothing(refuse):
    refuse("evaluate", ZOO / "models" / "base", words=["--tasks: name at least one"])
    refuse("evaluate", ZOO / "models" / "base", "--tasks", "t", "t", words=["--tasks:", "listed twice"])


def test_exporting_to_a_place_that_is_none(finished, refuse):
    folder, _ = finished
    refuse("export", folder / "run", "-o", "no/such/folder.yaml", words=["there is no folder no/such; make it"])


def test_an_unexpected_error_is_one_line_too(finished, refuse, monkeypatch):
    folder, _ = finished
    from evomerge.cli import status

    def fail(out, path):
        raise KeyError("something")

    monkeypatch.setattr(status, "print_summary", fail)
    refuse("status", folder / "run", words=["unexpected KeyError", "--debug"], code=1)


def test_a_damaged_log(finished, tmp_path, refuse):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run" / "events.sqlite"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for verb in ("status", "resume", "export"):
        refuse(verb, "run", words=["events.sqlite is damaged", "best.yaml beside it is not affected"], code=1)


def test_no_run(refuse):
    refuse("status", "nothing", words=["is not a run directory"])


def test_debug_shows_a_traceback(tmp_path, evomerge):
    with pytest.raises(RunError):
        evomerge("--debug", "status", "nothing", cwd=tmp_path)


@pytest.mark.parametrize("name", ["found", "start"])
def test_a_model_that_is_called_like_another_row_of_the_table(refuse_search, config, name):
    models = {"base": config()["models"]["base"], name: config()["models"]["ops"]}
    refuse_search("search.yaml:", f"models.{name}: the final table has a row of its own", models=models)


def test_a_task_that_is_called_like_the_mean_of_all_tasks(refuse_search, config):
    fitness = config()["fitness"] | {"tasks": ["zoo_target_gen", "all"]}
    refuse_search("fitness.tasks.1.task: the final table calls the mean of all tasks all", fitness=fitness)


def test_a_race_that_cannot_weigh_tasks(refuse_search, config):
    tasks = [{"task": "zoo_target_gen", "weight": 2}, "zoo_target_mc"]
    fitness = config()["fitness"] | {"tasks": tasks, "racing": {"test": "exact"}}
    refuse_search("search.yaml:", "fitness.racing.test: exact counts right and wrong answers", fitness=fitness)
