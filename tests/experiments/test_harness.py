"""The harness of the experiments, and that every README shows the tables of the results beside it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from experiments.harness import Experiment, Results, plotted

FOLDER = Path(__file__).parents[2] / "experiments"
MODULES = {"zoo/results.json": "zoo.evaluate", "scale/chaos.json": "scale.chaos", "scale/soak.json": "scale.soak"}
NAMES = ("results", "chaos", "soak")
FILES = sorted(str(file.relative_to(FOLDER)) for name in NAMES for file in FOLDER.glob(f"*/{name}.json"))


@pytest.mark.parametrize("file", FILES)
def test_results_and_readme_are_what_the_experiment_writes(file: str) -> None:
    module = MODULES.get(file, f"{Path(file).parent}.__main__")
    experiment: Experiment = import_module(f"experiments.{module}").EXPERIMENT
    assert experiment.folder / experiment.file == FOLDER / file
    results = experiment.read(experiment.folder)
    assert experiment.text(results) == (FOLDER / file).read_text(encoding="utf-8")
    readme = (experiment.folder / "README.md").read_text(encoding="utf-8")
    assert experiment.filled(readme, results) == readme


@pytest.mark.parametrize("plot", sorted(FOLDER.glob("*/*.svg")), ids=lambda plot: plot.parent.name)
def test_plots_stay_small_and_are_shown(plot: Path) -> None:
    assert plot.stat().st_size < 200_000
    assert f"]({plot.name})" in (plot.parent / "README.md").read_text(encoding="utf-8")


def test_the_index_names_every_folder() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    folders = {file.parent.name for file in FOLDER.glob("*/README.md")}
    assert folders == {folder.name for folder in FOLDER.iterdir() if (folder / "__init__.py").exists()}
    assert all(f"[{name}]({name}/README.md)" in index for name in folders)


def tables(results: Results) -> list[str]:
    return [f"| {name} |\n" for name in results["names"]]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "some", tables)


README = "Before.\n<!-- table -->\n| old |\n<!-- /table -->\nBetween.\n<!-- table -->\n<!-- /table -->\nAfter.\n"


def test_tables_fill_their_places_in_order(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    experiment.publish(tmp_path, {"names": ["a", "b"]})
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (
        "Before.\n<!-- table -->\n| a |\n<!-- /table -->\nBetween.\n<!-- table -->\n| b |\n<!-- /table -->\nAfter.\n"
    )
    assert experiment.read(tmp_path) == {"names": ["a", "b"]}


def test_a_folder_without_readme_gets_the_results_alone(experiment: Experiment, tmp_path: Path) -> None:
    experiment.publish(tmp_path, {"names": ["a"]})
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_as_many_places_as_tables_are_wanted(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match=r"1 tables, but 2 places for them; put the lines <!-- table -->"):
        experiment.filled(README, {"names": ["a"]})


def test_a_readme_without_places_is_refused_before_measuring(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("| old |\n", encoding="utf-8")
    given = experiment.parser("", quick="less").parse_args(["--quick", "-o", str(tmp_path)])
    with pytest.raises(ValueError, match=r"README\.md: no table to replace; put the lines <!-- table -->"):
        experiment.destination(given)


@pytest.mark.parametrize(
    ("arguments", "folder"), [([], "some"), (["--quick"], None), (["--quick", "-o", "there"], "there")]
)
def test_where_results_go(
    experiment: Experiment,
    arguments: list[str],
    folder: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = experiment.destination(experiment.parser("", quick="less").parse_args(arguments))
    assert (found and found.resolve()) == (folder and tmp_path / folder)
    experiment.publish(found, {"names": []})
    assert (folder is not None) == any(tmp_path.iterdir())


def test_long_lists_have_a_line_per_element(tmp_path: Path) -> None:
    results = {"seed": 0, "runs": [{"a": [1, 2]}, {"a": [3]}], "machine": {"cores": 2}}
    rows = '"runs": [\n  {"a": [1, 2]},\n  {"a": [3]}\n'
    flat = Experiment(tmp_path, tables, rows="runs", indent=None).text(results)
    assert flat == f'{{"seed": 0, {rows}], "machine": {{"cores": 2}}}}\n'
    deep = Experiment(tmp_path, tables, rows="runs").text(results)
    assert deep == f'{{\n "seed": 0,\n {rows} ],\n "machine": {{\n  "cores": 2\n }}\n}}\n'
    assert json.loads(flat) == json.loads(deep) == results


def test_equal_drawings_give_equal_files(tmp_path: Path) -> None:
    for name in ("one.svg", "other.svg"):
        with plotted(tmp_path / name, 2, figsize=(3, 2)) as (left, right):
            left.plot([1, 2], [3, 4], label="a")
            right.bar([0], [1])
            left.legend()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
