"""RAM and RAM+: entries that one model alone changed are kept whole, others averaged (arXiv:2601.13572).

An entry counts as changed by model t where |τ_t| > ε, c is the number of models that have changed it.

    RAM:   θ = θ_0 + Σ_t [|τ_t| > ε] τ_t / max(c, 1)
    RAM+:  the same, with entries that only model t has changed (c = 1) multiplied by λ_t = 1 + r clip(ρ_t, 0, α),

where ρ_t is the number of entries that t shares with others over the number of those that are its own. As in mergekit
0.1.5 (`ramplus_tl`), the counts are the tensor's, not the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import Real
from evomerge.merging.methods.registry import SourceGroup, WholeTensor, WholeTensorState, merge_method

SmallestChange: TypeAlias = Annotated[float, Real(doc="Size of a change that counts.", default=1e-5)]

STRETCH = 1 << 20
"""Entries counted at a time."""


class Shares(WholeTensorState):
    """Each model's ρ, computed for the last ε."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._shares: LastValueCache[Tensor] = LastValueCache()

    def of(self, epsilon: float) -> Tensor:
        """Return ρ of each of the T models, float32."""
        return self._shares.get(epsilon, lambda: self._count(epsilon))

    def _count(self, epsilon: float) -> Tensor:
        base = self._group.base
        assert base is not None, "ramplus_tl requires a base"
        shared = own = torch.zeros(len(self._group.models), dtype=torch.int64, device=base.device)
        for start in range(0, len(base), STRETCH):
            span = slice(start, start + STRETCH)
            origin = base[span].float()
            changed = torch.stack([(values[span].float() - origin).abs() > epsilon for values in self._group.models])
            several = changed.sum(0) > 1
            shared = shared + (changed & several).sum(1)
            own = own + (changed & ~several).sum(1)
        return shared / own.clamp(min=epsilon)


def stepwise_ram(tensor: WholeTensor, *, epsilon: float) -> Tensor:
    """Return `ram`, rounded to the models' dtype after every step."""
    return _stepwise_reinforce(tensor, epsilon)


def stepwise_ramplus(tensor: WholeTensor, *, r: float, alpha: float, epsilon: float) -> Tensor:
    """Return `ramplus_tl`, rounded to the models' dtype up to the factors, which are float32 as in mergekit."""
    return _stepwise_reinforce(tensor, epsilon, (r, alpha))


def _stepwise_reinforce(tensor: WholeTensor, epsilon: float, larger: tuple[float, float] | None = None) -> Tensor:
    if not tensor.models:
        return tensor.origin
    delta_TE = torch.stack(tensor.deltas()).view(len(tensor.models), -1)
    changed_TE = delta_TE.abs() > epsilon
    count_E = changed_TE.sum(dim=0, keepdim=True)
    delta_TE = delta_TE * changed_TE
    alone_TE = delta_TE * (count_E == 1)
    if larger is not None:
        alone_TE = alone_TE * _factors(changed_TE, count_E, *larger, epsilon).unsqueeze(-1)
    shared_TE = delta_TE * (count_E > 1) / count_E.clamp(min=1)
    return tensor.origin + (alone_TE + shared_TE).sum(dim=0, keepdim=True).reshape(tensor.origin.shape)


def _factors(changed_TE: Tensor, count_E: Tensor, r: float, alpha: float, epsilon: float) -> Tensor:
    """Return each model's λ, float32[T]."""
    shared_T, own_T = (changed_TE & (count_E > 1)).sum(1), (changed_TE & (count_E == 1)).sum(1)
    return larger_by(shared_T / own_T.clamp(min=epsilon), r, alpha)


def larger_by(share_T: Tensor, r: float, alpha: float) -> Tensor:
    """Return λ = 1 + r clip(ρ, 0, α)."""
    return 1 + r * share_T.clamp(0, alpha)


@merge_method("ram", min_models=0, stepwise=stepwise_ram)
def ram(block: Block, *, epsilon: SmallestChange) -> None:
    """Sum of the task vectors, an entry divided by the number of models that change it (arXiv:2601.13572)."""
    _reinforce(block, epsilon, None)


@merge_method("ramplus_tl", min_models=0, prepare_all=Shares, stepwise=stepwise_ramplus)
def ramplus(
    block: Block,
    *,
    r: Annotated[float, Real(0.0, 1.0, 0.1, "How much larger, per share of what is shared.", default=0.1)],
    alpha: Annotated[float, Real(0.0, 1.0, 0.2, "Largest share that counts.", default=0.2)],
    epsilon: SmallestChange,
) -> None:
    """As ram, with entries that one model alone changes made larger (arXiv:2601.13572; counts per tensor).

    The factor grows with the share of a model's changes that others make too.
    """
    _reinforce(block, epsilon, larger_by(block.shared.of(epsilon), r, alpha).tolist())


def _reinforce(block: Block, epsilon: float, factors: Sequence[float] | None) -> None:
    base_E, deltas = block.deltas()
    count_E = block.spare("count").zero_()
    for delta_E in deltas:
        changed_E = _changed(block, delta_E, epsilon)
        count_E.add_(changed_E)
        delta_E.mul_(changed_E)
    out_E, alone_E = block.out.zero_(), count_E == 1
    for index, delta_E in enumerate(deltas):
        if factors is not None:
            delta_E.mul_(torch.where(alone_E, factors[index], 1.0))
        out_E.add_(delta_E.div_(count_E.clamp(min=1)))
    out_E.add_(base_E)


def _changed(block: Block, delta_E: Tensor, epsilon: float) -> Tensor:
    """Return 1 where the entry counts as changed, else 0."""
    size_E = torch.abs(delta_E, out=block.spare("size"))
    return torch.gt(size_E, epsilon, out=size_E)
