"""How a merge method declares its parameters: at its function's arguments.

::

    def mine(block: Block, *, weight: Annotated[PerModel, Real(0.0, 1.5, start=1.0, doc="...")]) -> None

`PerModel` arguments have one value per model, `float` and `bool` ones a value for the merge. An argument whose name is
a keyword of Python has an underscore at its end: ``lambda_``.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from search_spaces.recipes.method_spec import Parameter


class MethodError(ValueError):
    """Values in a recipe that a merge method cannot use; the text says what to write instead."""


PerModel: TypeAlias = Sequence[float]
"""A parameter with one value per model, in the order of the block's models."""

OptionalPerModel: TypeAlias = Sequence[float | None]
"""The same for a parameter that is off unless set: None where the recipe sets none."""


@dataclass(frozen=True)
class Real:
    """A number. Required unless it has a default or its argument is `OptionalPerModel`.

    Attributes
    ----------
    low, high, start
        Range that a search uses unless the search file gives another, and where it begins; None: it is not searched.
    doc
        Meaning, in one sentence.
    default
        Value when the recipe sets none.
    common, extension
        As in `Parameter`.
    """

    low: float | None = None
    high: float | None = None
    start: float | None = None
    doc: str = ""
    default: float | None = None
    common: bool = False
    extension: bool = False


@dataclass(frozen=True)
class Flag:
    """True or false; never searched.

    Attributes
    ----------
    default
        Value when the recipe sets none.
    doc
        Meaning, in one sentence.
    extension
        As in `Parameter`.
    """

    default: bool
    doc: str
    extension: bool = False


# --- parameters that several methods take ---


def required_weight(low: float, high: float, doc: str) -> Real:
    """Return a weight that every model needs."""
    return Real(low, high, 0.5, doc, common=True)


def optional_weight(doc: str = "Factor of the model's task vector.", *, extension: bool = False) -> Real:
    """Return a weight of 1 unless set, for methods whose papers have none per model."""
    return Real(0.0, 1.5, 1.0, doc, default=1.0, common=True, extension=extension)


def kept_fraction(doc: str) -> Real:
    """Return a fraction of entries."""
    return Real(0.1, 1.0, 0.5, doc, default=1.0, common=True)


Factor: TypeAlias = Annotated[PerModel, optional_weight()]
Lambda: TypeAlias = Annotated[float, Real(0.1, 2.0, 1.0, "Scale of the merged task vector.", default=1.0, common=True)]
Normalize: TypeAlias = Annotated[bool, Flag(False, "Divide by the sum of the weights taken.")]
NormalizeByDefault: TypeAlias = Annotated[bool, Flag(True, "Divide by the sum of the weights taken.")]
Rescale: TypeAlias = Annotated[bool, Flag(False, "Restore what sparsity took.")]
RescaleByDefault: TypeAlias = Annotated[bool, Flag(True, "Restore what sparsity took.")]

INT8_MASK = Parameter("int8_mask", False, bool, False, inert=True, doc="Storage of mergekit's masks.")
ACTIVATION_INFORMED = Parameter(
    "activation_informed",
    False,
    float,
    low=0.0,
    high=1.0,
    start=0.4,
    after=True,
    extension=True,
    doc="Activation-informed merging (arXiv:2502.02421): what the base's busiest channel keeps of its change.",
)
"""Taken by every method that has a base; needs `calibration`, a text."""


# --- from a function's signature ---


def declared_parameters(function: Callable[..., Any], method: str) -> dict[str, Parameter]:
    """Return a method's parameters by the name of their argument, in the order of the signature.

    Raises
    ------
    TypeError
        If an argument after the first is not keyword-only, or its annotation is not as described above.
    """
    _tensor, *arguments = inspect.signature(function).parameters.values()
    hints = typing.get_type_hints(function, include_extras=True)
    return {argument.name: _declared(argument, hints.get(argument.name), method) for argument in arguments}


def _declared(argument: inspect.Parameter, hint: Any, method: str) -> Parameter:
    place = f"{method}: argument '{argument.name}'"
    if argument.kind is not argument.KEYWORD_ONLY:
        raise TypeError(f"{place}: it can be given by position; write a * before it")
    annotated, declaration = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)
    name = argument.name.rstrip("_")
    if isinstance(declaration, (Real, Flag)) and not declaration.doc:
        raise TypeError(f"{place}: it has no doc; say in one sentence what it means")
    if annotated is bool and isinstance(declaration, Flag):
        flag = declaration
        return Parameter(name, False, bool, flag.default, extension=flag.extension, doc=flag.doc)
    if annotated in (PerModel, OptionalPerModel, float) and isinstance(declaration, Real):
        _check_range(declaration, place)
        return Parameter(
            name,
            per_model=annotated is not float,
            kind=float,
            required=declaration.default is None and annotated != OptionalPerModel,
            **vars(declaration),
        )
    raise TypeError(
        f"{place}: its annotation does not declare a parameter; write Annotated[PerModel, Real(...)], "
        "Annotated[float, Real(...)] or Annotated[bool, Flag(...)]"
    )


def _check_range(declared: Real, place: str) -> None:
    bounds = (declared.low, declared.start, declared.high)
    given = [bound for bound in bounds if bound is not None]
    if given and (len(given) < len(bounds) or given != sorted(given) or given[0] == given[-1]):
        raise TypeError(f"{place}: low, start and high are {bounds}; give all three, low <= start <= high, low < high")


def check_shares(weight: Sequence[float], method: str) -> None:
    """Refuse weights that are not shares.

    Raises
    ------
    MethodError
        If one is below 0, or none is above.
    """
    if min(weight) < 0 or max(weight) == 0:
        raise MethodError(f"{method}: the weights are shares; write numbers of at least 0, one of them above")
