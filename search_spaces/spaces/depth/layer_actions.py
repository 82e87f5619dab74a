"""Layer actions: a path through the layers, chosen step by step: take this layer of a model, skip it, or go back.

Reinforced Model Merging (RMM, Han et al., arXiv:2503.21272): a cursor begins at the first layer. Each action appends
the cursor's layer of one of the models, or of one of the merges made before, and moves on; or moves on without it
(skip); or moves back by one, so that layers can be repeated, or taken from several models in turn. The path ends behind
the last layer. A genotype has an action per step; those after the end are inactive. `strategy.kind: ppo` learns to
choose them.

Deviations: RMM ends with a penalty where the cursor leaves the first layer backwards, and has no bound on the number of
steps. Here an action that cannot be taken reads as the anchor's layer: back at the first layer, or with as many steps
left as there are layers ahead; a skip that would leave too few layers. A layer beyond `max_layers` is skipped. RMM's
policy sees how often each layer was taken from each model and not where the cursor is, which it cannot know after a
step back; here it sees both, and how many steps are left.

Legend: L layers, K models and merges, S steps, F features of an observation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from search_spaces.recipes.baselines import uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import MAX_LAYERS, Slice
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.depth.layer_slices import copied, ends_of, layers_of, reference_of, slices_of, stacked
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.registry import recipe_from, register_space
from search_spaces.spaces.space import Genotype, SearchSpace

SKIP, BACK = "skip", "back"


class _Step(NamedTuple):
    """What an action does: the cursor's layer, what it is taken from (None: it is not), and the next cursor."""

    layer: int
    name: str | None
    cursor: int


@register_space
class LayerActionsConfig(BaseModel):
    """Steps through the layers: take one from a model or a merge, skip it, or go back (RMM)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keeps_layers: ClassVar[bool] = False

    kind: Literal["layer_actions"] = "layer_actions"
    """Which space this is."""
    models: tuple[str, ...] = ()
    """Names of the models whose layers can be taken. If empty, all."""
    merges: tuple[str, ...] = ()
    """Merges whose layers can be taken as well: recipe files of whole models, or names of merge methods (`ties`,
    `dare_ties`), with equal weights that add up to one and all else at its default."""
    anchor: str | None = None
    """Model, or one of `merges`, whose embeddings, final norm and head are used, and with which the search begins.
    None: the base."""
    skip: bool = True
    """Whether a layer can be left out."""
    back: bool = True
    """Whether a step can lead back, so that layers are repeated."""
    min_layers: int = Field(default=1, ge=1, le=MAX_LAYERS)
    """Smallest number of layers of the result."""
    max_layers: int | None = Field(default=None, ge=1, le=MAX_LAYERS)
    """Largest number of layers of the result. None: twice the base's number."""
    steps: int | None = Field(default=None, ge=1, le=10_000)
    """Number of actions, at least the base's number of layers. None: with `back` twice that number, else that number.
    """

    def build(self, context: SpaceContext) -> LayerActionsSpace:
        """Return the space over these models."""
        return LayerActionsSpace(self, context)


class LayerActionsSpace(SearchSpace):
    """Paths through the layers of models and merges, as sequences of actions.

    Parameters
    ----------
    config
        The actions, and the bounds of paths.
    context
        The models.

    Attributes
    ----------
    options
        What can be done in a step: names of models and merges, then `skip` and `back`.
    steps
        S.

    Raises
    ------
    RecipeError
        If a model is not known, a recipe cannot be read or is of other models, there is a single action, or no path has
        as many layers as it must.
    """

    genes: tuple[Choice, ...]

    def __init__(self, config: LayerActionsConfig, context: SpaceContext) -> None:
        self.config, self.context = config, context
        self.depth = context.layout.num_layers
        base, *_ = context.models
        self.layers = dict(_layers_of_models(config, context))
        self._ends = {name: ends_of(context.models[name], self.depth) for name in context.models}
        for name in config.merges:
            if name in context.models or config.merges.count(name) > 1:
                raise RecipeError(f"space.merges: '{name}' is named twice; rename the model, or name the merge once")
            first, *layers, last = slices_of(_merge(name, context), self.depth)
            self.layers[name], self._ends[name] = tuple(layers), (first, last)
        self.anchor = base if config.anchor is None else config.anchor
        if self.anchor not in self._ends:
            raise RecipeError(f"space.anchor: there is no '{self.anchor}'; use one of {', '.join(self._ends)}")
        self.options = (*self.layers, *([SKIP] if config.skip else []), *([BACK] if config.back else []))
        self.steps = self._number_of_steps()
        self.most = min(config.max_layers or 2 * self.depth, MAX_LAYERS)
        self._check()
        self._usual = self.anchor if self.anchor in self.layers else self.options[0]
        self.genes = tuple(Choice(f"action {step}", self.options, self._usual) for step in range(self.steps))
        try:
            self.structures()
        except RecipeError as error:
            raise RecipeError(f"space.merges: {error}") from None

    def _number_of_steps(self) -> int:
        given, steps = self.config.steps, self.depth * (2 if self.config.back else 1)
        if given is not None and given < self.depth:
            raise RecipeError(
                f"space.steps: {given} steps lead through no {self.depth} layers; write at least that many"
            )
        return given or steps

    def _check(self) -> None:
        for name in (SKIP, BACK):
            if self.options.count(name) > 1:
                raise RecipeError(f"models.{name}: an action has this name; rename the model")
        if len(self.options) < 2:
            raise RecipeError(
                f"space: the only action is to take the layer of {self.options[0]}; add models or merges, or write "
                "skip: true"
            )
        fewest, most = self.config.min_layers, self.most
        if fewest > self.depth:
            raise RecipeError(
                f"space.min_layers: {fewest} are more than the models' {self.depth}, and a path does not have to go "
                f"back; write at most {self.depth}"
            )
        if most < fewest or (most < self.depth and not self.config.skip):
            least = fewest if self.config.skip else self.depth
            raise RecipeError(f"space.max_layers: no path has {most} layers or fewer; write at least {least}")

    # --- a walk ---

    def _walk(self, actions: Sequence[str]) -> Iterator[_Step]:
        """Yield what each action does until the path ends, or until the last of `actions` if these are fewer than S."""
        cursor = taken = 0
        for step, action in enumerate(actions):
            ahead, left = self.depth - cursor, self.steps - step
            if action == BACK and cursor > 0 and left > ahead + 1:
                yield _Step(cursor, None, cursor - 1)
                cursor -= 1
                continue
            name: str | None = action if action in self.layers else self._usual
            if taken >= self.most or (action == SKIP and taken + ahead > self.config.min_layers):
                name = None
            yield _Step(cursor, name, cursor + 1)
            taken += name is not None
            cursor += 1
            if cursor == self.depth:
                return

    def path(self, genotype: Genotype) -> list[tuple[int, str]]:
        """Return the number of each layer on the path, and what it is taken from."""
        actions = self._actions(self._checked(genotype))
        return [(step.layer, step.name) for step in self._walk(actions) if step.name is not None]

    def _actions(self, genotype: Genotype) -> list[str]:
        return [gene.value(x) for gene, x in zip(self.genes, genotype.tolist(), strict=True)]

    # --- genotype and recipe ---

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of the path: a slice per layer, copied or merged."""
        layers = [self.layers[name][layer] for layer, name in self.path(genotype)]
        return stacked(layers, self._ends[self.anchor], self.context)

    @cached_property
    def _known(self) -> Mapping[Slice, tuple[int, str]]:
        """What makes a layer, in the canonical form: its number and the action."""
        known: dict[Slice, tuple[int, str]] = {}
        for name, recipe in zip(self.layers, self.structures(), strict=True):
            for layer, part in enumerate(slices_of(recipe, self.depth)[1:-1]):
                known.setdefault(part, (layer, name))
        return known

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of a path.

        Raises
        ------
        RecipeError
            If a layer is none of the space's, or the path needs an action that the space has not, more steps than there
            are, or fewer or more layers.
        """
        parts = layers_of(recipe, self._ends[self.anchor], self.anchor, self.context)
        taken: list[tuple[int, str]] = []
        for at, part in enumerate(parts):
            if part not in self._known:
                models = ", ".join(source.model for source in part.sources)
                raise RecipeError(
                    f"the recipe's layer {at} ({part.merge_method} of {models}) is not in the space; use layers of "
                    f"{', '.join(self.layers)}"
                )
            taken.append(self._known[part])
        actions = list(self._actions_for(taken))
        if BACK in actions and not self.config.back:
            raise RecipeError("the recipe's path goes back; write space.back: true")
        if len(actions) > self.steps:
            raise RecipeError(f"the recipe's path takes {len(actions)} actions; set space.steps to that at least")
        point = np.array(self.start)
        point[: len(actions)] = [self.genes[0].coordinate(action) for action in actions]
        if self.path(point) != taken:
            raise RecipeError(
                f"the recipe's path of {len(taken)} layers is outside the space's bounds; set space.min_layers, "
                "max_layers, steps and skip to contain it"
            )
        return point

    def _actions_for(self, taken: Sequence[tuple[int, str]]) -> Iterator[str]:
        """Yield the actions that take these layers: as few as possible."""
        cursor, past = 0, SKIP if self.config.skip else self._usual  # beyond `max_layers` any action is a skip
        for layer, name in taken:
            yield from [past] * (layer - cursor) or [BACK] * (cursor - layer)
            yield name
            cursor = layer + 1
        yield from [past] * (self.depth - cursor)

    def structures(self) -> tuple[Recipe, ...]:
        """Return all layers of each model and merge."""
        return tuple(stacked(layers, self._ends[self.anchor], self.context) for layers in self.layers.values())

    def shortfall(self, recipe: Recipe) -> str | None:
        """Return that a recipe has more layers than the space allows; None if it has not."""
        layers = recipe.num_layers or self.depth
        return f"{layers} layers, where the most are {self.most}," if layers > self.most else None

    # --- what a policy sees, and variation ---

    def observation(self, genotype: Genotype) -> Genotype:
        """Return how often each layer was taken from each model or merge, where the cursor is, and the steps left.

        float64[L K + L + 2]: the counts, the cursor as one of L + 1 places, and the share of the steps that are left.
        """
        decided = int(np.argmax(np.append(np.isnan(genotype), True)))
        names = {name: at for at, name in enumerate(self.layers)}
        counts, place = np.zeros((self.depth, len(names))), np.zeros(self.depth + 1)
        cursor = 0
        for layer, name, cursor in self._walk([self.genes[0].value(x) for x in genotype[:decided].tolist()]):  # noqa: B007
            if name is not None:
                counts[layer, names[name]] += 1
        place[cursor] = 1.0
        return np.concatenate([counts.ravel(), place, [1 - decided / self.steps]])

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which actions are taken, bool[S]: those before the path ends."""
        taken = sum(1 for _ in self._walk(self._actions(np.asarray(genotype))))
        return np.arange(self.steps) < taken

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child with the first actions of `a` and the others of `b`; one point, uniform over the steps."""
        point = int(rng.integers(self.steps + 1))
        return np.concatenate([a[:point], b[point:]])


def _layers_of_models(config: LayerActionsConfig, context: SpaceContext) -> Iterator[tuple[str, tuple[Slice, ...]]]:
    """Yield each model that layers can be taken from, with its layers."""
    for name in config.models or context.models:
        reference = reference_of(name, context, "space.models")
        yield name, tuple(copied(reference, layer) for layer in range(context.layout.num_layers))


def _merge(name: str, context: SpaceContext) -> Recipe:
    """Return the merge that an entry of `merges` stands for.

    Raises
    ------
    RecipeError
        If it is neither a method nor a file, or the file's recipe is of other models or of another depth.
    """
    place, depth = f"space.merges: {name}", context.layout.num_layers
    if name in METHODS:
        try:
            return uniform_recipe(context.models, context.layout, name, dtype=context.dtype)
        except RecipeError as error:
            raise RecipeError(f"{place}: {error}") from None
    recipe = recipe_from(name, "space.merges", "the name of a merge method such as ties").expanded(depth)
    foreign = [model for model in recipe.models if model not in context.models.values()]
    if foreign:
        raise RecipeError(f"{place}: its model '{foreign[0]}' is not one of the search file's; use only these")
    if recipe.num_layers != depth or recipe.path is not None or recipe.mixture is not None:
        raise RecipeError(f"{place}: it is not a merge of all {depth} layers in their order; give another")
    return recipe
