"""Values of parameters as recipes write them, and their value for one tensor.

mergekit 0.1.5's rules: a setting is a list of conditions, and the first whose filter is a substring of the tensor's
name applies. A condition's value is a scalar or a gradient over the layers of its slice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = float | bool


@dataclass(frozen=True)
class Condition:
    """A value for the tensors whose name contains `filter`; for all tensors if it is None, empty or ``*``.

    `value` is a scalar, or a tuple: a gradient spread evenly over the layers of the slice.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None

    @property
    def is_catch_all(self) -> bool:
        """Whether the condition matches every tensor."""
        return not self.filter or self.filter == "*"


Setting: TypeAlias = tuple[Condition, ...]
Parameters: TypeAlias = tuple[tuple[str, Setting], ...]


def constant(value: Scalar) -> Setting:
    """Return the setting that is `value` for every tensor."""
    return (Condition(value),)


def interpolate(value: Scalar | tuple[Scalar, ...], t: float) -> Scalar:
    """Evaluate a gradient at `t` in [0, 1]: piecewise linear for numbers, stepwise for truth values.

    The order of operations is mergekit's, so that the results agree to the last bit.
    """
    if not isinstance(value, tuple):
        return value
    position = t * (len(value) - 1)
    left = int(position)
    if isinstance(value[0], bool):
        return value[left]
    right = min(len(value) - 1, left + 1)
    fraction = position - left
    return (1 - fraction) * value[left] + fraction * value[right]


def evaluate(setting: Setting, tensor: str, t: float) -> Scalar | None:
    """Return the value of `setting` for the tensor called `tensor`; None if no condition matches."""
    for condition in setting:
        if not condition.filter or condition.filter == "*" or condition.filter in tensor:
            return interpolate(condition.value, t)
    return None


def find(parameters: Parameters, name: str) -> Setting:
    """Return the setting of the parameter called `name`; the empty setting when there is none."""
    for key, setting in parameters:
        if key == name:
            return setting
    return ()


def chain(scopes: Iterable[Parameters], name: str, default: Scalar | None = None) -> Setting:
    """Join the settings of one parameter from the narrowest scope to the widest, then its default.

    If no condition of a scope matches, the next scope applies; so the scopes one after another are a single setting
    with the same meaning.
    """
    joined: Setting = ()
    for scope in scopes:
        joined += find(scope, name)
    return joined if default is None else (*joined, Condition(default))


def at(setting: Setting, t: float) -> Setting:
    """Replace every gradient of `setting` by its value at `t`."""
    if not any(isinstance(condition.value, tuple) for condition in setting):
        return setting
    return tuple(Condition(interpolate(condition.value, t), condition.filter) for condition in setting)


def simplified(setting: Setting) -> Setting:
    """Return the shortest setting with the same meaning that is found by dropping conditions.

    Conditions that can never apply are dropped (after a catch-all, or with a filter that contains an earlier one), and
    those that only repeat the catch-all after them.
    """
    kept: list[Condition] = []
    for condition in setting:
        if condition.is_catch_all:
            while kept and kept[-1].value == condition.value:
                kept.pop()
            return (*kept, Condition(condition.value))
        if not any(str(earlier.filter) in str(condition.filter) for earlier in kept):
            kept.append(condition)
    return tuple(kept)


def fitting_epsilon(epsilon: float, density: float) -> float:
    """Return the largest spread of della's keep probabilities up to `epsilon` that mergekit 0.1.5 takes.

    That is one with 0 < density - epsilon and density + epsilon < 1; any where the density drops nothing or all.
    """
    if not 0 < density < 1 or (density + epsilon < 1 and density - epsilon > 0):
        return epsilon
    return min(density, 1 - density) * (1 - 1e-6)
