"""Groups of layers that share coefficients, and their parts: what `groups`, `layers_per_group` and `modules` say.

A merge is written as L + 2 slices for L layers: 0 has the embeddings, 1 to L the layers, L + 1 the final norm with the
head. A group is a set of slices. A part is the group's tensors whose names contain a filter, as in mergekit's
conditional values; the last part has the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.parameter_values import interpolate

Members: TypeAlias = tuple[int | str, ...]
"""Members of a group as written: layers, ranges such as ``0-3`` (both ends included), ``embeddings``, ``final``."""

Groups: TypeAlias = Literal["model"] | tuple[Members, ...] | dict[str, Members]
"""One group for the whole model, or the members of each group, with a name or without."""

MODULES = ("attention", "mlp", "other")
"""Parts of a layer by our names; any other name is a part of the tensors' names, as in mergekit's filters."""


@dataclass(frozen=True)
class Part:
    """Tensors of a group with coefficients of their own.

    Attributes
    ----------
    label
        In the genes' names: ``layers 0-3, attention``.
    filter
        What the tensors' names contain; None: all that no earlier part has.
    tensors
        Their names, by slice.
    """

    label: str
    filter: str | None
    tensors: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class LayerGroup:
    """Slices that share coefficients, and their parts in order, the one without a filter last."""

    label: str
    slices: tuple[int, ...]
    parts: tuple[Part, ...]


def layer_groups(
    layout: ModelLayout, *, groups: Groups | None, layers_per_group: int, modules: Sequence[str]
) -> tuple[LayerGroup, ...]:
    """Return the groups in order.

    Parameters
    ----------
    layout
        The models' tensors.
    groups
        As in the search file; None: the embeddings, runs of `layers_per_group` layers, the final norm with the head.
    layers_per_group
        Length of the runs; the last may be shorter.
    modules
        Names of the parts without ``other``; see `MODULES`.

    Raises
    ------
    RecipeError
        If a group names something that is not there, a layer is in no group or in two, or no tensor has a module.
    """
    filters = [(module, _filter(module, layout)) for module in modules]
    written = dict(_runs(layout, layers_per_group)) if groups is None else dict(_written(groups, layout))
    return tuple(
        LayerGroup(label, slices, tuple(_parts(label, slices, filters, layout))) for label, slices in written.items()
    )


def group_label(gene: str) -> str:
    """Return the group in a coefficient's name, ``owner.parameter[group, part]``."""
    return gene.partition("[")[2].rstrip("]").partition(",")[0]


def is_weight_of(model: str, gene: str) -> bool:
    """Whether a gene's name, ``owner.parameter[group, part]``, is that of a weight of a model, under any method."""
    return f".{gene}".partition("[")[0].endswith(f".{model}.weight")


def belongs_to(model: str, gene: str) -> bool:
    """Whether a gene's name, ``owner.parameter[group, part]``, is that of a model's coefficient, under any method."""
    owner = f".{gene}".partition("[")[0].rpartition(".")[0]
    return owner.endswith(f".{model}")


def weights_by_part(genes: Iterable[str]) -> dict[str, list[int]]:
    """Return the positions of the models' weights among genes' names, by the part of the model that they merge."""
    found: dict[str, list[int]] = {}
    for at, gene in enumerate(genes):
        owner, _, part = gene.partition("[")
        if owner.endswith(".weight"):
            found.setdefault(part.rstrip("]"), []).append(at)
    return found


def tensors_of(layout: ModelLayout, index: int) -> tuple[str, ...]:
    """Return the names of the tensors in slice `index` (0 to L + 1)."""
    if index == 0:
        return layout.embeddings
    if index > layout.num_layers:
        return layout.final
    return tuple(layout.layer_tensor(index - 1, name) for name in layout.layers[index - 1])


def smoothing(groups: Sequence[LayerGroup], num_layers: int) -> dict[int, tuple[float, ...]]:
    """Return the share that each group has in a layer's coefficients, by slice; shares of a layer add up to one.

    The groups of layers are knots, evenly spaced from the first layer to the last, with straight lines between them:
    what mergekit makes of a list of values. Embeddings and final norm keep the values of their own groups.

    Raises
    ------
    RecipeError
        If a group's layers are not consecutive, or the groups are not in the layers' order.
    """
    knots = [group for group in groups if any(1 <= index <= num_layers for index in group.slices)]
    layers = [[index for index in group.slices if 1 <= index <= num_layers] for group in knots]
    if [index for own in layers for index in own] != list(range(1, num_layers + 1)):
        raise RecipeError("space.smooth: groups of layers must follow each other; write groups such as [0-3], [4-7]")
    if any(len(group.parts) != len(knots[0].parts) for group in knots):
        raise RecipeError("space.smooth: not all layers have all of space.modules; remove those that some lack")
    shares: dict[int, tuple[float, ...]] = {}
    for layer in range(num_layers):
        position = layer / (num_layers - 1) if num_layers > 1 else 0.0
        units = [tuple(float(knot is other) for other in knots) for knot in knots]
        shares[1 + layer] = tuple(
            float(interpolate(units[knots.index(group)], position)) if group in knots else 0.0 for group in groups
        )
    return shares


def _filter(module: str, layout: ModelLayout) -> str:
    if module in ("attention", "mlp"):
        return layout.module_filter("attention" if module == "attention" else "mlp")
    if not any(module in name for name in layout.tensors()):
        known = sorted({part for name in layout.tensors() for part in name.split(".") if not part.isdigit()})
        raise RecipeError(f"space.modules: no tensor's name contains '{module}'; {did_you_mean(module, known)}")
    return module


def _parts(
    label: str, slices: Sequence[int], filters: Sequence[tuple[str, str]], layout: ModelLayout
) -> Iterator[Part]:
    """Yield the parts that have tensors in these slices. With a single part its name is the group's."""
    tensors: list[dict[int, tuple[str, ...]]] = [{} for _ in range(len(filters) + 1)]
    for index in slices:
        owners: list[list[str]] = [[] for _ in tensors]
        for name in tensors_of(layout, index):
            owners[next((at for at, (_, own) in enumerate(filters) if own in name), -1)].append(name)
        for found, names in zip(tensors, owners, strict=True):
            if names:
                found[index] = tuple(names)
    named: list[tuple[str, str | None]] = [*filters, ("other", None)]
    present = [(part, own) for part, own in zip(named, tensors, strict=True) if own]
    if len(present) <= 1:  # an empty group of tensors keeps its gene: tied heads, norms without weights
        yield Part(label, None, present[0][1] if present else {})
        return
    for (name, own_filter), own in present:
        yield Part(f"{label}, {name}", own_filter, own)


def _runs(layout: ModelLayout, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    depth = layout.num_layers
    yield "embeddings", (0,)
    for first in range(0, depth, size):
        layers = range(first, min(first + size, depth))
        yield _label(layers), tuple(1 + layer for layer in layers)
    yield "final", (1 + depth,)


def _written(groups: Groups, layout: ModelLayout) -> Iterator[tuple[str, tuple[int, ...]]]:
    depth = layout.num_layers
    everything = range(depth + 2)
    if groups == "model":
        yield "model", tuple(everything)
        return
    named = groups.items() if isinstance(groups, dict) else ((None, members) for members in groups)
    taken: dict[int, str] = {}
    for at, (name, members) in enumerate(named):
        place = f"space.groups.{at if name is None else name}"
        slices = sorted(index for member in members for index in _slices(member, place, depth))
        if not slices:
            raise RecipeError(f"{place}: the group is empty; name layers, embeddings or final, or remove it")
        for index in slices:
            if index in taken or slices.count(index) > 1:
                raise RecipeError(f"{place}: {_name(index, depth)} is in two groups; name it once")
        label = _joined_label(slices, depth) if name is None else name
        taken.update(dict.fromkeys(slices, label))
        yield label, tuple(slices)
    missing = [index for index in everything if index not in taken]
    if missing:
        what = _name(missing[0], depth) if len(missing) == 1 else _joined_label(missing, depth)
        raise RecipeError(f"space.groups: no group has {what}; add one that does")


def _slices(member: int | str, place: str, depth: int) -> Sequence[int]:
    """Return the slices that one entry of a group stands for."""
    if member in ("embeddings", "final"):
        return (0,) if member == "embeddings" else (depth + 1,)
    found = re.fullmatch(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", str(member))
    if found is None:
        raise RecipeError(
            f"{place}: '{member}' is not a layer; write embeddings, final, a number or a range such as 0-3"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < depth:
        raise RecipeError(f"{place}: '{member}' does not fit; the models have layers 0 to {depth - 1}")
    return range(1 + first, 2 + last)


def _joined_label(slices: Sequence[int], depth: int) -> str:
    """Return ``embeddings+layers 0-3+layers 7`` for the slices, sorted."""
    runs: list[list[int]] = []
    for index in slices:
        if runs and runs[-1][-1] == index - 1 and 1 < index <= depth:
            runs[-1].append(index)
        else:
            runs.append([index])
    return "+".join(_label([i - 1 for i in run]) if 1 <= run[0] <= depth else _name(run[0], depth) for run in runs)


def _name(index: int, depth: int) -> str:
    return "embeddings" if index == 0 else "final" if index > depth else f"layer {index - 1}"


def _label(layers: Sequence[int]) -> str:
    first, last = layers[0], layers[-1]
    return f"layers {first}" if first == last else f"layers {first}-{last}"
