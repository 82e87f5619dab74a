"""The `workers` section of a search file: one class for each kind, with its settings and how its pool is started."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evomerge.merging.engine.placement import ComputeDtype, SourcePlacement
from evomerge.workers.base import Pool, WorkerError, WorkerFactory, WorkerSettings
from evomerge.workers.registry import register_workers


@register_workers
class InlineConfig(BaseModel):
    """One worker in the process of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["inline"] = "inline"
    device: str = "auto"
    """A torch device (`cpu`, `cuda:0`); `auto`: a GPU if there is one."""
    compute_dtype: ComputeDtype = "auto"
    """What forward passes compute in; `auto`: float32 on a CPU, the merged model's own dtype elsewhere."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch; its own default when absent."""
    placement: SourcePlacement = "auto"
    """Where a GPU's sources are: `device` copied to it, `pinned` in page-locked host memory, `mmap` in their files;
    `auto`: the first that has room. On a CPU always `mmap`."""

    def settings(self) -> WorkerSettings:
        """Return the settings of the worker."""
        return WorkerSettings(self.device, self.compute_dtype, self.threads, self.placement)

    def start(self, factory: WorkerFactory) -> Pool:
        """Return the pool, ready to score."""
        from evomerge.merging.engine.placement import Share
        from evomerge.workers.inline import InlinePool

        return InlinePool(factory.here(self.settings(), Share()))


@register_workers
class RayConfig(BaseModel):
    """Workers in separate processes, on this machine or on a cluster; needs the extra `ray`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["ray"] = "ray"
    count: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto"
    """Number of workers; `auto`: as many as the cluster has room for, more when nodes join and fewer when they
    leave."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """GPUs per worker; 0.25: four workers share one; `auto`: 1 if the cluster has GPUs, else 0. 2: the worker's model
    is split between two, layer by layer; with `fitness.engine: vllm` by vLLM (tensor parallel)."""
    cpus_per_worker: float = Field(default=1, gt=0, le=1024, allow_inf_nan=False)
    """CPUs per worker, and its number of torch threads (at least one); below 1: several workers share a CPU."""
    address: str = Field(default="local", min_length=1)
    """`local`: start Ray on this machine for this search; `auto`: the cluster that this machine belongs to;
    `host:port`: a cluster's head node."""
    max_restarts: int = Field(default=3, ge=0, le=10_000)
    """How many times in a row one worker is restarted that died before it could finish a candidate."""
    timeout: float | None = Field(default=None, gt=0, le=10_000_000, allow_inf_nan=False)
    """Seconds for one candidate, more in proportion if more items are asked; then its worker is replaced, and after a
    second try the candidate fails. None: no limit."""
    compute_dtype: ComputeDtype = "auto"
    """What forward passes compute in; `auto`: float32 on a CPU, the merged model's own dtype elsewhere."""
    placement: SourcePlacement = "auto"
    """As with `kind: inline`; `auto` takes into account that workers share a GPU or a machine."""

    @field_validator("gpus_per_worker", "cpus_per_worker")
    @classmethod
    def _share_or_whole(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value > 1 and value != int(value):
            raise ValueError("above 1 it must be a whole number, such as 2")
        return value

    def settings(self, device: str = "auto") -> WorkerSettings:
        """Return the settings of one worker."""
        threads = max(1, math.floor(self.cpus_per_worker))
        gpus = 1 if isinstance(self.gpus_per_worker, str) else max(1, int(self.gpus_per_worker))
        return WorkerSettings(device, self.compute_dtype, threads, self.placement, gpus)

    def check(self) -> None:
        """Refuse what can be known before Ray is started.

        Raises
        ------
        WorkerError
            If Ray is missing or too old, or this machine has too few GPUs for a worker.
        """
        from evomerge.workers.ray_local import check_installed

        check_installed()
        if self.address == "local" and not isinstance(self.gpus_per_worker, str) and self.gpus_per_worker:
            import torch

            if torch.cuda.device_count() < self.gpus_per_worker:
                raise WorkerError(
                    f"workers: one needs {self.gpus_per_worker:g} GPUs, and this machine has "
                    f"{torch.cuda.device_count()}; lower workers.gpus_per_worker"
                )

    def start(self, factory: WorkerFactory) -> Pool:
        """Return the pool, with a worker that is ready to score."""
        from evomerge.workers.ray_cluster import ClusterSettings, RayCluster
        from evomerge.workers.ray_pool import RayPool
        from evomerge.workers.step_parts import StepPartsPool

        needed = ClusterSettings(self.address, self.count, self.cpus_per_worker, self.gpus_per_worker)
        cluster = RayCluster(needed, self.settings, factory.elsewhere)
        pool = RayPool(cluster, factory.items, count=self.count, timeout=self.timeout, max_restarts=self.max_restarts)
        return StepPartsPool(pool, max(1, cluster.room()) if self.count == "auto" else self.count)
