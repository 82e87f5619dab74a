"""The strategies that a search file can name by their `kind`: ours, and those of other packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BeforeValidator

from evomerge.strategies.base import StrategyConfig
from search_spaces.kinds import by_kind, register_kind
from search_spaces.registry import Registry

ConfigClass = TypeVar("ConfigClass", bound=type[StrategyConfig])

STRATEGIES: Registry[type[StrategyConfig]] = Registry("strategy")
"""Config classes by their `kind`."""
STAGES: Registry[type[StrategyConfig]] = Registry("strategy for a stage")
"""Those that `staged` can run: all with `as_stage`."""


def register_strategy(config_class: ConfigClass) -> ConfigClass:
    """Register a strategy by its config class and return the class; use it as a decorator.

    Parameters
    ----------
    config_class
        A subclass of `StrategyConfig` with a field ``kind: Literal["NAME"] = "NAME"`` and a method `build`.

    Raises
    ------
    ValueError
        If the name is taken or malformed, or the class is not such a subclass.
    """
    if not issubclass(config_class, StrategyConfig):
        raise ValueError(f"{config_class.__name__}: a strategy's settings must be a subclass of StrategyConfig")
    register_kind(STRATEGIES, config_class)
    if config_class.as_stage:
        register_kind(STAGES, config_class)
    return config_class


def import_files(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, which registers the strategies in them."""
    for module in iter_modules(folders, prefix=f"{package}."):
        import_module(module.name)


def argument_spelled_out(section: Any) -> Any:
    """Write the short forms of a section out.

    `kind: NAME:VALUE`, or `NAME:VALUE` alone, is NAME with the setting that its `kind_argument` names. A section with
    ``warm_start: {gradient: SETTINGS}`` is a gradient search with the rest of the section as `then`.
    """
    if isinstance(section, str):
        section = {"kind": section}
    if not isinstance(section, dict) or not isinstance(section.get("kind"), str):
        return section
    warm_start = section.get("warm_start")
    if isinstance(warm_start, dict) and set(warm_start) == {"gradient"}:
        then = {key: value for key, value in section.items() if key != "warm_start"}
        return {"kind": "gradient", **(warm_start["gradient"] or {}), "then": then}
    name, colon, value = section["kind"].partition(":")
    if not colon or name not in STRATEGIES or STRATEGIES[name].kind_argument is None:
        return section
    return section | {"kind": name, STRATEGIES[name].kind_argument: value}


def named_kind(section: Mapping[str, Any]) -> str:
    """Return the kind of a recorded section as a search file names it; see `StrategyConfig.named_kind`."""
    kind = str(section.get("kind", ""))
    argument = STRATEGIES[kind].kind_argument if kind in STRATEGIES else None
    value = section.get(argument) if argument else None
    return f"{kind}:{value}" if value else kind


AnyStrategy: TypeAlias = Annotated[
    StrategyConfig, by_kind(STRATEGIES, default="cma_es"), BeforeValidator(argument_spelled_out)
]
"""A `strategy` section of a search file, read by the config class that its `kind` names."""
StageStrategy: TypeAlias = Annotated[StrategyConfig, by_kind(STAGES), BeforeValidator(argument_spelled_out)]
"""A section for one stage of `staged`, which must name its `kind`."""
