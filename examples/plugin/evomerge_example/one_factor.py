"""A search space: one factor for the task vectors of all experts."""

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from search_spaces.recipes.baselines import task_arithmetic_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.genes import Real
from search_spaces.spaces.registry import register_space
from search_spaces.spaces.space import SearchSpace


@register_space
class OneFactorConfig(BaseModel):
    """One factor for all experts, and a merge method with a base and a weight per model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["one_factor"] = "one_factor"
    method: str = "task_arithmetic"

    def build(self, context):
        return OneFactorSpace(self.method, context)


class OneFactorSpace(SearchSpace):
    genes = (Real("factor", 0.0, 2.0, 1.0),)

    def __init__(self, method, context):
        self.method, self.context = method, context

    def decode(self, genotype):
        whole = task_arithmetic_recipe(self.context.models, self.context.layout, float(self._checked(genotype)[0]))
        return replace(whole, merge_method=self.method).canonical()

    def encode(self, recipe):
        if recipe.merge_method != self.method or {*recipe.models} != {*self.context.models.values()}:
            raise RecipeError(f"the space merges {', '.join(self.context.models)} by {self.method}; give such a recipe")
        weights = dict(value for part in recipe.slices for source in part.sources for value in source.parameters)
        return self.settled([weights["weight"][0].value])
