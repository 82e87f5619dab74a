"""Ray behind the few calls that the pool needs; the only module that imports Ray."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from evomerge.files.messages import one_line
from evomerge.merging.engine.placement import Share
from evomerge.workers.base import BrokenWorker, Request, Worker, WorkerError, WorkerSettings
from evomerge.workers.ray_actor import Actor
from evomerge.workers.ray_local import MODE, TOKEN, TOKEN_PATH, LocalRay, check_installed, keep_private
from evomerge.workers.ray_pool import Handle, Reference, WorkerDied

OBJECT_STORE = 100 * 2**20
"""Bytes of a local object store: it holds recipes and scores, never weights."""
UNGUARDED = (
    "this machine has no token for the cluster, and without one everybody who can connect can run code on its "
    "machines; make one with `ray get-auth-token --generate` and give it to every node (docs/scaling.md), or set "
    "RAY_AUTH_MODE=disabled in a network that nobody else can reach"
)
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no internet
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning per worker without a GPU
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else messages about dead workers go to standard output, which may be JSON
}


@dataclass(frozen=True)
class ClusterSettings:
    """Where workers run and what each needs; see `RayConfig` for the values.

    Attributes
    ----------
    address
        Of the cluster; ``local``: Ray is started on this machine.
    count
        Number of workers; ``auto``: as many as there is room for.
    cpus, gpus
        Per worker; GPUs may be ``auto``.
    """

    address: str
    count: int | Literal["auto"]
    cpus: float
    gpus: float | Literal["auto"]


class RayCluster:
    """A connection to Ray, and how workers are made there.

    Parameters
    ----------
    cluster
        Where workers run and what each needs.
    settings
        Returns how a worker computes on a torch device.
    start_worker
        Makes a worker in the process that calls it; it can be pickled.

    Raises
    ------
    WorkerError
        If Ray is missing, or there is no cluster at the address, or no room for a single worker on this machine.
    """

    def __init__(
        self,
        cluster: ClusterSettings,
        settings: Callable[[str], WorkerSettings],
        start_worker: Callable[[WorkerSettings, Share], Worker],
    ) -> None:
        self._settings = cluster
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        check_installed()
        self._local: LocalRay | None = None
        if cluster.address == "local":
            self._local = LocalRay()
        elif _has_token():
            os.environ.setdefault(MODE, "token")  # read when Ray is imported
        elif os.environ.get(MODE) != "disabled":
            print(f"warning: workers.address {cluster.address!r}: {UNGUARDED}", file=sys.stderr)
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect()
        self._gpus = self._gpus_per_worker()
        if cluster.address == "local" and not self.room():
            self.close()
            raise WorkerError(
                f"workers: one needs {cluster.cpus:g} CPUs and {self._gpus:g} GPUs, and this machine "
                "has fewer; lower workers.cpus_per_worker or workers.gpus_per_worker"
            )
        how = settings("cuda" if self._gpus else "cpu")
        self._actor = ray.remote(concurrency_groups={"control": 1})(Actor).options(
            num_cpus=cluster.cpus,
            num_gpus=self._gpus,
            max_restarts=0,  # the pool starts workers again, and gives their candidates to others
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": _worker_variables(cluster.address, how.threads)},
        )
        share = share_of(max(self._room_by_node(), default=1), cluster.count, self._gpus)
        # Once in the object store, and not with every start.
        self._start_worker = ray.put(partial(start_worker, how, share))

    def room(self) -> int:
        """Sum over the living nodes of the workers that each holds."""
        return sum(self._room_by_node())

    def _room_by_node(self) -> list[int]:
        cpus = self._settings.cpus
        return [workers_on(node["Resources"], cpus, self._gpus) for node in self._ray.nodes() if node["Alive"]]

    def start(self, number: int) -> tuple[Handle, Reference]:
        """Ask for an actor; Ray places it when there is room."""
        worker = self._actor.remote(self._start_worker)
        return worker, worker.open.remote()

    def evaluate(self, worker: Handle, request: Request) -> Reference:
        """Have a worker score a recipe."""
        return worker.evaluate.remote(request)

    def heartbeat(self, worker: Handle) -> Reference:
        """Ask a worker what it is doing, in the thread that is kept for this."""
        return worker.heartbeat.options(concurrency_group="control").remote()

    def wait(self, references: Sequence[Reference], timeout: float) -> list[Reference]:
        """Return what is ready."""
        if not references:
            return []
        ready: list[Reference]
        ready, others = self._ray.wait(list(references), num_returns=1, timeout=timeout)
        if ready and others:  # Ray returns no more than it was asked for
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ready += more
        return ready

    def result(self, reference: Reference) -> Any:
        """Return a result; raise `WorkerDied` for a worker that died and `WorkerError` for one that cannot continue."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, BrokenWorker) or not isinstance(error.cause, WorkerError):
                raise WorkerDied(one_line(error.cause)) from None
            raise error.cause from None
        except errors.RayError as error:
            raise WorkerDied(one_line(error)) from None

    def kill(self, worker: Handle) -> None:
        """End a worker's process."""
        if worker is not None and self._ray.is_initialized():
            self._ray.kill(worker, no_restart=True)

    def close(self) -> None:
        """Leave the cluster, unless it was joined before we came; a cluster that we started ends with that."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()
        if self._local is not None:
            self._local.close()

    def _connect(self) -> None:
        address = self._settings.address
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._local is not None:
            count = 1 if self._settings.count == "auto" else self._settings.count
            needed = math.ceil(count * self._settings.cpus)
            options |= {
                "include_dashboard": False,
                "_temp_dir": str(self._local.folder),
                "object_store_memory": OBJECT_STORE,
                "num_cpus": max(needed, os.cpu_count() or 1),
            }
        ending = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=address, **options)
        except Exception as error:  # Ray raises a bare one where a node takes more than 30 s to start
            if self._local is not None:
                self._local.close()
                raise WorkerError(
                    f"workers: Ray did not start on this machine ({one_line(error)}); try again when it is less busy, "
                    "or write workers.kind: inline"
                ) from None
            raise WorkerError(
                f"workers.address {address!r}: Ray cannot be reached ({one_line(error)}); start it there with `ray "
                "start --head`, copy that machine's ~/.ray/auth_token to this one if it has one, or write local"
            ) from None
        finally:
            if callable(ending) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ending)  # Ray's own prints the stack and aborts the process

    def _gpus_per_worker(self) -> float:
        if self._settings.gpus == "auto":
            return 1.0 if self._ray.cluster_resources().get("GPU", 0) else 0.0
        return self._settings.gpus


def workers_on(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers fit on a node; shares of a GPU never straddle two."""
    room = math.floor(resources.get("CPU", 0) / cpus + 1e-9)
    if gpus:
        devices = resources.get("GPU", 0)
        by_gpu = devices * math.floor(1 / gpus + 1e-9) if gpus <= 1 else devices // gpus
        room = min(room, math.floor(by_gpu))
    return room


def share_of(workers: int, count: int | str, gpus: float) -> Share:
    """Return what one worker may take of a GPU's memory and of a node's, where a node holds so many workers."""
    beside = workers if isinstance(count, str) else min(workers, count)
    return Share(device=min(1.0, gpus) if gpus else 1.0, host=1 / max(1, beside))


def _worker_variables(address: str, threads: int | None) -> dict[str, str]:
    """Return the environment of workers: the driver's search path, and as many threads as CPUs."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {"OMP_NUM_THREADS": str(threads or 1)} | ({"PYTHONPATH": path} if address == "local" else {})


def _has_token() -> bool:
    """Tell whether there is a token for Ray clusters, where Ray looks for it.

    `ray start --head` asks for the token of everyone once there is one; `ray.init` shows it to a cluster that it finds
    by itself, and not to one that is given by its address. Clusters without a token take those who have one, too.
    """
    if TOKEN in os.environ or TOKEN_PATH in os.environ:
        return True
    try:
        token = Path.home() / ".ray" / "auth_token"
    except RuntimeError:  # a user without a home, as in some containers
        return False
    keep_private(token)
    return token.is_file()
