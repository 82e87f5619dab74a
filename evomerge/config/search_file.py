"""The search file: what it may hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from evomerge.config.shorthands import expand
from evomerge.strategies import AnyStrategy
from evomerge.strategies.auto import AutoConfig
from evomerge.trackers.base import TRACKERS, TrackerConfig
from evomerge.workers.config import InlineConfig
from evomerge.workers.registry import WORKERS, WorkersConfig
from fitness.config import FitnessConfig
from search_spaces.kinds import by_kind
from search_spaces.recipes.methods import method_spec
from search_spaces.recipes.references import parse_reference
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import SpaceConfig
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.wrappers import RecipeSettingsSpace


class BudgetConfig(BaseModel):
    """When a search ends: at whichever limit is reached first."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    evaluations: int = Field(default=300, ge=1, le=10_000_000)
    """Number of candidates to score, besides the founders: sources, baselines and the space's start."""
    hours: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False)
    """Hours of searching, summed over all sessions of a run. None: no limit."""


class TableConfig(BaseModel):
    """Rows of the final table besides the found recipe, the sources, the baselines and the space's start."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ensemble: int | None = Field(default=None, ge=2, le=100)
    """Let this many models vote on the held-out items, answer by answer; each of them answers these once more. It does
    not change the result. For tasks scored answer by answer (accuracy, exact match). None: no such row."""
    voters: Literal["best", "last_population"] = "best"
    """Which models vote. `best`: the candidates with the best search scores of the whole search. `last_population`: the
    best of the strategy's population or archive at its end; of a strategy without one, of its last generation."""
    greedy_soup: bool = False
    """Whether the greedy soup is a row: the sources, best first, join their average one by one, each if the score on
    all search items does not fall. It asks one merge fewer than there are sources."""


class SearchConfig(BaseModel):
    """A whole search file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    models: dict[str, str] = Field(min_length=2)
    """The models to merge, as `name: reference`. A reference is a local folder (relative to the search file), a hub id,
    or MODEL+ADAPTER for a model with a LoRA adapter. `{path: MODEL, dequantize: true}` turns the weights of a quantised
    model into floats. The first model is the base that the others were trained from."""
    space: SpaceConfig = CoefficientConfig()
    """Which merges can be built."""
    strategy: AnyStrategy = AutoConfig()
    """How the space is searched."""
    fitness: FitnessConfig
    """What makes a merge good."""
    budget: BudgetConfig = BudgetConfig()
    """When the search ends."""
    workers: Annotated[WorkersConfig, by_kind(WORKERS, default="inline")] = InlineConfig()
    """Where candidates are built and scored."""
    trackers: tuple[Annotated[TrackerConfig, by_kind(TRACKERS)], ...] = ()
    """What records the search in addition to the run directory, such as `csv`."""
    table: TableConfig = TableConfig()
    """Further rows of the final table; they may be asked for when a run is resumed, too."""
    adapters: Literal["full", "core"] = "full"
    """How LoRA adapters are merged. `full`: as full weights. `core`: as small matrices in the space that the adapters
    span together; every expert must then be an adapter of the base, and the result can be written as one adapter."""
    vocabulary: Literal["same", "base", "union", "first", "pad"] = "same"
    """Vocabulary of the merged model if the models' vocabularies differ. `same`: raise an error. `base`: the base's.
    `first`: the first expert's. `union`: all tokens. `pad`: match embedding rows by id and pad the shorter matrices."""
    allow_unrelated: bool = False
    """Accept models that were not trained from the base."""
    out_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Data type of the merged weights. The merging itself is done in float32."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the search, of random masks, of the item subset and of the held-out split."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        return expand(values)

    @field_validator("models", mode="before")
    @classmethod
    def _references(cls, models: Any) -> Any:
        if not isinstance(models, dict):
            return models
        return {
            name: parse_reference(value, f"models.{name}") if isinstance(value, dict) else value
            for name, value in models.items()
        }

    @field_validator("models")
    @classmethod
    def _plain_names(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"the model name {name!r} may contain only letters, digits, - and _; rename it")
        first: dict[str, str] = {}
        for name, model in models.items():
            if first.setdefault(model, name) != name:
                raise ValueError(f"{first[model]} and {name} are the same model, {model}; remove one of them")
        return models

    @model_validator(mode="after")
    def _tasks_that_the_strategy_can_use(self) -> SearchConfig:
        tasks = [task.task for task in self.fitness.tasks]
        if self.fitness.kind == "python":
            self.check_tasks(tasks)
        else:  # each name may stand for several tasks: see `check_tasks`
            named = len(tasks)
            self._check_objectives(max(named, 2) if self.strategy.objectives == "several" else named)
        return self

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check the strategy against the tasks that candidates are scored on: those of a group in place of the group.

        Raises
        ------
        ValueError
            If it does not suit them.
        """
        self._check_objectives(len(tasks))
        self.strategy.check_tasks(tasks)

    def _check_objectives(self, tasks: int) -> None:
        kind, wanted = self.strategy.named_kind, self.strategy.objectives
        several = self.fitness.objectives == "per_task" and tasks > 1
        if wanted == "several" and not several:
            raise ValueError(
                f"strategy.kind {kind} searches for a Pareto front and there is only one objective; write "
                "fitness.objectives: per_task with two or more tasks, or strategy.kind: cma_es"
            )
        if wanted == "one" and several:
            raise ValueError(
                f"strategy.kind {kind} takes one objective and fitness.objectives is per_task; write "
                "strategy.kind: nsga2, or fitness.objectives: weighted_sum"
            )

    @model_validator(mode="after")
    def _a_race_against_an_archive(self) -> SearchConfig:
        rules = self.fitness.racing
        if rules is not None and rules.test != "posterior" and self.strategy.keeps_archive:
            raise ValueError(
                f"fitness.racing.test {rules.test} compares a generation's candidates, and "
                f"{self.strategy.named_kind} has an archive instead; write fitness.racing.test: posterior"
            )
        return self

    @model_validator(mode="after")
    def _answers_to_the_same_items(self) -> SearchConfig:
        kind, subset = self.strategy.named_kind, self.fitness.subset
        if self.strategy.reads_answers and self.fitness.racing is not None:
            raise ValueError(f"strategy.kind {kind} compares all answers, and a race keeps none; remove fitness.racing")
        if self.strategy.reads_answers and subset.items != "all" and subset.rotates():
            raise ValueError(
                f"strategy.kind {kind} compares answers to the same items; write fitness.subset.rotate: false"
            )
        return self

    @model_validator(mode="after")
    def _methods_in_core(self) -> SearchConfig:
        method: Any = getattr(self.space, "method", ())
        for name in (method,) if isinstance(method, str) else method:
            if self.adapters == "core" and method_spec(name).core_space == "unsupported":
                raise ValueError(
                    f"adapters: {name} needs whole weights, and with core only task vectors exist; write adapters: "
                    "full, or another space.method"
                )
        return self

    def stamped(self, space: SearchSpace) -> SearchSpace:
        """Return the space with the settings in its recipes that tell how this search reads the sources."""
        settings: dict[str, Any] = {}
        if self.adapters == "core":
            settings["adapters"] = "core"
        if self.vocabulary != "same":
            settings["tokenizer_source"] = self.vocabulary
        return RecipeSettingsSpace(space, **settings) if settings else space

    @property
    def vocabulary_policy(self) -> str | None:
        """The policy for opening the sources; None if their vocabularies must be the same."""
        return None if self.vocabulary == "same" else self.vocabulary

    @property
    def base(self) -> str:
        """The base model's name."""
        return next(iter(self.models))

    def identity(self) -> dict[str, Any]:
        """Return what two sessions of one run share: all but budget, workers, trackers, table and places of files."""
        values = self.model_dump(mode="json", exclude={"budget", "workers", "trackers", "table"})
        values["models"] = list(self.models)
        fitness = values["fitness"]
        del fitness["include_path"]
        if fitness["kind"] == "lm_eval":
            del fitness["kind"]  # as in runs from before there was another
        fitness["engine"] = self.fitness.engine.identity()
        for key in ("function", "function_items"):
            fitness[key] = fitness[key] and fitness[key].rpartition("/")[2]
        return values

    def to_yaml(self) -> str:
        """Return the resolved config as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
