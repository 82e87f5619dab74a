"""Core space: adapters of one base merged as T·R × T·R matrices, without loss ("core space", Panariello et al. 2025).

With the experts' task vectors ``s_t B_t A_t``: U_B holds the left singular vectors of [B_1 … B_T], V_A the right ones
of [A_1; …; A_T], and ``M_t = s_t (U_Bᵀ B_t)(A_t V_Aᵀ)``. The merged task vector is ``U_B · op(M_1, …, M_T) · V_A``:
equal to the full-space one if `op` is linear; another, better conditioned method if it works entry by entry.

Letters: M rows, N columns of a weight; P = min(M, ΣR), Q = min(N, ΣR) of a core matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.engine.tensor_merge import TensorMerge, WholeMerge
from evomerge.merging.methods.blocks import Scratch, TensorInfo
from evomerge.merging.methods.registry import MergeMethod, SourceGroup, SourceModel, SourceTensor
from evomerge.merging.sources.adapters import AdapterSource, Factors
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source
from search_spaces.recipes.resolve import Contribution, TensorPlan

EXPANDED = 1 << 22  # entries of the full weight that are computed together
SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class CoreBasis:
    """The reference bases of one tensor, and each expert's core matrix in them.

    Attributes
    ----------
    left
        U_B, float32[M, P], orthonormal columns.
    right
        V_A, float32[Q, N], orthonormal rows.
    cores
        float32[P, Q] per expert; zeros for one that does not adapt the tensor.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]

    def expand(self, core_PQ: Tensor) -> Tensor:
        """Return the task vector float32[M, N] of a core matrix."""
        return self.left @ core_PQ @ self.right


def core_basis(experts: Sequence[Factors | None]) -> CoreBasis:
    """Compute the bases from the experts' factors; at least one must have some."""
    present = [factors for factors in experts if factors is not None]
    left_MP = torch.linalg.svd(torch.cat([f.left for f in present], 1).double(), full_matrices=False).U
    right_QN = torch.linalg.svd(torch.cat([f.right for f in present], 0).double(), full_matrices=False).Vh
    zeros_PQ = torch.zeros(left_MP.shape[1], right_QN.shape[0])
    cores = tuple(
        zeros_PQ
        if factors is None
        else (factors.scale * (left_MP.T @ factors.left.double()) @ (factors.right.double() @ right_QN.T)).float()
        for factors in experts
    )
    return CoreBasis(left_MP.float(), right_QN.float().contiguous(), cores)


class CoreSpace:
    """The bases of every adapted tensor, for one engine: each computed when first asked for, and kept."""

    def __init__(self, checkpoints: Mapping[str, Source]) -> None:
        self._checkpoints = checkpoints
        self._bases: dict[tuple[str, tuple[str, ...]], CoreBasis | None] = {}
        self._models: dict[tuple[int, tuple[str, ...]], SourceModel] = {}

    def basis(self, tensor: str, models: Sequence[str]) -> CoreBasis | None:
        """Return the basis of a tensor for the experts among `models`; None when none of them adapts it.

        Raises
        ------
        CheckpointError
            If a model is neither an adapter nor the base of the adapters.
        """
        key = (tensor, tuple(models))
        if key not in self._bases:
            factors = [self._factors(model, models, tensor) for model in models]
            self._bases[key] = core_basis(factors) if any(f is not None for f in factors) else None
        return self._bases[key]

    def origin(self, models: Sequence[str]) -> Source:
        """Return the base that the adapters among `models` share.

        Raises
        ------
        CheckpointError
            If there is no adapter, or two have different bases.
        """
        opened = [self._checkpoints[model] for model in models]
        bases = {id(c.base): c.base for c in opened if isinstance(c, AdapterSource)}
        if len(bases) != 1:
            raise CheckpointError(
                f"{', '.join(models)}: adapters: core needs adapters of one base, and these have {len(bases)}; write "
                "adapters: full, or name adapters of one base"
            )
        return next(iter(bases.values()))

    def _factors(self, model: str, models: Sequence[str], tensor: str) -> Factors | None:
        checkpoint = self._checkpoints[model]
        if isinstance(checkpoint, AdapterSource):
            return checkpoint.factors(tensor)
        if checkpoint is not self.origin(models):
            raise CheckpointError(
                f"{model}: it is not an adapter, and adapters: core merges adapters only; write adapters: full, or "
                "name an adapter"
            )
        return None

    def merge(
        self, method: MergeMethod, plan: TensorPlan, target: Tensor, scratch: Scratch, seed: int
    ) -> CoreTensorMerge | None:
        """Return the merge that fills `target` through core space; None for a tensor that no expert adapts.

        Raises
        ------
        CheckpointError
            If the experts' layers differ, or an expert is not an adapter.
        """
        parts = plan.contributions
        if len({part.tensor for part in (*parts, *((plan.base,) if plan.base else ()))}) > 1:
            raise CheckpointError(
                f"{plan.name}: it is merged from different layers, which have no common core space; give all sources "
                "of a slice one layer_range, or write adapters: full"
            )
        models = [part.model for part in parts]
        origin = self.origin(models)
        if plan.base is not None and self._checkpoints[plan.base.model] is not origin:
            raise CheckpointError(
                f"{plan.base.model}: the adapters' base is {origin.reference}; write base_model: {origin.reference}"
            )
        basis = self.basis(parts[0].tensor, models)
        if basis is None:
            return None
        values = origin.tensor(parts[0].tensor).reshape(-1)
        merged_PQ = torch.empty(basis.cores[0].shape, device=scratch.device)
        core = self._inner(method, plan, basis, merged_PQ, scratch, seed)
        return CoreTensorMerge(core, merged_PQ, basis, values, target, scratch, has_base=plan.base is not None)

    def _inner(
        self, method: MergeMethod, plan: TensorPlan, basis: CoreBasis, merged_PQ: Tensor, scratch: Scratch, seed: int
    ) -> TensorMerge:
        """Return the merge of the core matrices themselves: an ordinary one on small tensors, with base zero."""
        info = TensorInfo(tuple(basis.cores[0].shape))
        cores = [core_PQ.to(scratch.device).reshape(-1) for core_PQ in basis.cores]
        base = torch.zeros_like(cores[0]) if plan.base is not None else None
        prepared = []
        if method.prepare:
            for part, core in zip(plan.contributions, cores, strict=True):
                model = self._model(part, plan)
                prepared.append(method.prepare(SourceTensor(part.tensor, core, base, seed, info, model)))
        return TensorMerge(
            method,
            merged_PQ.view(-1),
            base=base,
            models=cores,
            info=info,
            prepared=prepared,
            shared=method.prepare_all(SourceGroup(tuple(cores), base, info)) if method.prepare_all else None,
        )

    def _model(self, part: Contribution, plan: TensorPlan) -> SourceModel:
        """Return an expert's core matrices, for methods that measure over the whole model: one object for all tensors.

        What is measured is kept in it, so that it is measured once and not for each tensor.
        """
        models = tuple(other.model for other in plan.contributions)
        index = models.index(part.model)

        def pairs() -> Iterator[tuple[Tensor, Tensor | None]]:
            for name in self.origin(models).names:
                basis = self.basis(name, models)
                if basis is not None:
                    core = basis.cores[index].reshape(-1)
                    yield core, torch.zeros_like(core)

        return self._models.setdefault((index, models), SourceModel(pairs))


class CoreTensorMerge(WholeMerge):
    """Fills one parameter: merges the core matrices, expands the result, adds the base."""

    def __init__(
        self,
        core: TensorMerge,
        merged_PQ: Tensor,
        basis: CoreBasis,
        origin: Tensor,
        target: Tensor,
        scratch: Scratch,
        *,
        has_base: bool,
    ) -> None:
        self._core = core
        self._scratch = scratch
        self._merged = merged_PQ
        self._left = basis.left.to(merged_PQ.device)
        self._right = basis.right.to(merged_PQ.device)
        self._origin = origin
        self._target = target
        self._has_base = has_base

    def merge(self, plan: TensorPlan) -> Tensor:
        """Return the merged core matrix, float32[P, Q]; overwritten by the next call.

        Raises
        ------
        CheckpointError
            If the method averages whole weights with shares that do not sum to one.
        """
        if not self._has_base:
            _check_shares(plan)
        for unit in self._core.units(plan, torch.float32):
            unit(self._scratch)
        return self._merged

    def in_core(self, gradient: Tensor) -> tuple[TensorMerge, Tensor]:
        """Return the merge of the core matrices, and a loss's gradient by its result from that by the weight, flat.

        The weight is θ_0 + U_B · M · V_A, so the gradient by M is U_Bᵀ · G · V_Aᵀ.
        """
        gradient_MN = gradient.view(-1, self._right.shape[1]).float()
        return self._core, (self._left.T @ gradient_MN @ self._right.T).reshape(-1)

    def factors(self, plan: TensorPlan) -> Factors:
        """Return the merged task vector as a product of min(P, Q) columns and rows, the heaviest first."""
        u_PK, s_K, vh_KQ = torch.linalg.svd(self.merge(plan), full_matrices=False)
        root_K = s_K.sqrt()
        return Factors(self._left @ (u_PK * root_K), (root_K[:, None] * vh_KQ) @ self._right, 1.0)

    def _run(self, plan: TensorPlan, out_dtype: torch.dtype) -> None:
        left_MQ = self._left @ self.merge(plan)
        columns = self._right.shape[1]
        rows = max(1, EXPANDED // columns)
        for start in range(0, len(left_MQ), rows):
            span = slice(start * columns, min(start + rows, len(left_MQ)) * columns)
            merged = self._origin[span].to(self._target.device, torch.float32).view(-1, columns)
            merged = torch.addmm(merged, left_MQ[start : start + rows], self._right)
            self._target[span].copy_(merged.to(out_dtype).reshape(-1))


def _check_shares(plan: TensorPlan) -> None:
    """Raise an error if shares of whole weights do not sum to one: core space holds task vectors only."""
    if plan.parameters.get("normalize"):
        return
    shares = [part.parameters.get("weight", part.parameters.get("scale")) for part in plan.contributions]
    total = sum(1.0 if share is None else float(share) for share in shares)
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise CheckpointError(
            f"{plan.name}: the models' weights sum to {total:g}, and in core space they must sum to 1; write "
            "normalize: true, or use task_arithmetic"
        )
