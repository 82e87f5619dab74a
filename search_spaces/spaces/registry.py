"""The kinds of search spaces: a registry that other packages add to, and the only place that builds.

A space is one file: a config (a pydantic model with `kind` and ``build(context) -> SearchSpace``) beside the space, and
a call of `register_space`. A search file names it by its `kind`.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from search_spaces.registry import Registry, by_kind, register_kind
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.space import SearchSpace


class SpaceSettings(Protocol):
    """What the config of a space has: pydantic fields, among them `kind`, and `build`.

    A config may set the class variable ``keeps_layers = False`` if its recipes reorder layers; such a space cannot be
    the first of two (``kind: two_stage``).
    """

    @property
    def kind(self) -> str:
        """The value of ``space.kind`` in a search file."""

    def build(self, context: SpaceContext) -> SearchSpace:
        """Return the space over the models of `context`; raise a `RecipeError` if they do not fit."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return the settings as plain data, as pydantic does."""


SPACES: Registry[type[SpaceSettings]] = Registry("search space")
"""The configs of all spaces by kind."""

SpaceConfig: TypeAlias = Annotated[SpaceSettings, by_kind(SPACES, default="layer_coefficients")]
"""A search file's `space` section: `kind` chooses the config."""

AnyConfig = TypeVar("AnyConfig", bound=type)


def register_space(config_class: AnyConfig) -> AnyConfig:
    """Register a space's config under its `kind`; to be used as a decorator of the config.

    Raises
    ------
    ValueError
        If the kind is taken, or the class has no `kind` or no `build`.
    """
    register_kind(SPACES, config_class)
    return config_class


def build_space(config: SpaceSettings, context: SpaceContext) -> SearchSpace:
    """Return the space that `config` describes over the models of `context`.

    Raises
    ------
    RecipeError
        If the models do not fit the space.
    """
    return config.build(context)
