"""The kinds of search spaces: a registry that other packages add to, and the only place that builds.

A space is one file: a config (a pydantic model with `kind` and ``build(context) -> SearchSpace``) beside the space, and
a call of `register_space`. A search file names it by its `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from search_spaces.kinds import by_kind, register_kind
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import difference
from search_spaces.registry import Registry
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.space import SearchSpace

RECIPE_KEYS = ("start", "anchor", "merges")
"""Keys of our spaces' settings that may name recipe files."""


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


def recipe_from(file: str, key: str, others: str) -> Recipe:
    """Return the recipe in a file.

    Parameters
    ----------
    file
        Its path.
    key
        Where the search file names it.
    others
        What else could be written there.

    Raises
    ------
    RecipeError
        If there is no such file, or it is not a recipe.
    """
    if not _is_file(file):
        raise RecipeError(f"{key}: there is no file {file}; write one, or {others}")
    try:
        return mergekit_yaml.read(file)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name, a null byte
        return False


def beginning_at(start: str, recipe: Recipe, space: SearchSpace, context: SpaceContext) -> SearchSpace:
    """Return the space with its start at a recipe, or at the nearest one with a note that says how far off it is.

    Parameters
    ----------
    start
        How the search file names the recipe.
    recipe
        Where searches begin.
    space, context
        The space, and its models.

    Raises
    ------
    RecipeError
        If the space has no point near the recipe.
    """
    try:
        moved = space.starting_at(space.encode(recipe))
        apart = difference(recipe, space.decode(moved.start), context.layout)
    except RecipeError as error:
        raise RecipeError(f"space.start: {error}") from None
    if apart is not None:
        moved.notes = (
            *moved.notes,
            f"space.start: this space cannot express {start}; the search begins at the nearest recipe: {apart}; widen "
            "the ranges, or write smaller groups, to begin at it exactly",
        )
    return moved
