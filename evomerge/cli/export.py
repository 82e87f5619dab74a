"""`evomerge export`: a run's recipe as YAML, its data as tables or for Optuna. Needs no models.

Where they are on this machine, an export for mergekit says what mergekit would make of them; only that takes torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Final, Literal, TypeVar

from evomerge.files.atomic import atomic_file, atomic_folder, write_text
from evomerge.files.messages import counted, print_file, printable, say
from evomerge.runs import frames, optuna_study
from evomerge.runs.history import RunHistory
from evomerge.runs.report import population
from evomerge.runs.report.commands import merge_command
from evomerge.runs.report.contents import config_of, read
from evomerge.runs.report.front import front, index
from evomerge.runs.result import read_rows
from evomerge.runs.run import LogError, Run, RunError, origin_of
from evomerge.search.warm_start import space_of
from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.recipe import Recipe, RecipeError
from search_spaces.recipes.references import parts

Kind = TypeVar("Kind", bound=str)
TABLES: Final[Mapping[str, Literal["csv", "parquet"]]] = {".csv": "csv", ".parquet": "parquet"}
STORAGES: Final[Mapping[str, optuna_study.Kind]] = {".db": "sqlite", ".journal": "journal", ".log": "journal"}


def export(
    path: Path, output: Path | None, rank: int | None, dialect: str, rounded: bool, row: str | None = None
) -> None:
    """Write the best recipe, the candidate of a rank, or a row of the final table."""
    with Run.read(path) as run:
        history = RunHistory(run.events())
    recipe = _chosen(path, history, rank, row)
    if dialect == "mergekit":
        recipe = _for_mergekit(recipe, rounded)
    text = mergekit_yaml.dump(recipe, _header(path, f"exported from {printable(path.name)} by evomerge"))
    if output is None:
        print_file(text)
        return
    write_text(output, text)
    say(f"wrote {output}; next: {merge_command(str(output), config_of(path))}", stderr=True)


def export_front(path: Path, folder: Path, dialect: str, rounded: bool) -> None:
    """Write every recipe of the front that the search has seen, 1.yaml, 2.yaml, ..., by the first objective.

    `index.json` beside them has the scores of each, and the front's hypervolume.
    """
    contents = read(path)
    history, found = contents.history, front(contents)
    if found is None:
        raise _no_scores(path, history, "--pareto")
    space = space_of(path)
    recipes = [
        (
            space.decode(history.asked[one.candidate].candidate.genotype),
            f"search objectives {', '.join(f'{value:.4f}' for value in one.values)}",
            one.candidate,
        )
        for one in found.members
    ]
    write_recipes(path, folder, "--pareto", recipes, index(found), dialect, rounded)


def export_archive(path: Path, folder: Path, dialect: str, rounded: bool) -> None:
    """Write the best recipe of each cell of scores that the search has seen, 1.yaml, 2.yaml, ..., best first.

    The cells are those of the run's own archive of scores; of another strategy's run, ten by task from 0 to 1.
    `index.json` beside them has the cell, the scores and the fitness of each.
    """
    contents = read(path)
    history, candidates = contents.history, population.numbers(contents)
    grid = population.filled(contents)
    if not grid.cells:
        raise _no_scores(path, history, "--archive")
    space = space_of(path)
    recipes: list[tuple[Recipe, str, int]] = []
    elites: list[dict[str, object]] = []
    for cell, place in population.best_first(grid):
        identity = candidates[grid.genotypes[place].tobytes()]
        recipes.append((space.decode(grid.genotypes[place]), f"the best of cell {list(cell)}", identity))
        scores = grid.scores(history.evaluation(identity))
        file = f"{len(recipes)}.yaml"
        elites.append(
            {"file": file, "candidate": identity, "cell": cell, "scores": scores, "fitness": grid.fitness[place]}
        )
    axes = [list(axis) for axis in grid.config.axes or [(task,) for task in contents.weights]]
    index_ = {"axes": axes, "cells": grid.config.cells, "low": grid.config.low, "high": grid.config.high}
    text = json.dumps(index_ | {"elites": elites}, indent=1) + "\n"
    write_recipes(path, folder, "--archive", recipes, text, dialect, rounded)


def write_recipes(
    path: Path,
    folder: Path,
    option: str,
    recipes: Sequence[tuple[Recipe, str, int]],
    index_: str,
    dialect: str,
    rounded: bool,
) -> None:
    """Write candidates' recipes, 1.yaml, 2.yaml, ..., each with what it is, and their index; all of them or none."""
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{option} {folder}: the folder is not empty; name another one")
    with atomic_folder(folder) as temporary:
        for number, (recipe, what, candidate) in enumerate(recipes, start=1):
            written = _for_mergekit(recipe, rounded) if dialect == "mergekit" else recipe
            header = _header(path, f"candidate {candidate} of {printable(path.name)}, {what}")
            (temporary / f"{number}.yaml").write_text(mergekit_yaml.dump(written, header), encoding="utf-8")
        (temporary / "index.json").write_text(index_, encoding="utf-8")
    say(f"wrote {counted(len(recipes), 'recipe')} and index.json to {folder}", stderr=True)


def export_table(path: Path, file: Path, of: frames.Name) -> None:
    """Write the candidates, the items or the answers of a run as a table."""
    kind = _kind("--table", file, TABLES)
    with Run.read(path) as run:
        made = {"candidates": lambda: run.candidates, "items": lambda: run.items, "answers": lambda: run.answers}[of]()
    with atomic_file(file) as temporary:
        frames.write(made, temporary, kind)
    say(f"wrote {counted(len(made), of.removesuffix('s'))} to {file}", stderr=True)


def export_study(path: Path, file: Path) -> None:
    """Write a run as a study of Optuna."""
    kind = _kind("--optuna", file, STORAGES)
    odd = [character for character in "?{}" if character in str(file)]
    if odd:
        raise RunError(f"--optuna {file}: Optuna reads the name as a URL, in which {odd[0]} is not a letter; remove it")
    with Run.read(path) as run, atomic_file(file) as temporary:
        name, environment = path.resolve().name, run.environment()
        tasks = tuple(environment.items)
        count = optuna_study.write(temporary, kind, name, run.timed_events(), environment.genes, tasks)
    scheme = f"sqlite:///{file}" if kind == "sqlite" else str(file)
    say(f"wrote {counted(count, 'trial')} to {file}; next: optuna-dashboard {quote(scheme)}", stderr=True)


def _kind(option: str, file: Path, kinds: Mapping[str, Kind]) -> Kind:
    """Return what kind of file an option asks for, by the file's suffix."""
    if file.suffix not in kinds:
        raise RunError(f"{option} {file}: the ending of the name sets the format; end it in {' or '.join(kinds)}")
    return kinds[file.suffix]


def _header(path: Path, sentence: str) -> str:
    """Return the comment of an exported recipe, by which `merge` and later searches find the run."""
    return f"{sentence}\n{origin_of(path)}"


def _chosen(path: Path, history: RunHistory, rank: int | None, row: str | None) -> Recipe:
    if row is not None:
        return _row(path, row)
    return _best(path) if rank is None else _ranked(path, history, rank)


def _nothing_yet(path: Path) -> RunError:
    return RunError(f"{path} has scored no candidate yet; wait, or continue with `evomerge resume {quote(str(path))}`")


def _no_scores(path: Path, history: RunHistory, option: str) -> RunError:
    if any(told.evaluation.status == "step" for told in history.told.values()):
        return RunError(f"{path} has steps of a gradient search and no scored candidates; leave {option} out")
    return _nothing_yet(path)


def _best(path: Path) -> Recipe:
    file, resume = path / "best.yaml", f"`evomerge resume {quote(str(path))}` writes it again"
    if not file.is_file():
        raise LogError(f"{file} is missing; {resume}") if (path / "result.json").is_file() else _nothing_yet(path)
    try:
        return mergekit_yaml.read(file)
    except RecipeError as error:
        raise LogError(f"{file} cannot be read ({str(error).removeprefix(f'{file}: ')}); {resume}") from None


def _ranked(path: Path, history: RunHistory, rank: int) -> Recipe:
    ranking = history.ranking()
    if not ranking:
        raise _no_scores(path, history, "--rank")
    if rank > len(ranking):
        raise RunError(f"--rank {rank}: {path} has {len(ranking)} distinct scored recipes; give 1 to {len(ranking)}")
    return space_of(path).decode(history.asked[ranking[rank - 1]].candidate.genotype)


def _row(path: Path, name: str) -> Recipe:
    rows = read_rows(path)
    if not rows:
        raise RunError(f"--row {name}: {path} has no final table; continue with `evomerge resume {quote(str(path))}`")
    if name not in rows:
        raise RunError(f"--row {name}: the final table of {path} has no recipe of this name; write {', '.join(rows)}")
    return rows[name]


def _for_mergekit(recipe: Recipe, rounded: bool) -> Recipe:
    """Return the recipe if mergekit builds its model from it, else with `rounded` the nearest of which it does."""
    ours = mergekit_export.model_obstacles(recipe, _donor(parts(recipe.donor)[0], recipe))
    obstacles = (*mergekit_export.obstacles(recipe), *ours)
    if obstacles and not rounded:
        raise RecipeError(
            f"mergekit cannot rebuild this recipe exactly: {'; '.join(obstacles)}; add --round to accept that"
        )
    recipe, given_up = mergekit_export.rounded(recipe)
    for sentence in (*given_up, *ours):
        say(f"note: {sentence}", stderr=True)
    return recipe


@cache
def _donor(reference: str, recipe: Recipe) -> Model | None:
    """Return the model that the merge is built like; None where it is not on this machine or cannot be opened."""
    from evomerge.merging.output.for_mergekit import as_mergekit_finds
    from evomerge.merging.sources.errors import CheckpointError
    from evomerge.merging.sources.open_sources import open_source

    if not Path(reference).is_dir():
        return None
    try:
        return as_mergekit_finds(open_source(reference), recipe)
    except CheckpointError:
        return None
