"""The installed command, as a user drives it: whole searches on the zoo, and every kind of bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main
from evomerge.config.errors import ConfigError
from evomerge.config.load import load as load_config
from evomerge.runs.run import Asked, Run
from evomerge.search.warm_start import warm_start_override
from evomerge.strategies import M2n2Config
from search_spaces.recipes import mergekit_yaml

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
COMMAND = Path(sys.executable).parent / "evomerge"


def evomerge(*arguments, cwd, code=0):
    """Run the command; return its standard output, after checking the exit code."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Return a check that the command refuses something in one line with these words, here in this process.

    It saves the seconds that a new process takes to import torch.
    """

    def refuse(*arguments, words, code=2):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        message = capsys.readouterr().err.strip()
        assert stop.value.code == code, message
        assert len(message.splitlines()) == 1, message
        for word in words:
            assert word in message
        return message

    return refuse


@pytest.fixture
def refuse_search(tmp_path, refuse):
    """Return a check that a search with changes to its config is refused before it makes a run."""

    def refuse_search(*words, **changes):
        write(tmp_path, **changes)
        refuse("search", "search.yaml", "--run", "run", words=words)
        assert not (tmp_path / "run").exists()

    return refuse_search


def config(**changes):
    """Return a small search of the zoo as a mapping."""
    return {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
        "space": {"layers_per_group": 3, "weight": {"low": 0.0, "high": 1.5, "start": 0.8}},
        "strategy": {"kind": "cma_es", "population": 5, "score_mean_every": 2},
        "fitness": {
            "tasks": [{"task": "zoo_target_gen"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 16},
            "held_out": "test",
        },
        "budget": {"evaluations": 12},
        "workers": {"threads": 1},
    } | changes


def write(folder, **changes):
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(config(**changes), sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder in which `evomerge search` has run, with its output."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder)
    output = evomerge("search", "search.yaml", "--run", "run", cwd=folder)
    return folder, output


def test_a_search_ends_with_the_held_out_table_and_the_next_commands(finished):
    folder, output = finished
    for name in ("found", "distribution mean", "base", "ops", "ja", "eo", "uniform average", "task arithmetic 0.3"):
        assert name in output
    assert "evomerge export run -o recipe.yaml" in output
    assert "evomerge evaluate merged --like run" in output
    assert {path.name for path in (folder / "run").iterdir()} >= {
        "config.yaml",
        "environment.json",
        "events.sqlite",
        "best.yaml",
        "result.json",
        "log.txt",
    }


def test_the_result_is_machine_readable(finished):
    folder, _ = finished
    result = json.loads((folder / "run" / "result.json").read_text())
    assert [row["kind"] for row in result["held_out"]] == [
        "found",
        "mean",
        *["source"] * 4,
        "uniform",
        "task_arithmetic",
    ]
    for row in result["held_out"]:
        assert set(row) == {"name", "kind", "task", "score", "low", "high", "items", "p_value"}
        assert row["task"] == "zoo_target_gen"
        assert row["low"] <= row["score"] <= row["high"]
        assert row["items"] >= 400
        assert 0 < row["p_value"] <= 1
    assert result["evaluations"] == 12
    assert result["item_evaluations"] > 12 * 16
    assert set(result["seconds"]) == {"merge", "score", "wait", "overhead"}

    assert mergekit_yaml.read(folder / "run" / "best.yaml").hash == result["best"]


def test_status_reads_a_run(finished):
    folder, _ = finished
    summary = json.loads(evomerge("status", "run", "--json", cwd=folder))
    assert (summary["state"], summary["evaluations"], summary["budget"]) == ("finished", 12, 12)
    assert summary["best"]["score"] >= 0
    assert 0 <= summary["overhead_share"] < 1
    text = evomerge("status", "run", cwd=folder)
    assert "12/12 evaluations" in text and "overhead" in text and "optimism" in text


def test_runs_lists_it(finished):
    folder, _ = finished
    assert "run" in evomerge("runs", ".", cwd=folder)
    (summary,) = json.loads(evomerge("runs", ".", "--json", cwd=folder))
    assert summary["state"] == "finished"


def test_resuming_a_finished_run_repeats_its_table_and_changes_nothing(finished):
    folder, output = finished
    before = (folder / "run" / "result.json").read_text()
    again = evomerge("resume", "run", cwd=folder)
    assert again.split("held-out scores")[1] == output.split("held-out scores")[1]
    assert (folder / "run" / "result.json").read_text() == before


def test_export_merge_load_evaluate(finished):
    """The exported checkpoint loads with transformers and scores item for item as the candidate did in memory."""
    folder, _ = finished
    evomerge("export", "run", "-o", "recipe.yaml", cwd=folder)
    assert evomerge("export", "run", cwd=folder) == (folder / "recipe.yaml").read_text()
    evomerge("merge", "recipe.yaml", "merged", cwd=folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert model.num_parameters() > 100_000
    assert AutoTokenizer.from_pretrained(folder / "merged").vocab_size > 10

    arguments = ("--tasks", "zoo_target_gen", "--include-path", ZOO / "tasks", "--json")
    saved = json.loads(evomerge("evaluate", "merged", *arguments, cwd=folder))
    from evomerge.runs.history import Ledger
    from evomerge.runs.run import Run

    with Run.read(folder / "run") as run:
        ledger = Ledger(run.events())
    best = json.loads((folder / "run" / "result.json").read_text())["best"]
    in_memory = ledger.finals["held_out", best]
    assert saved["scores"] == dict(zip(in_memory.items, in_memory.scores.tolist(), strict=True))
    assert saved["tasks"][0]["score"] == pytest.approx(in_memory.fitness)

    from_recipe = json.loads(evomerge("evaluate", "recipe.yaml", "--like", "run", "--json", cwd=folder))
    assert from_recipe["scores"] == saved["scores"]


def test_export_by_rank(finished, refuse):
    folder, _ = finished

    hashes = []
    for rank in (1, 2):
        evomerge("export", "run", "--rank", rank, "-o", f"rank{rank}.yaml", cwd=folder)
        hashes.append(mergekit_yaml.read(folder / f"rank{rank}.yaml").hash)
    assert hashes[0] != hashes[1]
    refuse("export", folder / "run", "--rank", 99, words=["give 1 to"])


def test_plan_says_what_a_search_costs(tmp_path):
    write(tmp_path)
    text = evomerge("plan", "search.yaml", cwd=tmp_path)
    for words in (
        "genes",
        "ops.weight[embeddings]",
        "sources mapped",
        "placement auto",
        "per candidate",
        "evaluations take",
        "note:",
    ):
        assert words in text
    plan = json.loads(evomerge("plan", "search.yaml", "--json", "--set", "budget.evaluations=500", cwd=tmp_path))
    assert len(plan["genes"]) == 3 * (2 + 2)
    assert plan["footprint"]["touched_bytes"] > plan["footprint"]["resident_bytes"]
    assert plan["placement"]["placement"] == "mapped"
    assert plan["placement"]["peak_bytes"] == plan["footprint"]["peak_bytes"] > plan["footprint"]["source_bytes"]
    assert plan["estimated_seconds"] > 0
    assert plan["notes"] == []
    assert not (tmp_path / "runs").exists()


def test_plan_offline_needs_no_weights(tmp_path, refuse, capsys):
    """Beside a configuration alone; what it says is what `plan` says of the space."""
    from evomerge.cli.plan import genes_of
    from evomerge.cli.plan_offline import offline_plan, plan_offline
    from evomerge.search.problem import Problem

    write(tmp_path)
    whole = load_config(tmp_path / "search.yaml")
    remote = {name: f"example/{name}" for name in whole.models}
    few = whole.fitness.subset.model_copy(update={"items": 20, "estimator": "auto", "rotate": None})
    config = whole.model_copy(update={"models": remote, "fitness": whole.fitness.model_copy(update={"subset": few})})
    found, problem = offline_plan(config, ZOO / "models" / "base" / "config.json").summary, Problem(whole)
    assert found["genes"] == genes_of(problem.space)
    assert found["parameters"] == sum(problem.sizes.values())
    assert found["answers"] == 20 * len(config.fitness.tasks) * config.budget.evaluations
    assert found["downloads"] == list(remote.values())
    assert [task["name"] for task in found["tasks"]] == [task.task for task in config.fitness.tasks]
    archive = config.model_copy(update={"strategy": M2n2Config()})
    notes = offline_plan(archive, ZOO / "models" / "base" / "config.json").summary["notes"]
    assert any("fitness.subset.rotate: false asks all of them the same" in note for note in notes)
    plan_offline(tmp_path / "search.yaml", [], None, False)  # its base lies here
    text = capsys.readouterr().out
    assert "genes" in text and "to download" not in text
    base = "models.base=example/base"
    refuse(
        "plan", "search.yaml", "--offline", "--set", base, words=["example/base: no configuration", "--architecture"]
    )
    metric = "fitness.tasks.0.metric=exact_mtch"
    refuse("plan", "search.yaml", "--offline", "--set", metric, words=["has no metric 'exact_mtch': did you mean"])


def test_init_writes_a_file_that_plan_accepts(tmp_path, refuse):
    models = [ZOO / "models" / name for name in ("base", "ops", "ja")]
    evomerge("init", "--models", *models, "--tasks", "zoo_target_mc", "--include-path", ZOO / "tasks", cwd=tmp_path)
    text = (tmp_path / "search.yaml").read_text()
    assert "# " in text
    plan = json.loads(evomerge("plan", "search.yaml", "--json", cwd=tmp_path))
    assert len(plan["genes"]) <= 60
    assert plan["notes"] == []
    refuse("init", "--models", *models, "--tasks", "t", words=["search.yaml exists already"])
    refuse("init", "--models", *models[:2], models[1], "--tasks", "t", "-o", "b.yaml", words=["is named twice"])


def test_a_search_of_several_tasks_has_a_row_for_all(tmp_path):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gen"}, {"task": "zoo_target_mc", "weight": 0.5}]}
    write(tmp_path, fitness=fitness, budget={"evaluations": 2})
    result = json.loads(evomerge("search", "search.yaml", "--json", cwd=tmp_path))
    rows = [row for row in result["held_out"] if row["kind"] == "found"]
    assert [row["task"] for row in rows] == ["zoo_target_gen", "zoo_target_mc", "all"]
    expected = (rows[0]["score"] + 0.5 * rows[1]["score"]) / 1.5
    assert rows[2]["score"] == pytest.approx(expected)
    assert (tmp_path / "runs" / "search").is_dir()


# --- bad input: one line that names the place and what to do ---


def broken_expert(tmp_path, change):
    """Return models whose expert is a copy of the zoo's that `change` has altered."""
    folder = tmp_path / "expert"
    shutil.copytree(ZOO / "models" / "ops", folder)
    change(folder)
    return {"base": str(ZOO / "models" / "base"), "ops": str(folder)}


def alter_weights(change):
    def alter(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return alter


def test_an_unknown_key(refuse_search):
    refuse_search("search.yaml: budgte: unknown key; did you mean `budget`?", budgte={})


def test_a_missing_model_folder(refuse_search):
    refuse_search("nowhere", models=config()["models"] | {"ops": "./nowhere"})


def test_a_folder_with_pickles_only(tmp_path, refuse_search):
    def only_pickles(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    refuse_search("expert", "safetensors", models=broken_expert(tmp_path, only_pickles))


def test_other_shapes(tmp_path, refuse_search):
    def widen(folder):
        data = json.loads((folder / "config.json").read_text())
        data["intermediate_size"] *= 2
        (folder / "config.json").write_text(json.dumps(data))

    refuse_search("expert", models=broken_expert(tmp_path, widen))


def test_other_vocabulary(tmp_path, refuse_search):
    def extend(folder):
        data = json.loads((folder / "config.json").read_text())
        data["vocab_size"] += 8
        (folder / "config.json").write_text(json.dumps(data))

    refuse_search("expert", models=broken_expert(tmp_path, extend))


def test_not_a_number_in_the_weights(tmp_path, refuse_search):
    def poison(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")

    models = broken_expert(tmp_path, alter_weights(poison))
    refuse_search("ops: model.layers.2.mlp.up_proj.weight", "NaN", models=models)


def test_a_truncated_weight_file(tmp_path, refuse_search):
    def cut(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    refuse_search("model.safetensors", models=broken_expert(tmp_path, cut))


def test_a_task_that_does_not_exist(refuse_search):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gne"}]}
    refuse_search("zoo_target_gne", "zoo_target_gen", fitness=fitness)


def test_a_test_split_must_be_acknowledged(refuse_search):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gen", "search_split": "test"}], "held_out": 0.5}
    refuse_search("allow_test_split: true", fitness=fitness)


def test_a_task_with_no_items_left(refuse_search):
    fitness = config()["fitness"] | {"held_out": 1e-9}
    refuse_search("no held-out items left", "fitness.held_out", fitness=fitness)


def test_a_run_in_use(tmp_path):
    write(tmp_path, budget={"evaluations": 100_000})
    process = subprocess.Popen([COMMAND, "search", "search.yaml", "--run", "run"], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        wait_for_events(tmp_path / "run", 6)
        assert "is in use by another evomerge process" in evomerge("resume", "run", cwd=tmp_path, code=2)
        assert json.loads(evomerge("status", "run", "--json", cwd=tmp_path))["state"] == "searching"
        process.send_signal(2)  # Ctrl-C
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 130
        assert "evomerge resume run" in output
    finally:
        process.kill()
        process.wait()
    assert json.loads(evomerge("status", "run", "--json", cwd=tmp_path))["state"] == "stopped"


def test_a_changed_source_is_noticed_on_resume(tmp_path, refuse):
    models = broken_expert(tmp_path, lambda folder: None)
    write(tmp_path, models=models, budget={"evaluations": 2})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    alter_weights(lambda tensors: tensors["model.norm.weight"].add_(1.0))(tmp_path / "expert")
    refuse("resume", "run", words=["models.ops", "has changed since the run began"])


def test_an_edited_config_is_noticed_on_resume(finished, tmp_path, refuse):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("held_out: test", "held_out: 0.5"))
    refuse("resume", "run", words=["config.yaml: fitness was edited since the run began", "put it back"])
    file.write_text(text.replace("population: 5", "population: 6"))
    refuse("resume", "run", words=["config.yaml: strategy was edited"])


def test_upgraded_packages_are_named_on_resume(finished, tmp_path):
    run = shutil.copytree(finished[0] / "run", tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    environment["packages"]["numpy"] = "1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    output = " ".join(evomerge("resume", "run", cwd=tmp_path).split())
    assert "warning: numpy 1.0 when the run began" in output
    assert output.count("when the run began") == 1


def test_models_may_move_between_stop_and_resume(tmp_path):
    models = broken_expert(tmp_path, lambda folder: None)
    write(tmp_path, models=models, budget={"evaluations": 3})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    (tmp_path / "expert").rename(tmp_path / "elsewhere")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(tmp_path / "expert"), str(tmp_path / "elsewhere")))
    assert "held-out scores" in evomerge("resume", "run", cwd=tmp_path)


def test_what_is_wrong_with_a_worker_shows_before_the_run_exists(refuse_search):
    refuse_search("device 'foo' cannot be used", "write cpu", workers={"device": "foo"})
    refuse_search("max_length", fitness=config()["fitness"] | {"max_length": 4})


def test_a_damaged_run_does_not_hide_the_others(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    for name in ("good", "torn"):
        shutil.copytree(folder / "run", tmp_path / name)
    (tmp_path / "torn" / "events.sqlite").write_bytes(b"SQLite format 3")
    monkeypatch.setattr(sys, "argv", ["evomerge", "runs", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "good" in text and "held out" in text and "damaged" in text


def test_a_folder_without_runs(refuse):
    refuse("runs", "nowhere", words=["there is no such folder"])


def test_weights_with_nan_are_not_merged_alone(tmp_path, refuse):
    broken_expert(tmp_path, alter_weights(lambda tensors: tensors["model.norm.weight"].fill_(float("inf"))))
    (tmp_path / "one.yaml").write_text("merge_method: linear\nmodels: [{model: expert, parameters: {weight: 1.0}}]\n")
    refuse("merge", "one.yaml", "out", words=["model.norm.weight", "NaN or infinite"])
    refuse("evaluate", "expert", "--tasks", "zoo_read_ja", "--include-path", ZOO / "tasks", words=["model.norm.weight"])


def test_evaluating_nothing(refuse):
    refuse("evaluate", ZOO / "models" / "base", words=["--tasks: name at least one"])
    refuse("evaluate", ZOO / "models" / "base", "--tasks", "t", "t", words=["--tasks:", "listed twice"])


def test_exporting_to_a_place_that_is_none(finished, refuse):
    folder, _ = finished
    refuse("export", folder / "run", "-o", "no/such/folder.yaml", words=["cannot be written"], code=1)


def test_an_unexpected_error_is_one_line_too(finished, refuse, monkeypatch):
    folder, _ = finished
    from evomerge.cli.main import status

    def fail(path):
        raise KeyError("something")

    monkeypatch.setattr(status, "_summary", fail)
    refuse("status", folder / "run", words=["unexpected KeyError", "--debug"], code=1)


def test_a_damaged_log(finished, tmp_path, refuse):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run" / "events.sqlite"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for verb in ("status", "resume", "export"):
        refuse(verb, "run", words=["events.sqlite is damaged", "best.yaml beside it is still good"], code=1)


def test_no_run(refuse):
    refuse("status", "nothing", words=["is no run directory"])


def test_a_full_disk_while_merging_leaves_nothing_behind(finished, tmp_path):
    """The limit on file sizes stands for a full disk: writing fails half-way."""
    folder, _ = finished
    command = f"ulimit -f 200; exec '{COMMAND}' merge '{folder / 'run' / 'best.yaml'}' out"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "out" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_a_traceback(tmp_path):
    done = subprocess.run(
        [COMMAND, "--debug", "status", "nothing"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr


def wait_for_events(run, count, timeout=120):
    """Wait until a run's log holds so many events."""
    import time

    from evomerge.runs.run import LogError, Run, RunError

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            with Run.read(run) as reader:
                if len(list(reader.events())) >= count:
                    return
        except (RunError, LogError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach {count} events in {timeout} s")


def test_a_finished_run_is_extended(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "run", run)
    before = json.loads((run / "result.json").read_text())["evaluations"]
    out = evomerge("resume", "run", "--budget.evaluations=+3", cwd=tmp_path)
    assert f"{before + 3} evaluations, {before} of them done" in out
    assert json.loads((run / "result.json").read_text())["evaluations"] == before + 3
    assert yaml.safe_load((run / "config.yaml").read_text())["budget"]["evaluations"] == before + 3


def test_resuming_with_another_strategy_is_refused(finished, tmp_path, refuse):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    refuse("resume", "run", "--strategy.sigma=0.3", words=["strategy was edited", "only the budget, the workers"])


@pytest.mark.parametrize("kind", ["random", "m2n2"])
def test_a_warm_start_begins_at_what_a_former_run_found(finished, tmp_path, kind):
    former = finished[0] / "run"
    write(tmp_path, strategy={"kind": kind})
    assert warm_start_override(load_config(tmp_path / "search.yaml"), former) == (
        f"strategy.warm_start={former.resolve()}"
    )
    evomerge("search", "search.yaml", "--warm-start", former, "--run", "warm", "--budget.evaluations=2", cwd=tmp_path)
    with Run.read(tmp_path / "warm") as run:
        first = next(event for event in run.events() if isinstance(event, Asked))
    assert first.recipe == json.loads((former / "result.json").read_text())["best"]


def test_a_grid_has_no_warm_start(finished, tmp_path):
    grid = load_config(write(tmp_path, strategy={"kind": "grid"}))
    with pytest.raises(ConfigError, match=r"strategy.kind grid cannot use a former run; write another"):
        warm_start_override(grid, finished[0] / "run")
