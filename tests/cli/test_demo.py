"""`evomerge demo` runs the commands that it prints, and continues where it was stopped."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from evomerge.cli.demo import demo as run_demo
from evomerge.demo.files import DemoError, write_files
from tests.zoo import few_items


@pytest.fixture(scope="module")
def demo(tmp_path_factory, evomerge):
    """Return a folder in which a short demo has run, and what it printed; `test_wheel` runs the whole one."""
    folder = tmp_path_factory.mktemp("demo")
    made = folder / "evomerge-demo"
    write_files(made)
    shutil.rmtree(made / "tasks")
    few_items(made / "tasks", ("zoo_target_gen", "zoo_target_ja"), 60)
    search = (made / "search.yaml").read_text(encoding="utf-8")
    (made / "search.yaml").write_text(search.replace("budget: 56", "budget: 8"), encoding="utf-8")
    return folder, evomerge("demo", cwd=folder)


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("$ evomerge ")]


def test_it_ends_with_a_report_and_a_model_that_scores_as_the_table_says(demo):
    folder, printed = demo
    made = folder / "evomerge-demo"
    result = json.loads((made / "run" / "result.json").read_text(encoding="utf-8"))
    assert (made / "run" / "report.html").stat().st_size > 1000
    assert (made / "merged" / "model.safetensors").is_file()
    assert f"{result['held_out'][0]['score']:.3f}" in printed.partition("$ evomerge evaluate")[2]


def test_it_teaches_the_verbs_of_a_search_in_their_order(demo):
    assert [command[0] for command in commands(demo[1])] == ["search", "report", "export", "merge", "evaluate"]


def test_it_ends_with_what_there_is_and_what_comes_next(demo):
    folder, printed = demo
    end = printed.rpartition("\ndone in ")[2]
    named = [line.split()[0] for line in end.partition("next,")[0].splitlines()[1:] if line]
    assert {"search.yaml", "run/report.html", "recipe.yaml", "merged/"} <= set(named)
    assert all((folder / "evomerge-demo" / name.rstrip(",")).exists() for name in named)
    assert "evomerge init --models" in end


def test_every_line_of_its_own_fits_a_terminal(demo):
    ours = [line for line in demo[1].splitlines() if line.startswith(("$", "["))]
    assert ours and max(map(len, (*ours, *demo[1].splitlines()[:4]))) <= 88


def test_a_second_time_nothing_is_searched_again(demo, evomerge):
    folder, _ = demo
    events = (folder / "evomerge-demo" / "run" / "events.sqlite").read_bytes()
    again = evomerge("demo", cwd=folder)
    assert [command[0] for command in commands(again)] == ["resume", "report", "export", "merge", "evaluate"]
    assert "merged exists already" in again
    assert (folder / "evomerge-demo" / "run" / "events.sqlite").read_bytes() == events


def test_its_models_serve_for_a_first_search_file(demo, evomerge):
    folder, _ = demo
    models = [f"evomerge-demo/models/{name}" for name in ("base", "ops", "ja")]
    tasks = ("--tasks", "zoo_target_ja", "--include-path", "evomerge-demo/tasks")
    assert "next: evomerge plan" in evomerge("init", "--models", *models, *tasks, cwd=folder)


def test_a_seed_is_set_by_the_option_that_a_search_has(tmp_path):
    asked = []
    run_demo(tmp_path / "d", 7, asked.append)
    assert asked[0][-2:] == ["--set", "seed=7"]
    assert [command[0] for command in asked] == ["search", "report", "export", "merge", "evaluate"]


def test_one_that_was_stopped_says_how_to_go_on(tmp_path, capsys):
    def stop(arguments):
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        run_demo(tmp_path / "my demo", None, stop)
    assert capsys.readouterr().out.endswith(f"evomerge demo '{tmp_path / 'my demo'}'\n")
    run_demo(tmp_path / "my demo", None, lambda arguments: None)


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path, refuse):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    refuse("demo", "full", words=["full", "not empty", "evomerge demo FOLDER"])
    refuse("demo", "full/thesis.txt", words=["thesis.txt"])
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_half_written_files_are_completed_and_changed_ones_are_kept(tmp_path):
    write_files(tmp_path)  # an empty folder will do
    (tmp_path / "search.yaml").write_text("seed: 3\n", encoding="utf-8")
    for file in (tmp_path / "tasks").iterdir():
        file.unlink()
    (tmp_path / "tasks").rmdir()
    write_files(tmp_path)
    assert (tmp_path / "search.yaml").read_text(encoding="utf-8") == "seed: 3\n"
    assert (tmp_path / "tasks" / "documents.py").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_search_file_names_what_lies_beside_it(tmp_path):
    from evomerge.config.load import load

    write_files(tmp_path)
    config = load(tmp_path / "search.yaml")
    named = [Path(path) for path in (*config.models.values(), *config.fitness.include_path)]
    assert all(path.is_relative_to(tmp_path.resolve()) and path.is_dir() for path in named)


def test_no_place_but_an_empty_one_or_a_demo_is_written_to(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(DemoError):
        write_files(tmp_path)
