"""The registry of merge methods, and what a method sees of the engine.

Legend: T source models (without the base where a method treats it apart), E entries of one block.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.formulas import Formula
from search_spaces.recipes.methods import MethodSpec, method_spec

PerModel: TypeAlias = Sequence[float]
"""A parameter with one value per model, in the order of the block's models."""

OptionalPerModel: TypeAlias = Sequence[float | None]
"""The same for a parameter that is off unless set: None where the recipe sets none."""


class Prepared(Protocol):
    """What a method works out once per tensor, whatever the coefficients."""

    def cut(self, span: slice) -> Prepared:
        """Return the part that belongs to the entries `span` of the flattened tensor."""


class SourceModel:
    """A source and the base in full, for what a method measures over the whole model: lazily, and once.

    Parameters
    ----------
    pairs
        Gives the tensors, flat, each with the base's of the same name (None without a base), as often as asked.
    """

    def __init__(self, pairs: Callable[[], Iterator[tuple[Tensor, Tensor | None]]]) -> None:
        self.pairs = pairs
        self._measured: dict[object, Any] = {}

    def once(self, key: object, measure: Callable[[], Any]) -> Any:
        """Return what `measure` gave when first called with `key`."""
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


@dataclass(frozen=True)
class SourceTensor:
    """One source tensor, whole, as a method's `prepare` sees it.

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
    statistic
        What was measured of the tensor on the calibration text, flat, where the method's `statistic` asks for it.
    """

    name: str
    values: Tensor
    base: Tensor | None
    seed: int
    info: TensorInfo
    model: SourceModel
    statistic: Tensor | None = None

    def delta(self) -> Tensor:
        """Return the task vector, float32, flat."""
        assert self.base is not None, "a method that asks for the base says base='required'"
        return self.values.float() - self.base.float()


@dataclass(frozen=True)
class SourceGroup:
    """All sources of one output tensor, whole, as a method's `prepare_all` sees them.

    Attributes
    ----------
    models, base
        Flattened, in the dtype and (memory-mapped) place they are stored in; `base` is None without a base.
    info
        Shape and role of the tensor.
    """

    models: tuple[Tensor, ...]
    base: Tensor | None
    info: TensorInfo

    def deltas(self) -> tuple[Tensor, ...]:
        """Return each model minus the base, float32, flat."""
        assert self.base is not None, "a method that asks for the base says base='required'"
        base = self.base.float()
        return tuple(values.float() - base for values in self.models)


Prepare: TypeAlias = Callable[[SourceTensor], Prepared]
PrepareAll: TypeAlias = Callable[[SourceGroup], Prepared]
Apply: TypeAlias = Callable[..., Formula | None]
Scope: TypeAlias = Literal["block", "matrix"]
Bytes: TypeAlias = float | Callable[[TensorInfo], float]
"""Bytes per entry, the same for all tensors or by info."""


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes
    ----------
    spec
        Its description in `search_spaces.recipes.methods`.
    apply
        Fills ``block.out`` from one block of the sources, called for every block of every tensor; or, called once per
        tensor, returns the formula that does.
    arguments
        Argument name by parameter name: ``lambda`` is a keyword of Python, the argument is ``lambda_``.
    gives_formula
        Which of the two `apply` does, as its annotations say.
    prepare
        Run once per source tensor, or None when nothing can be known of one before the coefficients are.
    prepared_bytes
        Bytes that the prepared state holds per entry and model.
    prepare_all
        Run once per output tensor, on all its sources together, or None.
    shared_bytes
        Bytes that its result holds per entry of the output tensor, beyond `prepared_bytes` per model.
    scope
        ``matrix``: a tensor that is a linear map comes as a single block, whatever its size.
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

    def prepared_size(self, info: TensorInfo) -> int:
        """Return the bytes held for each model of a tensor of that info."""
        return _size(self.prepared_bytes, info)

    def shared_size(self, info: TensorInfo) -> int:
        """Return the bytes held for all models of a tensor of that info, beyond those for each."""
        return _size(self.shared_bytes, info)


_METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    prepare: Prepare | None = None,
    prepared_bytes: Bytes = 0,
    prepare_all: PrepareAll | None = None,
    shared_bytes: Bytes = 0,
    scope: Scope = "block",
) -> Callable[[Apply], Apply]:
    """Register a function as the merge method called `name`; see `MergeMethod` for the rest.

    Takes a `Block` and returns None, or takes a `TensorContext` and returns a `Formula` (faster: one compiled pass).
    Its keyword-only arguments must be the method's parameters in `search_spaces.recipes.methods` (those with an
    effect), those with a value per model annotated as `PerModel`.

    Raises
    ------
    TypeError
        If the signature and the table disagree, at import.
    """

    def register(function: Apply) -> Apply:
        spec = method_spec(name)
        _METHODS[name] = MergeMethod(
            spec,
            function,
            _arguments(function, spec),
            gives_formula=typing.get_type_hints(function)["return"] is not type(None),
            prepare=prepare,
            prepared_bytes=prepared_bytes,
            prepare_all=prepare_all,
            shared_bytes=shared_bytes,
            scope=scope,
        )
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
    try:
        return _METHODS[name]
    except KeyError:
        spec = method_spec(name)
        raise NotImplementedError(
            f"merge_method '{spec.name}' has no implementation; use one of {', '.join(sorted(_METHODS))}"
        ) from None


def _size(per_entry: Bytes, info: TensorInfo) -> int:
    return int((per_entry(info) if callable(per_entry) else per_entry) * math.prod(info.shape))


def _arguments(function: Apply, spec: MethodSpec) -> dict[str, str]:
    hints: dict[str, Any] = typing.get_type_hints(function)
    _block, *rest = inspect.signature(function).parameters.values()
    found = {argument.name.rstrip("_"): hints[argument.name] in (PerModel, OptionalPerModel) for argument in rest}
    expected = {p.name: p.per_model for p in spec.parameters if not (p.inert or p.after)}
    if found != expected or any(argument.kind is not argument.KEYWORD_ONLY for argument in rest):
        raise TypeError(
            f"{spec.name}: keyword-only arguments (name: is per model) are {found}, "
            f"search_spaces.methods says {expected}; make them equal"
        )
    return {argument.name.rstrip("_"): argument.name for argument in rest}
