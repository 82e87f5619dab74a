"""Worker kinds by the name that a search file gives them; other packages may add theirs."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from evomerge.workers.base import Pool, WorkerFactory, WorkerSettings
from search_spaces.kinds import register_kind
from search_spaces.registry import Registry


class WorkersConfig(Protocol):
    """A worker kind: the `workers` section of a search file, and how its pool is started."""

    kind: Any

    def settings(self) -> WorkerSettings:
        """Return how one worker computes: one in this process with these settings gives the same scores."""

    def start(self, factory: WorkerFactory) -> Pool:
        """Return the workers as a pool, ready to score.

        Raises
        ------
        WorkerError
            If they cannot be started; the message says what to do.
        """


WORKERS: Registry[type[BaseModel]] = Registry("worker kind")
"""The config class of every worker kind that a search file can name."""

ConfigClass = TypeVar("ConfigClass", bound=type[BaseModel])


def register_workers(config: ConfigClass) -> ConfigClass:
    """Register a worker kind under its config's `kind`; see `WorkersConfig` for what the config has.

    Raises
    ------
    ValueError
        If the name is taken, or the class has no kind or lacks a method.
    """
    return register_kind(WORKERS, config, needs=("settings", "start"))
