"""Warm starts: begin a search with the results of an earlier run, whatever its strategy or space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.overrides import setting
from evomerge.config.search_file import SearchConfig
from evomerge.files.messages import counted
from evomerge.runs.environment import Environment
from evomerge.runs.history import RunHistory
from evomerge.runs.log_file import run_of
from evomerge.runs.result import FOUND, read_rows
from evomerge.runs.run import Run, is_run, require_run
from evomerge.search.founders import expressed
from evomerge.strategies import StrategyConfig
from evomerge.strategies.base import Genotype
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import Difference, difference
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import RECIPE_KEYS, SpaceSettings, build_space
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.two_stage import TwoStageConfig

NUMBERS = 20_000
"""Most genes that a warm start writes into the new run's config, all candidates together: about half a megabyte."""
LOOKED_AT = 1000
"""Most candidates of the earlier run, best first, that are considered."""


@dataclass(frozen=True)
class WarmStartSettings:
    """A strategy's settings with the candidates of an earlier run, and a sentence about these (empty if none)."""

    strategy: StrategyConfig
    message: str = ""


def load_warm_start(
    strategy: StrategyConfig, config: SearchConfig, space: SearchSpace, resolved: StrategyConfig
) -> WarmStartSettings:
    """Return the strategy's settings with the candidates of the earlier run that they name, if they name one.

    The candidates are written into the new run's config, so that resuming it does not depend on the earlier run.

    Parameters
    ----------
    strategy
        As in the search file.
    config, space
        The new search's.
    resolved
        The resolved settings, which say how large the population is.

    Raises
    ------
    ConfigError
        If this space can express none of the earlier run's candidates.
    RunError, LogError
        If it is not a run directory, or is damaged.
    """
    named = strategy.earlier_run
    if named is None or named.is_loaded:
        return WarmStartSettings(strategy)
    path = Path(named.run)
    former = _FinishedRun(path, config, space)
    wanted = named.wanted(former.size, resolved.places)
    points, left_out, moved = former.best(
        min(wanted, max(1, NUMBERS // space.dimension)), several=strategy.objectives == "several"
    )
    if not points:
        if not former.size:
            raise ConfigError(f"strategy.warm_start: {path} has scored no candidate; name another run")
        raise ConfigError(
            f"strategy.warm_start: this space can express none of the candidates of {path} ({left_out[0]}); "
            "name another run, or begin without one"
        )
    message = f"warm start: {counted(len(points), 'candidate')} of {path}"
    if left_out:
        message += f"; {len(left_out)} are left out, because this space cannot express them ({left_out[0]})"
    if moved:
        farthest = max(moved, key=lambda apart: apart.largest)
        message += f"; {len(moved)} are moved to the nearest recipe that this space can express ({farthest})"
    return WarmStartSettings(strategy.warm_started(space, points), message)


def warm_start_override(config: SearchConfig, path: Path) -> str:
    """Return the `key=value` that makes a search begin with the candidates of a run.

    Raises
    ------
    ConfigError
        If the strategy cannot use an earlier run.
    RunError
        If it is not a run directory.
    """
    require_run(path)
    if config.strategy.warm_start_type is None:
        raise ConfigError(
            f"--warm-start: strategy.kind {config.strategy.named_kind} cannot use an earlier run; write another "
            "strategy.kind, or leave --warm-start out"
        )
    return setting("strategy.warm_start", str(path.resolve()))


def space_of(path: Path, models: Mapping[str, str] | None = None) -> SearchSpace:
    """Return the space that a run searches, without opening its models.

    Parameters
    ----------
    path
        The run directory.
    models
        References of its models, by name; None: as in the run's config.
    """
    config = load(path / "config.yaml")
    with Run.read(path) as run:
        environment = run.environment()
    context = SpaceContext(
        models or config.models, environment.layout, environment.sizes, out_dtype=config.out_dtype, seed=config.seed
    )
    return config.stamped(build_space(_without_start(config.space), context))


def _without_start(settings: SpaceSettings) -> SpaceSettings:
    """Return a space's settings, and those of its parts, without a start, on which decoding does not depend."""
    if isinstance(settings, TwoStageConfig):
        return settings.model_copy(update={"parameters": _without_start(settings.parameters)})
    if isinstance(settings, CoefficientConfig | DataFlowConfig):
        return settings.model_copy(update={"start": None})
    return settings


@dataclass(frozen=True)
class EarlierQuestions:
    """What searches before this one have seen.

    Attributes
    ----------
    keys
        Keys of the questions (`fitness.items.Item.key`) that they asked, or that their prompts showed.
    where
        The runs, for messages.
    warnings
        A sentence for each recipe of a search that is not there any more.
    """

    keys: frozenset[str] = frozenset()
    where: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, recorded: Environment) -> EarlierQuestions:
        """Return what a run that is continued has recorded of them."""
        return cls(frozenset(recorded.earlier.split()), "an earlier run")


def earlier_questions(config: SearchConfig) -> EarlierQuestions:
    """Return what was seen by the earlier run at which a search begins, and by the one that found its start.

    A recipe beside a run's log is of that run; any other one from a search names its run in its first lines.

    Raises
    ------
    RunError, LogError
        If the warm start is not a run directory, or is damaged.
    """
    named = config.strategy.earlier_run
    runs = {} if named is None or not named.run else {Path(named.run): "strategy.warm_start"}
    runs |= {
        found_by: f"{file}, which space names,"
        for file in _start_files(config.space.model_dump(mode="json"))
        if (found_by := run_of(file)) is not None
    }
    keys: frozenset[str] = frozenset()
    found, warnings = [], []
    for path, key in runs.items():
        if not is_run(path) and not (key == "strategy.warm_start" and named is not None and not named.is_loaded):
            warnings.append(
                f"{key} is of the run {path}, which is not there: whether it has seen held-out items is not known"
            )
            continue
        require_run(path)
        with Run.read(path) as run:
            keys |= run.environment().seen
        found.append(str(path))
    return EarlierQuestions(keys, " and ".join(found), tuple(warnings))


def _start_files(settings: Any) -> list[Path]:
    """Return the recipes that a space's settings name, as starts or as merges to build on, at any depth."""
    if not isinstance(settings, Mapping):
        return []
    values = [settings.get(key) for key in RECIPE_KEYS]
    named = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    own = [Path(entry) for entry in named if isinstance(entry, str) and Path(entry).is_file()]
    return [*own, *(file for value in settings.values() for file in _start_files(value))]


class _FinishedRun:
    """An earlier run, as a source of candidates for a new search.

    Models with the same name count as the same model, so that runs whose models have moved, and runs over other models
    in the same roles, can be used.

    Attributes
    ----------
    size
        Scored candidates with distinct recipes.
    """

    def __init__(self, path: Path, config: SearchConfig, space: SearchSpace) -> None:
        with Run.read(path) as run:
            self._history = RunHistory(run.events())
            self._layout = run.environment().layout
        self._config_models = config.models
        self._path, self._space = path, space
        asked = self._history.asked
        # The new search has founders of its own.
        self._ranking = [one for one in self._history.ranking() if asked[one].candidate.kind != "founder"]
        self.size = len(self._ranking)
        former = load(path / "config.yaml")
        known = set(config.models.values())
        self._models = {
            name: reference if reference in known else config.models.get(name, reference)
            for name, reference in former.models.items()
        }
        self._renamed = {former.models[name]: reference for name, reference in self._models.items()}
        self._same = (former.space, list(former.models)) == (config.space, list(config.models))

    def best(self, count: int, *, several: bool) -> tuple[list[Genotype], list[str], list[Difference]]:
        """Return up to `count` distinct candidates as points of the new space, and what it cannot express.

        The run's result comes first, then its candidates by search score. With several objectives, the members of its
        front come before the others.

        Returns
        -------
        tuple[list[Genotype], list[str], list[Difference]]
            The points; why other candidates are left out; how far points are from candidates that are outside.
        """
        points: dict[str, Genotype] = {}
        refusals, moved = [], []
        for candidate in self._candidates(several):
            if len(points) == count:
                break
            apart = None
            try:
                point = self._encoded(candidate) if isinstance(candidate, Recipe) else candidate
                decoded = self._space.decode(point)
                if isinstance(candidate, Recipe):
                    apart = difference(candidate, decoded, self._layout)
            except RecipeError as error:
                refusals.append(str(error))
                continue
            if points.setdefault(decoded.hash, point) is point and apart is not None:
                moved.append(apart)
        return list(points.values()), refusals, moved

    def _encoded(self, recipe: Recipe) -> Genotype:
        """Return a recipe as a point of the new space, or the nearest point; raises as `encode` does."""
        point = expressed(recipe, self._config_models, self._layout, self._space)
        return self._space.encode(recipe) if point is None else point

    def _candidates(self, several: bool) -> Iterator[Recipe | Genotype]:
        """Yield recipes, best first; genotypes if the spaces are the same."""
        best = self._path / "best.yaml"
        found = read_rows(self._path).get(FOUND)  # best.yaml may be a source
        if not several and (found is not None or best.is_file()):
            yield (found or mergekit_yaml.read(best)).with_models(self._renamed)
        front = [one for one in self._history.front() if one in self._ranking] if several else []
        order = dict.fromkeys([*front, *self._ranking])
        former = None if self._same else space_of(self._path, self._models)
        for identity in list(order)[:LOOKED_AT]:
            genotype = self._history.asked[identity].candidate.genotype
            yield np.array(genotype) if former is None else former.decode(genotype)
