"""What the verbs beside search say and write, about one finished run of the zoo."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli.init import modules_of
from evomerge.config.load import load as load_config
from evomerge.runs.run import Run
from evomerge.strategies import M2n2Config
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.layout import ModelLayout
from tests import command

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"


def test_status_reads_a_run(finished, evomerge):
    folder, _ = finished
    summary = json.loads(evomerge("status", "run", "--json", cwd=folder))
    assert (summary["state"], summary["evaluations"], summary["budget"]) == ("finished", 12, 12)
    assert summary["best"]["score"] >= 0
    assert 0 <= summary["overhead_share"] < 1
    text = evomerge("status", "run", cwd=folder)
    assert "12/12 evaluations" in text and "overhead" in text and "selection bias" in text


def test_runs_lists_it(finished, evomerge):
    folder, _ = finished
    assert "run" in evomerge("runs", ".", cwd=folder)
    (summary,) = json.loads(evomerge("runs", ".", "--json", cwd=folder))
    assert summary["state"] == "finished"


def test_export_merge_load_evaluate(finished, evomerge, tasks):
    """The exported checkpoint loads with transformers and scores item for item as the candidate did in memory."""
    folder, _ = finished
    evomerge("export", "run", "-o", "recipe.yaml", cwd=folder)
    assert evomerge("export", "run", cwd=folder) == (folder / "recipe.yaml").read_text()
    evomerge("merge", "recipe.yaml", "merged", cwd=folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert model.num_parameters() > 100_000
    assert AutoTokenizer.from_pretrained(folder / "merged").vocab_size > 10

    arguments = ("--tasks", "zoo_target_gen", "--include-path", tasks, "--json")
    saved = json.loads(evomerge("evaluate", "merged", *arguments, cwd=folder))
    from evomerge.runs.history import RunHistory

    with Run.read(folder / "run") as run:
        history = RunHistory(run.events())
    best = json.loads((folder / "run" / "result.json").read_text())["best"]
    in_memory = history.reference_scores["held_out", best]
    assert saved["scores"] == dict(zip(in_memory.items, in_memory.scores.tolist(), strict=True))
    assert saved["tasks"][0]["score"] == pytest.approx(in_memory.fitness)

    from_recipe = json.loads(evomerge("evaluate", "recipe.yaml", "--like", "run", "--json", cwd=folder))
    assert from_recipe["scores"] == saved["scores"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"{{prompt}}"', '"{{prompt}} "'),
        ("max_gen_toks: 8", "max_gen_toks: 7"),
        ("metric: exact_match", "metric: exact_match\n    ignore_case: true"),
    ],
)
def test_evaluate_like_refuses_other_questions(finished, tasks, tmp_path, refuse, old, new):
    """The run's task has been edited since: scores would not compare, whichever part it is that they follow from."""
    run = shutil.copytree(finished[0] / "run", tmp_path / "run")
    edited = shutil.copytree(tasks, tmp_path / "tasks")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(tasks), str(edited)), encoding="utf-8")
    text = (edited / "_generate.template").read_text(encoding="utf-8")
    assert old in text
    (edited / "_generate.template").write_text(text.replace(old, new), encoding="utf-8")
    words = ["--like: task zoo_target_gen: ", "since the run began, so scores are not comparable; put it back"]
    refuse("evaluate", ZOO / "models" / "ops", "--like", "run", "--trust-tasks", words=words)


def test_export_by_rank(finished, refuse, evomerge):
    folder, _ = finished

    hashes = []
    for rank in (1, 2):
        evomerge("export", "run", "--rank", rank, "-o", f"rank{rank}.yaml", cwd=folder)
        hashes.append(mergekit_yaml.read(folder / f"rank{rank}.yaml").hash)
    assert hashes[0] != hashes[1]
    refuse("export", folder / "run", "--rank", 99, words=["give 1 to"])


def test_plan_says_what_a_search_costs(tmp_path, evomerge, write):
    write(tmp_path)
    text = evomerge("plan", "search.yaml", cwd=tmp_path)
    assert text.endswith("next: evomerge search search.yaml\n")
    for words in (
        "genes",
        "ops.weight[embeddings]",
        "sources mapped",
        "placement auto",
        "per candidate",
        "measured: merge",
        "note:",
    ):
        assert words in text
    plan = json.loads(evomerge("plan", "search.yaml", "--json", "--set", "budget.evaluations=500", cwd=tmp_path))
    assert len(plan["genes"]) == 3 * (2 + 2)
    assert plan["footprint"]["touched_bytes"] > plan["footprint"]["resident_bytes"]
    assert plan["placement"]["placement"] == "mmap"
    assert plan["placement"]["peak_bytes"] == plan["footprint"]["peak_bytes"] > plan["footprint"]["source_bytes"]
    assert plan["estimated_seconds"] > 0
    assert plan["notes"] == []
    assert not (tmp_path / "runs").exists()


def test_plan_offline_needs_no_weights(tmp_path, refuse, capsys, write):
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
        "plan",
        "search.yaml",
        "--offline",
        "--set",
        base,
        words=["example/base: its configuration is not on this machine", "--architecture"],
    )
    metric = "fitness.tasks.0.metric=exact_mtch"
    refuse("plan", "search.yaml", "--offline", "--set", metric, words=["has no metric 'exact_mtch': did you mean"])


def test_init_writes_a_file_that_plan_accepts(tmp_path, refuse, evomerge):
    models = [ZOO / "models" / name for name in ("base", "ops", "ja")]
    evomerge("init", "--models", *models, "--tasks", "zoo_target_mc", "--include-path", ZOO / "tasks", cwd=tmp_path)
    text = (tmp_path / "search.yaml").read_text()
    assert "# " in text
    plan = json.loads(evomerge("plan", "search.yaml", "--json", cwd=tmp_path))
    assert len(plan["genes"]) <= 60
    assert f"group of modules: {len(plan['genes'])} genes, since" in text
    assert plan["notes"] == []
    refuse("init", "--models", *models, "--tasks", "t", words=["search.yaml exists already"])
    refuse("init", "--models", *models, "--tasks", "t", "-o", "no/x.yaml", words=["no/x.yaml: there is no folder no"])
    refuse("init", "--models", *models[:2], models[1], "--tasks", "t", "-o", "b.yaml", words=["is named twice"])


def test_init_divides_layers_into_the_modules_that_they_have():
    """Mamba has no attention and no mlp, and attention and linear attention have two names in a hybrid's layers."""
    mamba = ModelLayout(("embed",), (("norm.w", "mixer.w"),), "layers.{}.", ("norm",))
    assert modules_of(mamba) == ()
    assert modules_of(replace(mamba, mlp="mlp")) == ("mlp", "other")
    assert modules_of(replace(mamba, mlp="mlp", attention="attn")) == ("attention", "mlp", "other")


@pytest.mark.slow
def test_what_is_unrelated_is_allowed_where_the_error_says(tmp_path, refuse, evomerge):
    other = Path(shutil.copytree(ZOO / "models" / "ops", tmp_path / "other"))
    stored = load_file(other / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(values.shape, generator=noise).to(values.dtype) for name, values in stored.items()}
    save_file(drawn, other / "model.safetensors", metadata={"format": "pt"})
    asked = ["--tasks", "zoo_target_mc", "--include-path", ZOO / "tasks"]
    models = ["init", "--models", ZOO / "models" / "base", other, *asked]
    recipe = {"merge_method": "linear", "models": [{"model": str(ZOO / "models" / "base")}, {"model": str(other)}]}
    recipe |= {"parameters": {"weight": 0.5}, "dtype": "float32"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    scored = ["evaluate", "recipe.yaml", *asked, "--limit", 4]
    for typed in (models, scored):
        refuse(*typed, words=["or allow unrelated models", "(--allow-unrelated)"])
        evomerge(*typed, "--allow-unrelated", cwd=tmp_path)
    assert load_config(tmp_path / "search.yaml").allow_unrelated


def test_init_with_a_vocabulary(tmp_path, refuse, evomerge):
    other = Path(shutil.copytree(ZOO / "models" / "ops", tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    data["model"]["vocab"]["<|im_start|>"] = data["model"]["vocab"].pop("sort")
    (other / "tokenizer.json").write_text(json.dumps(data))
    command = ["init", "--models", ZOO / "models" / "base", other, "--tasks", "zoo_target_mc"]
    command += ["--include-path", ZOO / "tasks"]
    refuse(*command, words=["calls row 7 '<|im_start|>'", "vocabulary: pad", "in init and inspect --vocabulary pad"])
    evomerge(*command, "--vocabulary", "pad", cwd=tmp_path)
    assert load_config(tmp_path / "search.yaml").vocabulary == "pad"


def test_a_damaged_result_says_how_it_is_written_again(finished, tmp_path, refuse):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "best.yaml").write_text("half a re")
    refuse(
        "export",
        "run",
        words=["best.yaml cannot be read (the document", "`evomerge resume run` writes it again"],
        code=1,
    )
    (tmp_path / "run" / "best.yaml").unlink()
    refuse("export", "run", words=["run/best.yaml is missing; `evomerge resume run` writes it again"], code=1)


def test_a_damaged_run_does_not_hide_the_others(finished, tmp_path, evomerge):
    folder, _ = finished
    for name in ("good", "torn"):
        shutil.copytree(folder / "run", tmp_path / name)
    (tmp_path / "torn" / "events.sqlite").write_bytes(b"SQLite format 3")
    (tmp_path / "private").mkdir(mode=0)  # of somebody else
    text = evomerge("runs", ".", cwd=tmp_path)
    assert "good" in text and "held out" in text and "damaged" in text


def test_report_writes_the_page_and_its_figures(finished, tmp_path, refuse, evomerge):
    run = finished[0] / "run"
    before = (run / "report.html").read_text()  # written by the search itself
    (tmp_path / "file").touch()
    refuse("report", run, "-o", "page.html", "--figures", "file", words=["--figures file: a file of that name exists"])
    assert not (tmp_path / "page.html").exists()
    out = evomerge("report", str(run), "-o", "page.html", "--figures", "figures", cwd=tmp_path)
    assert "wrote page.html" in out
    assert (tmp_path / "page.html").read_text().count("<figure") == before.count("<figure") > 3
    names = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert {"held-out", "convergence", "coefficients-weight", "costs"} <= names


def test_report_without_the_space_says_that_candidates_have_no_recipes(finished, tmp_path):
    config = shutil.copytree(finished[0] / "run", tmp_path / "run") / "config.yaml"
    config.write_text(config.read_text().replace("kind: layer_coefficients", "kind: not_installed"))
    code, out, err = command.run("report", "run", cwd=tmp_path)
    assert (code, out.strip()) == (0, "wrote run/report.html")
    assert "candidates are shown without their recipes" in err and len(err.splitlines()) == 1
