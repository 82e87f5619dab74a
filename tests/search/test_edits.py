"""What may be edited between stop and resume: every edit is noticed, or it cannot change a score.

The table names an edit, what it does to the files of a stopped search, and what follows: the words of the refusal, or
the reason why no score can change, which is then checked by scoring the same recipe before and after.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config.errors import ConfigError
from evomerge.config.load import load, load_recorded
from evomerge.merging.sources.errors import CheckpointError
from evomerge.runs.run import Asked, LogError, Run, RunError
from evomerge.search.environment import config_identity
from evomerge.search.problem import Problem
from evomerge.search.resuming import check_unchanged, upgrades
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies import Candidate
from evomerge.workers.base import Request
from fitness.results import TaskError
from tests.fitness.conftest import WORDS, _model, _tokenizer

REFUSALS = (RunError, ConfigError, LogError, TaskError, CheckpointError)

SEARCH = {
    "models": {"base": "base", "expert": "expert"},
    "space": {"layers_per_group": 2, "weight": {"low": 0.0, "high": 1.0}},
    "strategy": {"kind": "cma_es", "population": 4},
    "fitness": {
        "tasks": [{"task": "choice"}, {"task": "text"}],
        "include_path": ["tasks"],
        "held_out": "test",
        "num_fewshot": 2,
        "apply_chat_template": True,
    },
    "budget": {"evaluations": 8},
    "workers": {"device": "cpu"},
    "out_dtype": "float32",
}
COMMON = {"dataset_path": "json", "doc_to_text": "{{question}} =", "description": "w0 w1 ? "}
CHOICE = {
    "task": "choice",
    "include": "common.yaml",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1},
}
TEXT = {
    "task": "text",
    "include": "common.yaml",
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 3, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
}
CODE = """import json
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location("helper", Path(__file__).parent / "helper.py")
helper = module_from_spec(spec)
spec.loader.exec_module(helper)


def score(doc, results):
    table = json.loads((Path(__file__).parent / "data" / "table.json").read_text())
    return {"exact_match": table["right"] if helper.same(results[0], doc["answer"]) else 0.0}
"""
HELPER = "def same(said, right):\n    return said.strip() == right\n"


def documents(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words = [str(word) for word in rng.choice(WORDS, 9)]
        yield {
            "question": " ".join(words[:4]),
            "options": words[4:7],
            "gold": int(rng.integers(3)),
            "answer": words[7],
            "note": words[8],
        }


def write_task(folder, said, function=""):
    text = yaml.safe_dump(said) + (f"process_results: !function {function}\n" if function else "")
    (folder / f"{said['task']}.yaml").write_text(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with two models, two tasks, a search file, and a run that was stopped at once."""
    folder = tmp_path_factory.mktemp("edits") / "search"
    tasks = folder / "tasks"
    (tasks / "data").mkdir(parents=True)
    for seed, split in enumerate(("train", "validation", "test")):
        rows = "".join(json.dumps(row) + "\n" for row in documents(seed, 8))
        (tasks / "data" / f"{split}.jsonl").write_text(rows)
    (tasks / "data" / "table.json").write_text('{"right": 1.0}')
    (tasks / "metrics.py").write_text(CODE)
    (tasks / "helper.py").write_text(HELPER)
    (tasks / "unrelated.py").write_text("def other():\n    return 1\n")
    files = {split: str(tasks / "data" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    splits = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    common = COMMON | splits | {"fewshot_split": "train", "dataset_kwargs": {"data_files": files}}
    (tasks / "common.yaml").write_text(yaml.safe_dump(common))
    write_task(tasks, CHOICE)
    write_task(tasks, TEXT, "metrics.score")
    for seed, name in enumerate(("base", "expert")):
        model = _model("llama", 0)
        if seed:
            for parameter in model.parameters():
                parameter.data.mul_(1.05)
        model.save_pretrained(folder / name)
        _tokenizer(chat=True).save_pretrained(folder / name)
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH, sort_keys=False))
    problem = Problem(load(folder / "search.yaml"))
    with Run.create(folder / "run", problem.resolved().to_yaml(), problem.environment()) as run:
        run.record(Asked(Candidate(0, np.array(problem.space.start), "sample", 0), "hash"))
        run.write("best.yaml", "merge_method: linear\n")
        run.write("log.txt", "began\n")
    return folder


@pytest.fixture(scope="module")
def scores(whole):
    """Return the scores of the search's start on all items."""
    return answers(Problem(load(whole / "search.yaml")))


def answers(problem):
    items = (*problem.search_items, *problem.held_out_items)
    request = Request(problem.space.decode(problem.space.start), items)
    return local_worker(problem).worker.evaluate(request).scores.tolist()


@pytest.fixture
def stopped(whole, tmp_path):
    """Return a copy of the stopped search, whose run means the copy's models and tasks."""
    folder = shutil.copytree(whole, tmp_path / "search")
    for file in (folder / "run" / "config.yaml", folder / "tasks" / "common.yaml"):
        file.write_text(file.read_text().replace(str(whole), str(folder)))
    return folder


def resumed(run):
    """Check a run as `resume` does before it continues; return the problem and the packages' warnings."""
    with Run.open(run) as opened:
        list(opened.events())
        recorded = opened.environment()
        problem = Problem(load_recorded(run), recorded=recorded)
        environment = problem.environment()
        check_unchanged(opened, environment)
        return problem, upgrades(recorded, environment)


# --- edits, each a function of the folder ---


def config(path, value):
    """Set a key of the run's search file; the path's parts are keys and positions."""

    def edit(folder):
        file = folder / "run" / "config.yaml"
        values = yaml.safe_load(file.read_text())
        place = values
        *above, last = path
        for key in above:
            place = place[key]
        place[last] = value(folder) if callable(value) else value
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    return edit


def task(name, **keys):
    """Set keys of a task's file, or remove those that are None."""

    def edit(folder):
        said = dict(CHOICE if name == "choice" else TEXT) | keys
        write_task(folder / "tasks", {key: value for key, value in said.items() if value is not None}, function(name))

    return edit


def function(name):
    return "metrics.score" if name == "text" else ""


def common(**keys):
    def edit(folder):
        file = folder / "tasks" / "common.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))

    return edit


def replace(name, old, new):
    """Replace text in a file."""

    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def rows(split, change):
    """Change a data file's rows."""

    def edit(folder):
        file = folder / "tasks" / "data" / f"{split}.jsonl"
        changed = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(row) + "\n" for row in changed))

    return edit


def first(**keys):
    return lambda rows: [rows[0] | keys, *rows[1:]]


def other_gold(rows):
    return [rows[0] | {"gold": (rows[0]["gold"] + 1) % 3}, *rows[1:]]


def values_of(name, **keys):
    """Set keys of a JSON file."""

    def edit(folder):
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | keys))

    return edit


def weights(name):
    def edit(folder):
        file = folder / name / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] += 0.5
        save_file(tensors, file, metadata={"format": "pt"})

    return edit


def moved(old, new, key):
    def edit(folder):
        (folder / old).rename(folder / new)
        config(key, [str(folder / new)] if key[-1] == "include_path" else str(folder / new))(folder)
        for file in folder.glob(f"{new}/common.yaml"):
            file.write_text(file.read_text().replace(str(folder / old), str(folder / new)))

    return edit


def added(name, text="something\n"):
    return lambda folder: (folder / name).write_text(text)


def log(statement):
    def edit(folder):
        with Run.open(folder / "run") as run:
            run._db.execute(statement)

    return edit


def swapped_models(folder):
    file = folder / "run" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["models"] = dict(reversed(values["models"].items()))
    file.write_text(yaml.safe_dump(values, sort_keys=False))


FIRST_N = {"sampler": "first_n"}
WHOLE = [{"name": "whole", "filter": [{"function": "take_first"}]}]
OTHER_REGEX = [
    {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(w[0-9])"}, {"function": "take_first"}]}
]
LOWER = [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
CASED = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": False}]

NOTICED = {
    # the search file
    "seed": (config(["seed"], 1), "seed was edited"),
    "data type of the weights": (config(["out_dtype"], "bfloat16"), "out_dtype was edited"),
    "range of the weights": (config(["space", "weight", "high"], 2.0), r"space was edited.*space\.weight\.high"),
    "method": (config(["space", "method"], "ties"), r"space was edited"),
    "layers per group": (config(["space", "layers_per_group"], 1), "space was edited"),
    "population": (config(["strategy", "population"], 6), r"strategy was edited.*strategy\.population"),
    "strategy": (config(["strategy"], {"kind": "random"}), "strategy was edited"),
    "sigma": (config(["strategy", "sigma"], 0.11), "strategy was edited"),
    "a task's weight": (config(["fitness", "tasks", 0, "weight"], 2.0), "fitness was edited"),
    "a task's metric": (config(["fitness", "tasks", 0, "metric"], "answer_loss"), "fitness was edited"),
    "a task's minimum": (config(["fitness", "tasks", 0, "min_share_of_best_source"], 0.5), "fitness was edited"),
    "a task's split": (config(["fitness", "tasks", 0, "search_split"], "train"), "fitness was edited"),
    "a task less": (config(["fitness", "tasks"], [{"task": "choice"}]), "fitness was edited"),
    "the order of tasks": (config(["fitness", "tasks"], [{"task": "text"}, {"task": "choice"}]), "fitness was edited"),
    "held out": (config(["fitness", "held_out"], 0.5), r"fitness was edited.*fitness\.held_out"),
    "few-shot examples": (config(["fitness", "num_fewshot"], 1), r"fitness\.num_fewshot"),
    "chat template used": (config(["fitness", "apply_chat_template"], False), r"fitness\.apply_chat_template"),
    "items per candidate": (config(["fitness", "subset", "items"], 4), r"fitness\.subset\.items"),
    "estimator": (config(["fitness", "subset", "estimator"], "mean"), r"fitness\.subset\.estimator"),
    "rotation": (config(["fitness", "subset", "rotate"], True), r"fitness\.subset\.rotate"),
    "racing": (config(["fitness", "racing"], {"block": 2}), r"fitness\.racing"),
    "finalists": (config(["fitness", "finalists"], 3), r"fitness\.finalists"),
    "normalisation": (config(["fitness", "normalize"], "best_source"), r"fitness\.normalize"),
    "batch size": (config(["fitness", "batch_size"], 8), r"fitness\.batch_size"),
    "longest input": (config(["fitness", "max_length"], 32), r"fitness\.max_length"),
    "vocabulary": (config(["vocabulary"], "union"), "vocabulary was edited"),
    "unrelated models": (config(["allow_unrelated"], True), "allow_unrelated was edited"),
    "the order of models": (swapped_models, "models was edited"),
    "a model's name": (
        config(["models"], lambda folder: {"base": str(folder / "base"), "tuned": str(folder / "expert")}),
        r"models\.tuned: it has changed",
    ),
    "models exchanged": (
        config(["models"], lambda folder: {"base": str(folder / "expert"), "expert": str(folder / "base")}),
        r"models\.base: it has changed",
    ),
    "data type of forward passes": (
        config(["workers", "compute_dtype"], "bfloat16"),
        "computed in float32 and would in bfloat16",
    ),
    # the tasks' files
    "question": (
        common(doc_to_text="{{question}} ?"),
        r"task choice: the prompt of search item choice/\S+ has changed",
    ),
    "description": (common(description="w5 w6 ? "), "the prompt of search item"),
    "split of the examples": (common(fewshot_split="validation"), "the prompt of search item"),
    "sampler of the examples": (task("choice", fewshot_config=FIRST_N), "task choice: the prompt of search item"),
    "beginning of the answer": (task("choice", gen_prefix="w9"), "task choice: the (prompt|right answer)"),
    "right answer": (task("choice", doc_to_target="{{(gold + 1) % 3}}"), "task choice: the right answer"),
    "choices": (task("choice", doc_to_choice="{{options[::-1]}}"), "task choice: the right answer, the choices"),
    "right text": (task("text", doc_to_target="{{note}}"), "task text: the right answer"),
    "better when lower": (task("choice", metric_list=LOWER), "no metric to search with|metric_list"),
    "argument of the metric": (task("text", metric_list=CASED), "task text: its metric_list has changed"),
    "pattern of the filter": (task("text", filter_list=OTHER_REGEX), "task text: its filter_list has changed"),
    "another filter": (task("text", filter_list=WHOLE), "task text: its metric has changed"),
    "stop strings": (
        task("text", generation_kwargs={"until": ["?"], "max_gen_toks": 3, "do_sample": False}),
        "task text: its generation_kwargs has changed",
    ),
    "longest answer": (
        task("text", generation_kwargs={"until": ["."], "max_gen_toks": 4, "do_sample": False}),
        "task text: its generation_kwargs has changed",
    ),
    "another function": (
        lambda folder: write_task(folder / "tasks", TEXT | {"process_results": None}),
        "task text: its code .* is gone",
    ),
    "function": (replace("tasks/metrics.py", "else 0.0", "else 0.5"), r"task text: its code metrics\.py has changed"),
    "module that a function loads": (replace("tasks/helper.py", ".strip()", ""), r"its code helper\.py has changed"),
    "data that a function reads": (
        replace("tasks/data/table.json", "1.0", "0.9"),
        r"its code data/table\.json has changed",
    ),
    # the data
    "a search question": (
        rows("validation", first(question="w1 w2")),
        "the document of search item choice/validation/0",
    ),
    "a held-out question": (rows("test", first(question="w1 w2")), "the document of held-out item choice/test/0"),
    "a held-out answer": (
        rows("test", other_gold),
        "the document of held-out item choice/test/0",
    ),
    "a field for the metric": (rows("test", first(note="w0")), "the document of held-out item choice/test/0"),
    "a question more": (
        rows("validation", lambda rows: [*rows, rows[0] | {"question": "w3"}]),
        r"its search items have changed \(8 before, 9 now; the first different one is choice/validation/8\)",
    ),
    "a question less": (rows("test", lambda rows: rows[:-1]), r"its held-out items have changed \(8 before, 7 now"),
    "the order of questions": (rows("test", lambda rows: rows[::-1]), "the document of held-out item"),
    "a few-shot example": (
        rows("train", lambda rows: [row | {"gold": (row["gold"] + 1) % 3, "answer": "w0"} for row in rows]),
        "the prompt of search item",
    ),
    # the models
    "weights of the base": (weights("base"), r"models\.base: it has changed .*model\.safetensors"),
    "weights of an expert": (weights("expert"), r"models\.expert: it has changed .*model\.safetensors"),
    "configuration": (
        values_of("base/config.json", rms_norm_eps=1e-3),
        r"models\.base: it has changed .*config\.json|eps",
    ),
    "vocabulary file": (
        replace("base/tokenizer.json", '"w7"', '"w77"'),
        r"tokenizer\.json has changed|vocabular|token",
    ),
    "chat template": (replace("base/chat_template.jinja", "assistant", "model"), r"chat_template\.jinja has changed"),
    "special tokens": (values_of("base/tokenizer_config.json", eos_token="?"), "tokenizer_config.json has changed|eos"),
    "end of texts": (values_of("base/generation_config.json", eos_token_id=5), r"generation_config\.json has changed"),
    # the run
    "recorded items": (replace("run/environment.json", '"prompts": "', '"prompts": "0'), "not as it was written"),
    "recorded settings": (
        replace("run/environment.json", '"held_out": "test"', '"held_out": "train"'),
        "not as it was",
    ),
    "a proposed candidate": (log("UPDATE events SET genotype = zeroblob(length(genotype))"), "is damaged"),
    "an event less": (log("DELETE FROM events"), "is damaged"),
}

HARMLESS = {
    "evaluations": (config(["budget", "evaluations"], 50), "only says when the search ends"),
    "hours": (config(["budget", "hours"], 1.0), "only says when the search ends"),
    "trackers": (config(["trackers"], [{"kind": "csv"}]), "only records"),
    "a model's folder": (moved("expert", "elsewhere", ["models", "expert"]), "the same files"),
    "the tasks' folder": (moved("tasks", "other", ["fitness", "include_path"]), "the same files"),
    "a task's version": (task("choice", metadata={"version": 2}), "is read by nobody"),
    "a task's alias": (task("choice", task_alias="other"), "is shown by lm-eval alone"),
    "a comment in a task": (
        lambda folder: (folder / "tasks" / "choice.yaml").write_text(
            "# a comment\n" + (folder / "tasks" / "choice.yaml").read_text()
        ),
        "means the same",
    ),
    "the order of a task's keys": (
        lambda folder: (folder / "tasks" / "choice.yaml").write_text(yaml.safe_dump(CHOICE, sort_keys=False)),
        "means the same",
    ),
    "spaces in a data file": (
        lambda folder: (folder / "tasks" / "data" / "test.jsonl").write_text(
            (folder / "tasks" / "data" / "test.jsonl").read_text().replace('": ', '":  ')
        ),
        "the same documents",
    ),
    "unused examples": (rows("train", lambda rows: rows), "the same documents"),
    "a module that no task uses": (replace("tasks/unrelated.py", "1", "2"), "is not imported"),
    "delimiter before the answer": (task("choice", target_delimiter=""), "a chat template puts the answer"),
    "delimiter between examples": (task("choice", fewshot_delimiter=" . "), "a chat template makes turns of them"),
    "another task in the folder": (added("tasks/third.yaml", "task: third\ndataset_path: json\n"), "is not asked"),
    "a model's README": (added("base/README.md"), "is not read"),
    "times of files": (lambda folder: os.utime(folder / "base" / "model.safetensors", (1, 1)), "contents are compared"),
    "best.yaml": (lambda folder: (folder / "run" / "best.yaml").unlink(), "is written again"),
    "log.txt": (added("run/log.txt"), "is not read"),
    "packages": (replace("run/environment.json", '"numpy": "', '"numpy": "0.'), "is warned of"),
    "notes in the run": (added("run/notes.txt"), "is not read"),
}


def test_the_table_has_enough_kinds():
    assert len(NOTICED) + len(HARMLESS) >= 58


@pytest.mark.parametrize("name", NOTICED)
def test_edits_that_are_noticed(name, stopped):
    edit, words = NOTICED[name]
    edit(stopped)
    with pytest.raises(REFUSALS, match=words) as caught:
        resumed(stopped / "run")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", HARMLESS)
def test_edits_that_change_no_score(name, stopped, scores):
    edit, _ = HARMLESS[name]
    edit(stopped)
    problem, warnings = resumed(stopped / "run")
    assert answers(problem) == scores
    assert bool(warnings) == (name == "packages")


FILES = {
    "start": ("space", "start"),
    "calibration_text": ("space", "calibration_text"),
    "item_bank": ("fitness", "subset", "item_bank"),
}


@pytest.mark.parametrize("key", FILES)
def test_files_that_a_search_file_names_count_by_their_contents(key, tmp_path):
    """Of a start, a calibration text and an item bank: moved is the same, edited is not."""

    def identity(name):
        values = json.loads(json.dumps(SEARCH))
        values["models"] = {"base": str(tmp_path / "base"), "expert": str(tmp_path / "expert")}
        values["fitness"] |= {"include_path": [], "subset": {}}
        place = values
        *above, last = FILES[key]
        for part in above:
            place = place[part]
        place[last] = str(tmp_path / name)
        if key == "calibration_text":
            values["space"]["fixed"] = {"activation_informed": 0.5}
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
        return config_identity(load(tmp_path / "search.yaml"))

    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("one")
    (tmp_path / "c").write_text("two")
    assert identity("a") == identity("b") != identity("c")
    assert str(tmp_path) not in json.dumps(identity("a")["space"])


def test_a_run_begins_unchanged(stopped, scores):
    problem, warnings = resumed(stopped / "run")
    assert answers(problem) == scores and not warnings
    assert 0 < np.mean(scores) < 1
    assert Path(stopped / "run" / "environment.json").stat().st_size < 100_000
