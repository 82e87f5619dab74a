"""The units of Llama-like models that may change places, and what that does to the weights.

A model computes the same function after any of these permutations, each applied to all weights that read or write the
units:

* the channels of the residual stream, one permutation for the whole model: norms weigh channel by channel;
* the hidden units of each layer's MLP;
* the key-value heads of each layer's attention, with their groups of query heads;
* the query heads within a group;
* the channels of a head's values, one permutation for all query heads of its group.

The channels of queries and keys stay where they are: rotary positions turn each pair by an angle of its own.

Letters: D channels of the stream, F hidden units, K key-value heads, G query heads of each, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source

Role: TypeAlias = Literal["stream", "hidden", "queries", "keys", "values", "outputs"]
"""What the entries of an axis are; `outputs` are what queries' heads give to the output projection."""

LINEAR: Mapping[str, tuple[Role, Role]] = {
    "self_attn.q_proj": ("queries", "stream"),
    "self_attn.k_proj": ("keys", "stream"),
    "self_attn.v_proj": ("values", "stream"),
    "self_attn.o_proj": ("stream", "outputs"),
    "mlp.gate_proj": ("hidden", "stream"),
    "mlp.up_proj": ("hidden", "stream"),
    "mlp.down_proj": ("stream", "hidden"),
}
"""Rows and columns of a layer's linear maps."""
HEAD_NORMS: Mapping[str, Role] = {"self_attn.q_norm": "queries", "self_attn.k_norm": "keys"}
"""Norms over all heads together (OLMo 2). Where they are as short as one head, all heads share them."""


class Axis(NamedTuple):
    """One axis of a tensor: what its entries are, and in which layer; the stream has none."""

    role: Role
    layer: int | None = None


Axes: TypeAlias = tuple[Axis | None, ...]
"""The axes of a tensor; None for those that stay as they are."""


@dataclass(frozen=True)
class Units:
    """The units of one model.

    Attributes
    ----------
    stream
        D.
    hidden
        F of each layer.
    heads, group, head
        K, G, E.
    axes
        The axes of every tensor, by name.
    """

    stream: int
    hidden: tuple[int, ...]
    heads: int
    group: int
    head: int
    axes: Mapping[str, Axes]

    def having(self, role: Role, layer: int | None = None) -> Iterator[tuple[str, int]]:
        """Yield the names of the tensors that have such an axis, each with its position."""
        for name, axes in self.axes.items():
            for at, axis in enumerate(axes):
                if axis == (role, layer):
                    yield name, at


def units_of(source: Source) -> Units:
    """Return the units of a model.

    Raises
    ------
    CheckpointError
        If it has a tensor whose units are not known.
    """
    config, layout = source.config.get_text_config(), source.layout
    queries = int(config.num_attention_heads)
    heads = int(getattr(config, "num_key_value_heads", None) or queries)
    stream = source.shape(source.outline.embeddings)[-1]
    axes: dict[str, Axes] = {name: (None, Axis("stream")) for name in layout.embeddings}
    hidden, head = [], 0
    for layer, names in enumerate(layout.layers):
        shapes = {name: source.shape(layout.layer_tensor(layer, name)) for name in names}
        for needed in ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.down_proj.weight"):
            if needed not in shapes:
                raise _unknown(source, layout.layer_tensor(layer, needed), "is missing")
        head = shapes["self_attn.q_proj.weight"][0] // queries
        hidden.append(shapes["mlp.down_proj.weight"][1])
        for name, shape in shapes.items():
            axes[layout.layer_tensor(layer, name)] = _layer_axes(name, layer, shape, head)
    for name in layout.final:
        axes[name] = (None, Axis("stream")) if name == layout.head else _norm(name)
    found = Units(stream, tuple(hidden), heads, queries // heads, head, axes)
    for name, own in axes.items():
        _check(source, name, own, found)
    return found


def _layer_axes(name: str, layer: int, shape: tuple[int, ...], head: int) -> Axes:
    """Return the axes of a layer's tensor; of an unknown one none at all."""
    module, _, kind = name.rpartition(".")
    if module in LINEAR:
        roles = LINEAR[module] if kind == "weight" else LINEAR[module][:1]
        return tuple(Axis(role, None if role == "stream" else layer) for role in roles)
    if module in HEAD_NORMS:
        return (None if shape == (head,) else Axis(HEAD_NORMS[module], layer),)
    return _norm(name)


def _norm(name: str) -> Axes:
    module = name.rpartition(".")[0]
    return (Axis("stream"),) if module.endswith("norm") and "attn." not in module and "mlp." not in module else ()


def _check(source: Source, name: str, axes: Axes, units: Units) -> None:
    """Refuse a tensor without known axes, or of another size than its units have."""
    shape = source.shape(name)
    if len(axes) != len(shape):
        raise _unknown(source, name, f"has the shape {list(shape)}")
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and size != size_of(axis, units):
            raise _unknown(source, name, f"has {size} {axis.role} where {size_of(axis, units)} are expected")


def size_of(axis: Axis, units: Units) -> int:
    """Return how many entries an axis has."""
    if axis.role == "stream":
        return units.stream
    if axis.role == "hidden":
        assert axis.layer is not None, "hidden units belong to a layer"
        return units.hidden[axis.layer]
    return units.heads * units.head * (1 if axis.role in ("keys", "values") else units.group)


def _unknown(source: Source, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source.reference}: {name} {what}, so its units are not known; match models whose layers have q_proj, "
        "k_proj, v_proj, o_proj, and an MLP with up_proj and down_proj, such as Llama, Mistral, Qwen or Gemma"
    )


@dataclass(frozen=True)
class HeadOrder:
    """Which heads of a layer come where: int64 all.

    Attributes
    ----------
    heads
        The model's key-value head in each place, [K].
    queries
        Its query head, counted within that head's group, [K, G].
    values
        The channel of that head's values, [K, E].
    """

    heads: Tensor
    queries: Tensor
    values: Tensor

    def index(self, role: Role) -> Tensor:
        """Return the model's entries in their new order along an axis, flat."""
        size, group = self.values.shape[1], self.queries.shape[1]
        same = torch.arange(size)
        if role == "keys":
            return (self.heads[:, None] * size + same).reshape(-1)
        if role == "values":
            return (self.heads[:, None] * size + self.values).reshape(-1)
        query = (self.heads[:, None] * group + self.queries) * size  # [K, G]
        channel = same.expand_as(self.values) if role == "queries" else self.values
        return (query[:, :, None] + channel[:, None, :]).reshape(-1)


@dataclass
class Order:
    """Which unit of a model comes where: int64[D], int64[F] of each layer, and each layer's heads."""

    stream: Tensor
    hidden: list[Tensor]
    heads: list[HeadOrder]

    @classmethod
    def unchanged(cls, units: Units) -> Order:
        """Return the order in which the model has its units."""
        heads = HeadOrder(
            torch.arange(units.heads),
            torch.arange(units.group).repeat(units.heads, 1),
            torch.arange(units.head).repeat(units.heads, 1),
        )
        return cls(
            torch.arange(units.stream), [torch.arange(size) for size in units.hidden], [heads] * len(units.hidden)
        )

    def index(self, axis: Axis) -> Tensor:
        """Return the model's entries along an axis in their new order."""
        if axis.layer is None:
            return self.stream
        return self.hidden[axis.layer] if axis.role == "hidden" else self.heads[axis.layer].index(axis.role)

    def applied(self, tensor: Tensor, axes: Axes, *, but: int | None = None) -> Tensor:
        """Return a tensor with its units in this order, along all axes but one."""
        for at, axis in enumerate(axes):
            if axis is not None and at != but:
                tensor = tensor.index_select(at, self.index(axis))
        return tensor

    def moved(self) -> int:
        """Return how many channels, hidden units, heads and channels of values are in another place."""
        orders = [self.stream, *self.hidden]
        for heads in self.heads:
            orders += [heads.heads, *heads.queries, *heads.values]
        return sum(int((order != torch.arange(len(order))).sum()) for order in orders)
