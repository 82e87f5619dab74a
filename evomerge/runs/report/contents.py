"""Everything that a report is made of, read from the run directory once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from evomerge.runs import held_out
from evomerge.runs.environment import Environment
from evomerge.runs.held_out import HeldOut
from evomerge.runs.history import RunHistory
from evomerge.runs.result import ALL_TASKS, Result, Row, read_rows
from evomerge.runs.run import LogError, Run, RunError, in_use
from evomerge.strategies.registry import named_kind
from fitness.items import task_of
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import difference
from search_spaces.recipes.yaml_text import load_yaml
from search_spaces.spaces.space import SearchSpace

CONFIG = "config.yaml"
"""Name of the search file in a run directory."""
LONGEST_TEXT = 200_000
"""Characters quoted from a file."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a run directory holds, and what follows from several of its files.

    Attributes
    ----------
    path
        The run directory.
    history
        What its events add up to.
    environment
        Versions and identities.
    result
        The final table; None before the search has ended.
    rows
        Recipes of the final table's rows, by name.
    config, config_text
        The search file as plain data (empty where it cannot be read), and its text.
    best_text
        Text of `best.yaml`; empty before the first candidate is scored.
    space
        The space that the run searches; None where it is not known, and candidates then have no recipes.
    searching
        Whether another process is writing to the run.
    answers
        What the rows of the final table have answered; None where that is not recorded.
    """

    path: Path
    history: RunHistory
    environment: Environment
    result: Result | None = None
    rows: Mapping[str, Recipe] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    best_text: str = ""
    space: SearchSpace | None = None
    searching: bool = False
    answers: HeldOut | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @cached_property
    def weights(self) -> dict[str, float]:
        """Size of each task's weight, by its name, in the order of the search file; scores have its sign already."""
        tasks = self.section("fitness").get("tasks")
        named = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
        given = {str(task.get("task")): abs(float(task.get("weight", 1.0))) for task in named}
        evaluations = [self.history.evaluation(identity) for identity in self.history.scored()[:1]]
        return given or {task_of(item): 1.0 for one in evaluations for item in one.items}

    @property
    def overall(self) -> str:
        """The name under which the final table has the rows over all tasks."""
        names = {row.task for row in self.result.held_out} if self.result else set(self.weights)
        return ALL_TASKS if len(names) > 1 else next(iter(names), ALL_TASKS)

    @property
    def overall_rows(self) -> list[Row]:
        """The final table's rows over all tasks; none before the search has ended."""
        return [row for row in self.result.held_out if row.task == self.overall] if self.result else []

    @property
    def kind(self) -> str:
        """The strategy's kind, as a search file names it."""
        return named_kind(self.section("strategy"))

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the search file; empty where it has none."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {}

    @cached_property
    def model_names(self) -> dict[str, str]:
        """The search file's name of each model, by its reference now and when the run began."""
        now = {str(reference): name for name, reference in self.section("models").items()}
        began = {reference: name for name, reference in self.environment.references.items()}
        return {reference: str(name) for reference, name in (began | now).items()}

    def model_name(self, reference: str) -> str:
        """Return a model's name in the search file, else the last part of its reference."""
        return self.model_names.get(reference) or reference.rstrip("/").rpartition("/")[2] or reference

    def recipe_hash(self, recipe: Recipe) -> str:
        """Return a recipe's hash with its models where they were when the run began, as the log has it."""
        models, began = self.section("models"), self.environment.references
        return recipe.with_models({str(models[name]): began[name] for name in models if name in began}).hash

    def decode(self, candidate: int) -> Recipe | None:
        """Return a candidate's recipe; None where the space is not known, or has changed."""
        if self.space is None:
            return None
        try:
            return self.space.decode(self.history.asked[candidate].candidate.genotype)
        except RecipeError:
            return None

    @cached_property
    def found(self) -> Recipe | None:
        """The recipe that the search has found, else the best so far; None where there is none that can be read."""
        found = next((self.rows.get(row.name) for row in self.overall_rows if row.kind == "found"), None)
        try:
            return found or (mergekit_yaml.parse(self.best_text, "best.yaml") if self.best_text else None)
        except RecipeError:
            return None

    def held_out(self, row: str) -> Evaluation | None:
        """Return the answers of a row of the final table, where it is one recipe; None where there are none."""
        try:
            members = self.answers.members(row, self.history.reference_scores) if self.answers is not None else []
        except (RunError, LogError):
            return None
        return members[0] if len(members) == 1 else None

    def join_spellings(self) -> None:
        """Let rows of the final table have the answers of founders that are the same merge, written another way."""
        layout = self.environment.layout
        founders = [one for one, asked in self.history.asked.items() if asked.candidate.kind == "founder"]
        points = {self.history.asked[one].recipe: self.decode(one) for one in founders}
        alike = {
            self.recipe_hash(recipe): name
            for recipe in self.rows.values()
            for name, point in points.items()
            if point is not None and layout.layers and difference(recipe, point, layout) is None
        }
        self.history.spelt_alike({one: other for one, other in alike.items() if one != other})


def read(path: Path, space: SearchSpace | None = None) -> Contents:
    """Return what the run directory `path` holds, also while another process searches.

    Raises
    ------
    RunError, LogError
        If it is not a run directory, or its log, result or environment is damaged.
    """
    with Run.read(path) as run:
        history, environment = RunHistory(run.events()), run.environment()
    file, text = path / "result.json", quoted(path / CONFIG)
    contents = Contents(
        path,
        history,
        environment,
        Result.read(file) if file.is_file() else None,
        read_rows(path),
        _parsed(text),
        text,
        quoted(path / "best.yaml"),
        space,
        in_use(path),
        HeldOut.read(path) if (path / held_out.FILE).is_file() else None,
    )
    contents.join_spellings()
    return contents


def quoted(file: Path) -> str:
    """Return a file's text, cut to `LONGEST_TEXT`; empty where there is none."""
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(LONGEST_TEXT)


def config_of(run: Path) -> Mapping[str, Any]:
    """Return the search file of a run directory as plain data; empty where it cannot be read."""
    return _parsed(quoted(run / CONFIG))


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        values = load_yaml(text)
    except (RecipeError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
