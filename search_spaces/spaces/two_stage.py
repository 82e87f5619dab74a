"""Two spaces in sequence: a merge in parameter space, then a path through its layers and those of other models.

Akiba et al. 2024, arXiv:2403.13187, section "Merging in Both Spaces": the merge joins the pool of the data-flow space,
as the model in which paths begin and end. A genotype has the genes of both spaces; its recipe is the merge with a path.
Both can be searched together, or one after the other by the strategy `staged`.

Legend: G = P + F genes, P of the parameter space and F of the data-flow space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, field_validator
from typing_extensions import Self

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig, DataFlowSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import SpaceConfig, SpaceSettings, register_space
from search_spaces.spaces.space import Genotype, SearchSpace

MERGED = "merged"
"""Name of the merge among the models of the pool."""


@register_space
class TwoStageConfig(BaseModel):
    """A merge in parameter space, then a path through its layers and those of other models."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keeps_layers: ClassVar[bool] = False

    kind: Literal["two_stage"] = "two_stage"
    """Which space this is."""
    parameters: SpaceConfig = CoefficientConfig()
    """The space of the merge: `layer_coefficients`, `mixture`, or another that keeps layers in place."""
    flow: DataFlowConfig = DataFlowConfig()
    """The space of paths: a `data_flow` space in which the merge takes the base's place. `models` names the other
    models, which may include the base."""

    @field_validator("parameters")
    @classmethod
    def _keeps_layers(cls, parameters: SpaceSettings) -> SpaceSettings:
        if not getattr(parameters, "keeps_layers", True):
            raise ValueError(
                f"kind {parameters.kind} changes the order of layers, which is what `flow` is for; write kind: "
                "layer_coefficients or mixture"
            )
        return parameters

    @field_validator("flow")
    @classmethod
    def _anchored_in_the_merge(cls, flow: DataFlowConfig) -> DataFlowConfig:
        for key in ("anchor", "start"):
            if getattr(flow, key) is not None:
                raise ValueError(f"{key}: the merge of the first stage is the anchor, and paths begin at it; remove it")
        return flow

    def build(self, context: SpaceContext) -> TwoStageSpace:
        """Return the space over these models."""
        return TwoStageSpace(self.parameters.build(context), self.flow, context)


class TwoStageSpace(SearchSpace):
    """Merges with a path through their layers and those of other models.

    Parameters
    ----------
    parameters
        The first space, whose recipes keep layers in place.
    flow
        Settings of the second space.
    context
        The models.

    Attributes
    ----------
    parameters, flow
        The two spaces. `flow` only gives paths, not recipes: the merge in its pool has no reference.

    Raises
    ------
    RecipeError
        If a model is called like the merge, or the flow does not fit the models.
    """

    def __init__(self, parameters: SearchSpace, flow: DataFlowConfig, context: SpaceContext) -> None:
        if MERGED in context.models:
            raise RecipeError(f"models.{MERGED}: kind two_stage gives its merge this name; rename the model")
        unknown = [name for name in flow.models if name not in context.models]
        if unknown:
            raise RecipeError(f"space.flow.models: there is no '{unknown[0]}'; use only {', '.join(context.models)}")
        experts = list(context.models)[1:]
        others = [name for name in context.models if name in (flow.models or experts)]
        pool = {MERGED: None, **{name: context.models[name] for name in others}}
        self.parameters = parameters
        self.notes = parameters.notes
        self.flow = DataFlowSpace(flow, context, pool)
        self.context = context
        self.genes = (*parameters.genes, *self.flow.genes)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What each gene is in its own space."""
        return (*self.parameters.coefficients, *self.flow.coefficients)

    def split(self, genotype: Genotype) -> tuple[Genotype, Genotype]:
        """Return the genes of both spaces, float64[P] and float64[F]."""
        return genotype[: self.parameters.dimension], genotype[self.parameters.dimension :]

    def join(self, parameters: Genotype, flow: Genotype) -> Genotype:
        """Return a genotype float64[G]."""
        return np.concatenate([parameters, flow])

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the merge with its path."""
        parameters, flow = self.split(self._checked(genotype))
        return replace(self.parameters.decode(parameters), path=self.flow.path(flow)).canonical()

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of a recipe with a path, or of a merge as it is; raises as the two spaces do."""
        depth = self.context.layout.num_layers
        path = recipe.path or tuple(PathLayer(None, layer) for layer in range(depth))
        return self.join(self.parameters.encode(replace(recipe, path=None)), self.flow.genotype_of(path))

    def starting_at(self, genotype: Genotype) -> Self:
        """Return the same space with its searches, and those of both spaces, beginning at `genotype` (float64[G])."""
        moved = super().starting_at(genotype)
        parameters, flow = self.split(self._checked(genotype))
        moved.parameters, moved.flow = self.parameters.starting_at(parameters), self.flow.starting_at(flow)
        return moved

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part in the recipe, bool[G]."""
        parameters, flow = self.split(genotype)
        return np.concatenate([self.parameters.active(parameters), self.flow.active(flow)])

    def structures(self) -> tuple[Recipe, ...]:
        """Return those of the merge; paths need no preparation."""
        return (*self.parameters.structures(), self.decode(self.start))

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return the founders of the parameter space, their layers in place."""
        return tuple(self.join(founder, self.flow.start) for founder in self.parameters.initial_population())

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw from both spaces."""
        return self.join(self.parameters.sample(rng), self.flow.sample(rng))

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child by both spaces' crossovers."""
        (a_parameters, a_flow), (b_parameters, b_flow) = self.split(a), self.split(b)
        child = self.parameters.crossover(a_parameters, b_parameters, rng)
        return self.join(child, self.flow.crossover(a_flow, b_flow, rng))

    def recombine(
        self, point: Genotype, donors: Sequence[Genotype], shares: Sequence[float], rng: np.random.Generator
    ) -> Genotype:
        """Recombine as both spaces do, each for itself."""
        parts = [self.split(donor) for donor in donors]
        parameters, flow = self.split(point)
        parameters = self.parameters.recombine(parameters, [merge for merge, _ in parts], shares, rng)
        return self.join(parameters, self.flow.recombine(flow, [path for _, path in parts], shares, rng))

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` mutated in one of the spaces, each with probability ½."""
        parameters, flow = self.split(a)
        if rng.random() < 0.5:
            return self.join(self.parameters.mutate(parameters, rng), flow)
        return self.join(parameters, self.flow.mutate(flow, rng))
