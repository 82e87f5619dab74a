"""Whole searches on the zoo: their output, resuming, extending, warm starts."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.load import load as load_config
from evomerge.runs.run import Asked, Run
from evomerge.search.warm_start import warm_start_override
from search_spaces.recipes import mergekit_yaml
from tests.merging.sources.test_dequantised import CHANNELS, by_rows, quantised

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"


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
        "start",
    ]
    for row in result["held_out"]:
        numbers = {"score", "low", "high", "items", "p_value", "cut", "truncated", "unscored"}
        assert set(row) == {"name", "kind", "task"} | numbers
        assert row["task"] == "zoo_target_gen"
        assert row["low"] <= row["score"] <= row["high"]
        assert row["items"] == 100
        assert 0 < row["p_value"] <= 1
    assert result["evaluations"] == 12
    assert result["item_evaluations"] > 12 * 16
    assert set(result["seconds"]) == {"merge", "score", "wait", "overhead"}

    assert mergekit_yaml.read(folder / "run" / "best.yaml").hash == result["best"]


def test_resuming_a_finished_run_repeats_its_table_and_changes_nothing(finished, evomerge):
    folder, output = finished
    before = (folder / "run" / "result.json").read_text()
    again = evomerge("resume", "run", cwd=folder)
    assert again.split("held-out scores")[1] == output.split("held-out scores")[1]
    assert (folder / "run" / "result.json").read_text() == before


def test_a_search_of_several_tasks_has_a_row_for_all(tmp_path, evomerge, write, config):
    fitness = config()["fitness"] | {"tasks": [{"task": "zoo_target_gen"}, {"task": "zoo_target_mc", "weight": 0.5}]}
    models = {name: str(ZOO / "models" / name) for name in ("base", "ops")}
    write(tmp_path, models=models, fitness=fitness, budget={"evaluations": 2})
    result = json.loads(evomerge("search", "search.yaml", "--json", cwd=tmp_path))
    rows = [row for row in result["held_out"] if row["kind"] == "found"]
    assert [row["task"] for row in rows] == ["zoo_target_gen", "zoo_target_mc", "all"]
    expected = (rows[0]["score"] + 0.5 * rows[1]["score"]) / 1.5
    assert rows[2]["score"] == pytest.approx(expected)
    assert (tmp_path / "runs" / "search").is_dir()


def test_a_changed_source_is_noticed_on_resume(tmp_path, refuse, evomerge, write, broken_expert, alter_weights):
    models = broken_expert(lambda folder: None)
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


def test_upgraded_packages_are_named_on_resume(finished, tmp_path, evomerge):
    run = shutil.copytree(finished[0] / "run", tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    environment["packages"]["numpy"] = "1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    output = " ".join(evomerge("resume", "run", cwd=tmp_path).split())
    assert "warning: numpy 1.0 when the run began" in output
    assert output.count("when the run began") == 1


def test_models_may_move_between_stop_and_resume(tmp_path, evomerge, write, broken_expert):
    models = broken_expert(lambda folder: None)
    write(tmp_path, models=models, budget={"evaluations": 3})
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    (tmp_path / "expert").rename(tmp_path / "elsewhere")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(tmp_path / "expert"), str(tmp_path / "elsewhere")))
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "held-out scores" in evomerge("resume", "run", cwd=tmp_path)
    after = json.loads((tmp_path / "run" / "result.json").read_text())
    assert after == before  # the same hash, and no answer was asked again
    assert before["look"] == 1


def test_a_finished_run_is_extended(finished, tmp_path, evomerge):
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "run", run)
    before = json.loads((run / "result.json").read_text())["evaluations"]
    out = evomerge("resume", "run", "--budget.evaluations=+3", cwd=tmp_path)
    assert f"{before + 3} evaluations, {before} of them done" in out
    result = json.loads((run / "result.json").read_text())
    assert result["evaluations"] == before + 3
    assert result["look"] == 2 and "number 2 on these held-out items" in " ".join(out.split())
    assert "number 2 on these held-out items" in (run / "report.html").read_text()
    again = evomerge("resume", "run", cwd=tmp_path)  # no candidate more: the same look
    assert "number 2 on these held-out items" in " ".join(again.split())
    assert yaml.safe_load((run / "config.yaml").read_text())["budget"]["evaluations"] == before + 3


def test_resuming_with_another_strategy_is_refused(finished, tmp_path, refuse):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    refuse("resume", "run", "--strategy.sigma=0.3", words=["strategy was edited", "only the budget, the workers"])


@pytest.mark.parametrize("kind", ["random", "m2n2"])
def test_a_warm_start_begins_at_what_a_former_run_found(finished, tmp_path, kind, evomerge, write):
    former = finished[0] / "run"
    write(tmp_path, strategy={"kind": kind})
    assert warm_start_override(load_config(tmp_path / "search.yaml"), former) == (
        f'strategy.warm_start="{former.resolve()}"'
    )
    evomerge("search", "search.yaml", "--warm-start", former, "--run", "warm", "--budget.evaluations=2", cwd=tmp_path)
    with Run.read(tmp_path / "warm") as run:
        asked = [event for event in run.events() if isinstance(event, Asked)]
    first = next(at for at, event in enumerate(asked) if event.candidate.kind != "founder")
    best = json.loads((former / "result.json").read_text())["best"]
    assert best in {event.recipe for event in asked[: first + 1]}  # it may be a founder of both


def test_a_grid_has_no_warm_start(finished, tmp_path, write):
    grid = load_config(write(tmp_path, strategy={"kind": "grid"}))
    with pytest.raises(ConfigError, match=r"strategy.kind grid cannot use an earlier run; write another"):
        warm_start_override(grid, finished[0] / "run")


@pytest.mark.slow
def test_what_a_function_prints_is_not_in_the_json(tmp_path, evomerge):
    code = "print('imported')\nITEMS = list(range(9))\ndef score(model, tokenizer, items):\n    print('called')\n"
    (tmp_path / "loud.py").write_text(f"{code}    return [1.0 for _ in items]\n")
    models = {name: str(ZOO / "models" / name) for name in ("base", "ops")}
    fitness = {"kind": "python", "function": "loud.py:score", "function_items": "ITEMS"}
    values = {"models": models, "fitness": fitness, "strategy": "random", "budget": 1}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    assert json.loads(evomerge("search", "search.yaml", "--run", "run", "--json", cwd=tmp_path))["evaluations"] == 1
    model = models["ops"]
    assert json.loads(evomerge("evaluate", model, "--like", "run", "--json", cwd=tmp_path))["model"] == model


def test_a_quantised_expert_is_searched_and_merged(tmp_path, refuse, evomerge, write):
    """`dequantize: true` holds from the search file to the merged folder; without it the message says what to write."""
    ops = quantised(str(ZOO / "models" / "ops"), tmp_path / "ops", CHANNELS, by_rows, "_scale")
    models = {"base": str(ZOO / "models" / "base"), "ops": str(ops)}
    write(tmp_path, models=models, budget={"evaluations": 2})
    refuse(
        "search",
        "search.yaml",
        "--run",
        "run",
        words=["ops: its weights are quantised by compressed", "dequantize: true"],
    )
    write(tmp_path, models=models | {"ops": {"path": str(ops), "dequantize": True}}, budget={"evaluations": 2})
    result = json.loads(evomerge("search", "search.yaml", "--run", "run", "--json", cwd=tmp_path))
    evomerge("merge", "run/best.yaml", "merged", cwd=tmp_path)
    scores = json.loads(evomerge("evaluate", "merged", "--like", "run", "--json", cwd=tmp_path))["tasks"]
    found = next(row for row in result["held_out"] if row["kind"] == "found")
    assert scores[0]["score"] == pytest.approx(found["score"])
