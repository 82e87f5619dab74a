"""The search file: what it may hold, read from YAML, with errors that name the key and what to type instead."""

from __future__ import annotations

import copy
import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from evomerge.strategies import AnyStrategyConfig, CmaEsConfig, M2n2Config, MapElitesConfig
from evomerge.strategies.nevergrad import name_from_kind
from evomerge.workers.ray_pool import RayConfig
from fitness.config import FitnessConfig
from search_spaces.recipes.mergekit_yaml import load_yaml
from search_spaces.recipes.references import spelled, with_parts
from search_spaces.recipes.validation import NOT_IN_CORE
from search_spaces.spaces.building import STARTS
from search_spaces.spaces.coefficients import CoefficientConfig
from search_spaces.spaces.registry import SpaceConfig
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.stamped import StampedSpace

MAX_BYTES = 1_000_000

# pydantic's names for the branches of a union in an error's location: no keys of the file.
_UNION_BRANCH = re.compile(r"(is-instance|literal|function|int|float|str|bool|dict|list|tuple|none)([\[-].*)?")


class ConfigError(ValueError):
    """A search file that cannot be used; one line that names the file, the key and what to type instead."""


class BudgetConfig(BaseModel):
    """When a search ends: at whichever limit is reached first."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    evaluations: int = Field(default=300, ge=1)
    """Candidates to score."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of searching, summed over all sessions of a run; none by default."""


class InlineConfig(BaseModel):
    """One worker in the driver's own process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["inline"] = "inline"
    device: str = "auto"
    """A torch device (`cpu`, `cuda:0`); `auto`: a GPU if there is one."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What forward passes compute in; `auto`: float32 on a CPU, the merged model's own dtype elsewhere."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; its own default when absent."""
    placement: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where a GPU's sources lie: `device` copied to it, `pinned` in page-locked host memory, `mapped` in their files;
    `auto`: the first that has room. On a CPU always `mapped`."""


def _default_kind(kind: str) -> BeforeValidator:
    """Let a section leave out `kind` where there is one obvious choice."""
    return BeforeValidator(lambda value: {"kind": kind} | value if isinstance(value, dict) else value)


StrategyConfig = Annotated[
    Annotated[AnyStrategyConfig, Field(discriminator="kind")],
    BeforeValidator(name_from_kind),
    _default_kind("cma_es"),
]
WorkersConfig = Annotated[Annotated[InlineConfig | RayConfig, Field(discriminator="kind")], _default_kind("inline")]


class SearchConfig(BaseModel):
    """A whole search file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    models: dict[str, str] = Field(min_length=2)
    """Short name: local folder (relative to the search file) or hub id, or MODEL+ADAPTER for a model with a LoRA on it;
    the first is the common base."""
    space: Annotated[SpaceConfig, _default_kind("layer_coefficients")] = CoefficientConfig()
    """What may be built."""
    strategy: StrategyConfig = CmaEsConfig()
    """How to search it."""
    fitness: FitnessConfig
    """What counts."""
    budget: BudgetConfig = BudgetConfig()
    """When to stop."""
    workers: WorkersConfig = InlineConfig()
    """Where candidates are built and scored."""
    adapters: Literal["full", "core"] = "full"
    """How LoRA adapters among the models are merged: `full` as whole weights, `core` as small matrices in the space
    that all of them span (then every expert is an adapter of the base), from which one adapter can be written."""
    vocabulary: Literal["same", "base", "union", "first", "pad"] = "same"
    """Whose vocabulary merges have where the models' differ: `same` refuses, `base` takes the base's, `first` the first
    expert's, `union` all tokens; `pad` compares rows by id and fills up the shorter matrices."""
    allow_unrelated: bool = False
    """Merge models although their weights do not come from the base's."""
    out_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What merged weights are stored in; the merging itself is done in float32."""
    seed: int = Field(default=0, ge=0)
    """Decides the search's random numbers, the random masks, the subset and the held-out split."""

    @field_validator("models")
    @classmethod
    def _plain_names(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"the model name {name!r} may hold letters, digits, - and _ only; rename it")
        if len(set(models.values())) < len(models):
            raise ValueError("two names stand for the same model; remove one of them")
        return models

    @model_validator(mode="after")
    def _as_many_objectives_as_the_strategy_takes(self) -> SearchConfig:
        kind, wanted = self.strategy.kind, self.strategy.objectives
        several = self.fitness.objectives == "per_task" and len(self.fitness.tasks) > 1
        if wanted == "several" and not several:
            raise ValueError(
                f"strategy.kind {kind} looks for a front of several objectives and there is one; write "
                "fitness.objectives: per_task with two tasks or more, or strategy.kind: cma_es"
            )
        if wanted == "one" and several:
            raise ValueError(
                f"strategy.kind {kind} takes one objective and fitness.objectives is per_task; write "
                "strategy.kind: nsga2, or fitness.objectives: weighted_sum"
            )
        return self

    @model_validator(mode="after")
    def _as_many_tasks_as_the_grid_needs(self) -> SearchConfig:
        if not isinstance(self.strategy, MapElitesConfig):
            return self
        tasks = [task.task for task in self.fitness.tasks]
        if len(self.strategy.axes or tasks) < 2:
            raise ValueError(
                "strategy.kind map_elites keeps the best for each combination of scores and there is one axis; "
                "name two tasks or more in fitness.tasks, or write strategy.kind: m2n2"
            )
        unknown = sorted({task for axis in self.strategy.axes or () for task in axis} - set(tasks))
        if unknown:
            raise ValueError(f"strategy.axes: {', '.join(unknown)} is not asked; name tasks among {', '.join(tasks)}")
        return self

    @model_validator(mode="after")
    def _a_race_against_an_archive(self) -> SearchConfig:
        rules = self.fitness.racing
        if rules is not None and rules.test != "posterior" and isinstance(self.strategy, MapElitesConfig | M2n2Config):
            raise ValueError(
                f"fitness.racing.test {rules.test} compares a generation's candidates, and {self.strategy.kind} has an "
                "archive instead; write fitness.racing.test: posterior"
            )
        return self

    @model_validator(mode="after")
    def _methods_in_core(self) -> SearchConfig:
        method: Any = getattr(self.space, "method", ())
        for name in (method,) if isinstance(method, str) else method:
            if self.adapters == "core" and name in NOT_IN_CORE:
                raise ValueError(
                    f"adapters: core space holds task vectors only, and {name} compares whole weights; write adapters: "
                    "full, or another space.method"
                )
        return self

    def stamped(self, space: SearchSpace) -> SearchSpace:
        """Return the space whose recipes say how the sources of this search are to be read."""
        settings: dict[str, Any] = {}
        if self.adapters == "core":
            settings["adapters"] = "core"
        if self.vocabulary != "same":
            settings["tokenizer_source"] = self.vocabulary
        return StampedSpace(space, **settings) if settings else space

    @property
    def vocabulary_policy(self) -> str | None:
        """The policy for opening the sources; None where they are to be as they are."""
        return None if self.vocabulary == "same" else self.vocabulary

    @property
    def base(self) -> str:
        """The base model's name."""
        return next(iter(self.models))

    def identity(self) -> dict[str, Any]:
        """Return what makes two searches the same: all but the budget, the workers and where files lie."""
        values = self.model_dump(mode="json", exclude={"budget", "workers"})
        values["models"] = list(self.models)
        del values["fitness"]["include_path"]
        return values

    def to_yaml(self) -> str:
        """Return the resolved config as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search file.

    Parameters
    ----------
    path
        The YAML file; relative folders in it are relative to its own folder.
    overrides
        `key.path=value` strings, the value in YAML: `space.weight.high=2`.

    Raises
    ------
    ConfigError
        With one line per mistake: the file, the key and what to type instead.
    """
    return _validated(_read(path), overrides, path, path.resolve().parent)


def load_mapping(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> SearchConfig:
    """Return the config that a search file with these contents stands for; relative folders are relative to here.

    Raises
    ------
    ConfigError
        As `load`.
    """
    return _validated(copy.deepcopy(dict(values)), overrides, Path("config"), Path.cwd())


def _validated(values: dict[str, Any], overrides: Sequence[str], path: Path, folder: Path) -> SearchConfig:
    for override in overrides:
        _override(values, override)
    _resolve_paths(values, folder)
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A list that lost a wrong entry is called too short, too: only the innermost mistake is one.
        places = [details["loc"] for details in errors]
        inner = [e for e in errors if not any(place[: len(e["loc"])] == e["loc"] != place for place in places)]
        lines = dict.fromkeys(_explain(path, details) for details in inner)
        raise ConfigError("\n".join(lines)) from None


def load_recorded(run: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read the resolved search file of a run directory, which may come from a stranger.

    lm-eval's task files can hold Python code. Those of a search file are named by its author; a run directory is
    data, so it must not bring any of its own.

    Raises
    ------
    ConfigError
        As `load`; or if a folder of tasks lies inside of the run directory.
    """
    config = load(run / "config.yaml", overrides)
    for folder in config.fitness.include_path:
        if Path(folder).resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{run / 'config.yaml'}: fitness.include_path: {folder} lies inside of the run directory, and task "
                "files can hold code; look at them, and move them elsewhere if you trust them"
            )
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes; is this a search file?")
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; `evomerge init` writes a search file to start from"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as `models:` and `fitness:`; see `evomerge init`")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write it as key.path=value, such as budget.evaluations=100")
    *parents, last = key.split(".")
    target: Any = values
    for part in parents:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict):
            if not isinstance(target.get(part), dict | list):
                target[part] = {}
            target = target[part]
        else:
            raise ConfigError(f"--set {override}: there is no `{part}` to set anything in")
    value = _value(override, text)
    if text.startswith("+"):
        value = _added(override, target, last, value)
    if isinstance(target, list):
        if not last.isdigit() or int(last) >= len(target):
            raise ConfigError(f"--set {override}: name a list entry from 0 to {len(target) - 1}")
        target[int(last)] = value
    else:
        target[last] = value


def _value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is no valid YAML value; quote it") from None


def _added(override: str, target: Any, key: str, more: Any) -> Any:
    """Return what `key=+more` means: so much more than the file says."""
    present = target.get(key) if isinstance(target, dict) else None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in (present, more)):
        raise ConfigError(f"--set {override}: there is no number to add to; give the value itself, without +")
    return present + more


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make local folders absolute, so that the run and its recipes do not depend on where they are used."""
    models = values.get("models")
    if isinstance(models, dict):
        values["models"] = {name: _resolve_model(reference, folder) for name, reference in models.items()}
    space = values.get("space")
    if isinstance(space, dict) and isinstance(space.get("start"), str) and space["start"] not in STARTS:
        space["start"] = str((folder / Path(space["start"]).expanduser()).resolve())
    if isinstance(space, dict) and isinstance(space.get("calibration"), str):
        space["calibration"] = str((folder / Path(space["calibration"]).expanduser()).resolve())
    strategy = values.get("strategy")
    if isinstance(strategy, dict) and "warm_start" in strategy:
        strategy["warm_start"] = _former_run(strategy["warm_start"], folder)
    fitness = values.get("fitness")
    if isinstance(fitness, dict) and isinstance(fitness.get("include_path"), list | str):
        paths = fitness["include_path"]
        fitness["include_path"] = [_resolve(p, folder) for p in ([paths] if isinstance(paths, str) else paths)]
    subset = fitness.get("subset") if isinstance(fitness, dict) else None
    if isinstance(subset, dict) and isinstance(subset.get("calibration"), str):
        subset["calibration"] = str((folder / Path(subset["calibration"]).expanduser()).resolve())


def _former_run(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and isinstance(value.get("run"), str):
        return value | {"run": str((folder / value["run"]).resolve())}
    return str((folder / value).resolve()) if isinstance(value, str) else value


def _resolve_model(reference: Any, folder: Path) -> Any:
    """Return a model's reference with its folder, and its adapter's, made absolute."""
    if not isinstance(reference, str):
        return reference
    reference = spelled(reference, lambda text: (folder / Path(text).expanduser()).exists())
    return with_parts(reference, lambda part: _resolve(part, folder))


def _resolve(reference: Any, folder: Path) -> Any:
    if not isinstance(reference, str) or not reference:
        return reference
    local = folder / Path(reference).expanduser()
    is_local = local.exists() or reference.startswith((".", "/", "~")) or reference.count("/") != 1
    return str(local.resolve()) if is_local else reference


def _explain(path: Path, error: Any) -> str:
    """Turn one pydantic error into a line that names the key and what to type."""
    keys = [str(part) for part in error["loc"]]
    models, shown = _walk(keys)
    place = f"{path}: {'.'.join(shown) or 'top level'}"
    if error["type"] == "extra_forbidden":
        valid = sorted({name for model in models for name in model.model_fields})
        near = difflib.get_close_matches(keys[-1], valid, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
        return f"{place}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{place}: missing; add it (`evomerge init` writes an example)"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    tail = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"{place}: {message[0].lower() + message[1:]}{tail}"


def _walk(keys: Sequence[str]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow a pydantic error's location to the models that own its last key; drop the union tags on the way."""
    models: list[type[BaseModel]] = [SearchConfig]
    shown: list[str] = []
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == key]
        if tagged and not last:
            models = tagged
            continue
        if shown and _UNION_BRANCH.fullmatch(key):
            continue
        shown.append(key)
        if not last:
            fields = [m.model_fields[key].annotation for m in models if key in m.model_fields]
            models = [model for annotation in fields for model in models_in(annotation)] or models
    return models, shown


def models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    """Yield the config sections that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)
