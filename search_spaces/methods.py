"""The merge methods a recipe can name and the parameters each takes: data only, no arithmetic.

Names, defaults and scopes are those of mergekit 0.1.5, so that its recipes read here without change. A
recipe is validated, hashed and searched with this table alone; the arithmetic registers against it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from search_spaces.errors import RecipeError, did_you_mean

BaseRole = Literal["required", "optional", "none"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    Attributes
    ----------
    name
        mergekit's name.
    per_model
        True: one value per (non-base) source, filters match the source's tensor name. False: one value for
        the merge, filters match the output's tensor name.
    kind
        ``float`` or ``bool``.
    default
        Value when no scope sets it. ``None`` for a required parameter, or for one that is off unless set.
    low, high, start
        Range that a search uses unless told otherwise, and where it begins; ``None`` when not searchable.
    required
        Whether every tensor needs a value.
    inert
        Accepted because mergekit accepts it, without effect on the weights; the canonical form drops it.
    doc
        Meaning, in one sentence.
    """

    name: str
    per_model: bool
    kind: type
    default: float | bool | None = None
    low: float | None = None
    high: float | None = None
    start: float | None = None
    required: bool = False
    inert: bool = False
    doc: str = ""

    @property
    def search(self) -> tuple[float, float, float] | None:
        """`low`, `high` and `start`; None when the parameter is not searchable."""
        if self.low is None or self.high is None or self.start is None or self.inert:
            return None
        return self.low, self.high, self.start


@dataclass(frozen=True)
class MethodSpec:
    """What a merge method takes.

    Attributes
    ----------
    name
        The value of ``merge_method``.
    parameters
        Parameters, per-model ones first.
    base
        ``required``: one source of every slice is the base, and the method treats it apart. ``optional``: it
        may be. ``none``: ``base_model`` names no more than the donor of the config and the tokenizer.
    min_models, max_models
        Sources per slice, the base not counted where it is treated apart; ``max_models=None`` for no bound.
    stochastic
        Whether the weights depend on the recipe's seed.
    doc
        Formula or source, in one sentence.
    """

    name: str
    parameters: tuple[Parameter, ...]
    base: BaseRole
    min_models: int
    max_models: int | None
    stochastic: bool
    doc: str

    def parameter(self, name: str) -> Parameter:
        """Return the parameter called `name`.

        Raises
        ------
        RecipeError
            If the method has none of that name; the nearest is named.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        valid = [parameter.name for parameter in self.parameters]
        raise RecipeError(f"{self.name} has no parameter '{name}'; {did_you_mean(name, valid)}")

    @property
    def per_model(self) -> tuple[Parameter, ...]:
        """Parameters with one value per source."""
        return tuple(parameter for parameter in self.parameters if parameter.per_model)

    @property
    def shared(self) -> tuple[Parameter, ...]:
        """Parameters with one value for the merge."""
        return tuple(parameter for parameter in self.parameters if not parameter.per_model)


def _weight(low: float, high: float, doc: str) -> Parameter:
    return Parameter("weight", True, float, low=low, high=high, start=0.5, required=True, doc=doc)


def _density(doc: str, *, inert: bool = False) -> Parameter:
    return Parameter("density", True, float, default=1.0, low=0.1, high=1.0, start=0.5, inert=inert, doc=doc)


def _task_vector_parameters(*, normalize: bool, rescale: bool, sparse: bool) -> tuple[Parameter, ...]:
    """Shared parameters of the methods that add sparsified task vectors to a base."""
    return (
        Parameter("normalize", False, bool, default=normalize, doc="Divide by the sum of the weights taken."),
        Parameter("lambda", False, float, default=1.0, low=0.1, high=2.0, start=1.0, doc="Scale of the sum."),
        Parameter(
            "rescale", False, bool, default=rescale, inert=not sparse, doc="Restore what sparsity took."
        ),
        Parameter("int8_mask", False, bool, default=False, inert=True, doc="Storage of mergekit's masks."),
    )


LINEAR = MethodSpec(
    name="linear",
    parameters=(
        _weight(0.0, 1.0, "Share of the model; of every source, the base included."),
        Parameter("normalize", False, bool, default=True, doc="Divide by the sum of the weights."),
    ),
    base="none",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Weighted average of the models (arXiv:2203.05482).",
)

SLERP = MethodSpec(
    name="slerp",
    parameters=(
        Parameter(
            "t",
            False,
            float,
            low=0.0,
            high=1.0,
            start=0.5,
            required=True,
            doc="0 is the base, 1 the other model.",
        ),
    ),
    base="required",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="Spherical interpolation between the base and one other model, per flattened tensor.",
)

TASK_ARITHMETIC = MethodSpec(
    name="task_arithmetic",
    parameters=(
        _weight(-0.5, 1.5, "Factor of the model's task vector (model minus base)."),
        _density("Without effect here: mergekit accepts it.", inert=True),
        *_task_vector_parameters(normalize=False, rescale=False, sparse=False),
    ),
    base="required",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Base plus weighted task vectors (arXiv:2212.04089).",
)

TIES = MethodSpec(
    name="ties",
    parameters=(
        # With `normalize` the kept weights are a divisor: signs that cancel would make it vanish.
        _weight(0.0, 1.5, "Factor of the model's trimmed task vector."),
        _density("Fraction of entries kept, the largest by magnitude."),
        *_task_vector_parameters(normalize=True, rescale=False, sparse=True),
    ),
    base="required",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Trim task vectors, elect a sign per entry, merge those that agree (arXiv:2306.01708).",
)

DARE_TIES = MethodSpec(
    name="dare_ties",
    parameters=(
        _weight(-0.5, 1.5, "Factor of the model's thinned task vector."),
        _density("Probability that an entry is kept."),
        *_task_vector_parameters(normalize=False, rescale=True, sparse=True),
    ),
    base="required",
    min_models=1,
    max_models=None,
    stochastic=True,
    doc="Drop entries of task vectors at random, rescale, then sign election as in ties (arXiv:2311.03099).",
)

PASSTHROUGH = MethodSpec(
    name="passthrough",
    parameters=(
        Parameter(
            "scale",
            True,
            float,
            low=0.0,
            high=2.0,
            start=1.0,
            doc="Factor of the tensor; untouched if unset.",
        ),
    ),
    base="none",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="Take each slice from one model, scaled if asked: layer orders, repeats, skips.",
)

METHODS: Mapping[str, MethodSpec] = MappingProxyType(
    {spec.name: spec for spec in (LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE_TIES, PASSTHROUGH)}
)


def method_spec(name: str) -> MethodSpec:
    """Return the specification of the merge method called `name`.

    Raises
    ------
    RecipeError
        If there is no such method; the nearest is named.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise RecipeError(f"merge_method '{name}' is unknown; {did_you_mean(name, METHODS)}") from None
