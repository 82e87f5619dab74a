"""The registry of merge methods, and what the engine gives to a method.

Legend: T source models (without the base where a method treats it apart), E entries of one block.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor
from typing_extensions import Self

from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.formulas import Formula
from evomerge.merging.methods.parameters import ACTIVATION_INFORMED, declared_parameters
from search_spaces.recipes.method_spec import BaseRole, CoreSpace, MethodSpec, Parameter
from search_spaces.recipes.methods import METHODS, method_spec
from search_spaces.registry import Registry


class Prepared(Protocol):
    """What a method computes once per tensor, whatever the coefficients."""

    def cut(self, span: slice) -> Prepared:
        """Return the part that belongs to the entries `span` of the flattened tensor."""


class WholeTensorState:
    """Prepared state that every block of a tensor sees in full. Alone, it is the state where there is nothing to hold.

    Methods derive theirs from it.
    """

    def cut(self, span: slice) -> Self:
        """Return itself."""
        return self


class SourceModel:
    """A source and its base in full, for what a method measures over the whole model: lazily, and once.

    Parameters
    ----------
    pairs
        Gives the tensors, flat, each with the base's of the same name (None without a base); may be called repeatedly.
    """

    def __init__(self, pairs: Callable[[], Iterator[tuple[Tensor, Tensor | None]]]) -> None:
        self.pairs = pairs
        self._measured: dict[object, Any] = {}
        self._lock = Lock()  # threads prepare a tensor each

    def once(self, key: object, measure: Callable[[], Any]) -> Any:
        """Return what `measure` returned when it was first called with `key`."""
        with self._lock:
            if key not in self._measured:
                self._measured[key] = measure()
            return self._measured[key]


@dataclass(frozen=True)
class SourceTensor:
    """One source tensor in full: the argument of a method's `prepare`.

    Attributes
    ----------
    name
        The tensor's name in its checkpoint's module.
    values, base
        Flattened, in the dtype and (memory-mapped) place they are stored in; `base` is None without a base.
    seed
        The recipe's seed; 0 unless it sets one.
    info
        Shape and role.
    model
        The model that the tensor belongs to.
    statistics
        What the method's spec names in `statistics`, as measured; without those that the tensor has none of.
    """

    name: str
    values: Tensor
    base: Tensor | None
    seed: int
    info: TensorInfo
    model: SourceModel
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def delta(self) -> Tensor:
        """Return the task vector, float32, flat."""
        assert self.base is not None, "the method uses a base: declare base='required'"
        return self.values.float() - self.base.float()


@dataclass(frozen=True)
class SourceGroup:
    """All sources of one output tensor in full: the argument of a method's `prepare_all`.

    Attributes
    ----------
    models, base
        Flattened, in the dtype and (memory-mapped) place they are stored in; `base` is None without a base.
    info
        Shape and role of the tensor.
    statistics
        Of each model, as for `SourceTensor`.
    """

    models: tuple[Tensor, ...]
    base: Tensor | None
    info: TensorInfo
    statistics: tuple[Mapping[str, Tensor], ...] = ()

    def deltas(self) -> tuple[Tensor, ...]:
        """Return each model minus the base, float32, flat."""
        assert self.base is not None, "the method uses a base: declare base='required'"
        base = self.base.float()
        return tuple(values.float() - base for values in self.models)


@dataclass(frozen=True)
class WholeTensor:
    """All sources of one output tensor in the recipe's `dtype`: the argument of a method's `stepwise`.

    Attributes
    ----------
    models, base
        In the tensor's shape; `base` is None without a base.
    prepared
        What a method that draws masks prepared for each model; empty for others.
    """

    models: tuple[Tensor, ...]
    base: Tensor | None
    prepared: Sequence[Any] = ()

    @property
    def origin(self) -> Tensor:
        """The base, for methods that need one."""
        assert self.base is not None, "the method uses a base: declare base='required'"
        return self.base

    def deltas(self) -> list[Tensor]:
        """Return each model minus the base, rounded to `dtype`."""
        return [values - self.origin for values in self.models]


Prepare: TypeAlias = Callable[[SourceTensor], Prepared]
PrepareAll: TypeAlias = Callable[[SourceGroup], Prepared]
Apply: TypeAlias = Callable[..., Formula | None]
Stepwise: TypeAlias = Callable[..., Tensor]
"""Takes a `WholeTensor` and the method's parameters."""
Scope: TypeAlias = Literal["block", "matrix"]
Bytes: TypeAlias = float | Callable[[TensorInfo], float]
"""Bytes per entry: the same for all tensors, or by their shape and role."""


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes
    ----------
    spec
        Its description, for recipes and search spaces.
    apply
        Fills ``block.out`` from one block of the sources, called for every block of every tensor; or, called once per
        tensor, returns the formula that does.
    arguments
        Argument name by parameter name: ``lambda`` is a keyword of Python, the argument is ``lambda_``.
    gives_formula
        Which of the two `apply` does, as its annotations say.
    prepare
        Called once per source tensor; None if nothing can be computed before the coefficients are known.
    prepared_bytes
        Bytes that the prepared state holds per entry and model.
    prepare_all
        Called once per output tensor, with all its sources; or None.
    shared_bytes
        Bytes that its result holds per entry of the output tensor, beyond `prepared_bytes` per model.
    scope
        ``matrix``: a tensor that is a linear map comes as a single block, whatever its size.
    stepwise
        Returns the merged tensor, computed in the sources' dtype step by step in mergekit's order; None if mergekit
        has no such method. Parameters of our own are not passed.
    float32_in_mergekit
        Whether mergekit computes in float32 where the dtype is half precision: then `stepwise` rounds once.
    stepwise_in_float32
        Whether `stepwise` is used for float32, too, because `apply` rounds otherwise than mergekit.
    stepwise_by_entry
        Whether an entry of the result of `stepwise` depends on the same entry of its arguments alone, so that it may
        be given stretches of flat tensors, which fit the processor's cache.
    """

    spec: MethodSpec
    apply: Apply
    arguments: dict[str, str]
    gives_formula: bool = False
    prepare: Prepare | None = None
    prepared_bytes: Bytes = 0
    prepare_all: PrepareAll | None = None
    shared_bytes: Bytes = 0
    scope: Scope = "block"
    stepwise: Stepwise | None = None
    float32_in_mergekit: bool = False
    stepwise_in_float32: bool = False
    stepwise_by_entry: bool = False

    def decomposes(self, info: TensorInfo) -> bool:
        """Whether such a tensor is merged as a single block, by a decomposition."""
        return self.scope == "matrix" and info.is_matrix

    def prepared_size(self, info: TensorInfo) -> int:
        """Return the bytes held for each model of such a tensor."""
        return _size(self.prepared_bytes, info)

    def shared_size(self, info: TensorInfo) -> int:
        """Return the bytes held for all models of such a tensor, beyond those for each."""
        return _size(self.shared_bytes, info)


IMPLEMENTATIONS: Registry[MergeMethod] = Registry("merge method")
"""Every method that can be computed, by name."""


def merge_method(
    name: str,
    *,
    base: BaseRole = "required",
    min_models: int = 1,
    max_models: int | None = None,
    stochastic: bool = False,
    statistics: tuple[str, ...] = (),
    weighted_average: bool = False,
    differentiable: tuple[str, ...] = (),
    core_space: CoreSpace = "different",
    deviation: str = "",
    without_effect: tuple[Parameter, ...] = (),
    prepare: Prepare | None = None,
    prepared_bytes: Bytes = 0,
    prepare_all: PrepareAll | None = None,
    shared_bytes: Bytes = 0,
    scope: Scope = "block",
    stepwise: Stepwise | None = None,
    float32_in_mergekit: bool = False,
    stepwise_in_float32: bool = False,
    stepwise_by_entry: bool = False,
) -> Callable[[Apply], Apply]:
    """Register a function as the merge method called `name`, for recipes and for the engine.

    The function takes a `Block` and returns None, or takes a `TensorContext` and returns a formula (faster: one
    compiled pass). Its keyword-only arguments declare the method's parameters (see `parameters`), and the first
    paragraph of its docstring says what the method does and where it comes from.

    Parameters
    ----------
    name
        The value of ``merge_method`` in recipes.
    base, min_models, max_models, stochastic, statistics, weighted_average, differentiable, core_space
        As in `MethodSpec`, like `deviation`.
    deviation
        As in `MethodSpec`.
    without_effect
        Parameters that mergekit accepts and that change nothing.
    prepare, prepared_bytes, prepare_all, shared_bytes, scope, stepwise, float32_in_mergekit
        As in `MergeMethod`; a method with `stepwise` is one of mergekit's.
    stepwise_in_float32, stepwise_by_entry
        As in `MergeMethod`.

    Raises
    ------
    TypeError
        If an argument does not declare a parameter, or the function has no docstring or no return annotation.
    ValueError
        If the name is taken.
    """

    def register(function: Apply) -> Apply:
        declared = declared_parameters(function, name)
        after = (ACTIVATION_INFORMED,) if base == "required" else ()
        parameters = (*declared.values(), *without_effect, *after)
        spec = MethodSpec(
            name,
            tuple(sorted(parameters, key=lambda parameter: not parameter.per_model)),
            _summary(function, name),
            base=base,
            min_models=min_models,
            max_models=max_models,
            stochastic=stochastic,
            statistics=statistics,
            weighted_average=weighted_average,
            differentiable=differentiable,
            core_space="unsupported" if statistics else core_space,  # which are of whole weights
            in_mergekit=stepwise is not None,
            deviation=deviation,
        )
        method = MergeMethod(
            spec,
            function,
            {parameter.name: argument for argument, parameter in declared.items()},
            gives_formula=_gives_formula(function, name),
            prepare=prepare,
            prepared_bytes=prepared_bytes,
            prepare_all=prepare_all,
            shared_bytes=shared_bytes,
            scope=scope,
            stepwise=stepwise,
            float32_in_mergekit=float32_in_mergekit,
            stepwise_in_float32=stepwise_in_float32,
            stepwise_by_entry=stepwise_by_entry,
        )
        IMPLEMENTATIONS.register(name, method, function.__module__)
        if not function.__module__.startswith(f"{__package__}."):  # our own specs are in the generated table
            METHODS.register(name, spec, function.__module__)
        return function

    return register


def implementation(name: str) -> MergeMethod:
    """Return the registered method called `name`.

    Raises
    ------
    RecipeError
        If no recipe can name it.
    NotImplementedError
        If recipes can name it but nothing computes it.
    """
    if name not in IMPLEMENTATIONS:
        spec = method_spec(name)
        raise NotImplementedError(
            f"merge_method '{spec.name}' has no implementation; use one of {', '.join(sorted(IMPLEMENTATIONS))}"
        )
    return IMPLEMENTATIONS[name]


def _size(per_entry: Bytes, info: TensorInfo) -> int:
    return int((per_entry(info) if callable(per_entry) else per_entry) * math.prod(info.shape))


def _summary(function: Apply, method: str) -> str:
    """Return the first paragraph of the function's docstring as one line."""
    text = inspect.getdoc(function)
    if not text:
        raise TypeError(f"{method}: its function has no docstring; say there what the method does, in one sentence")
    return " ".join(text.split("\n\n")[0].split())


def _gives_formula(function: Apply, method: str) -> bool:
    if "return" not in function.__annotations__:
        raise TypeError(f"{method}: its function has no return annotation; write -> None, or the formula's class")
    return function.__annotations__["return"] not in (None, "None")
