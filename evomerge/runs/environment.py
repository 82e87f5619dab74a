"""What `RUN/environment.json` holds: versions of packages, and the identity of all that scores follow from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.files.messages import reason
from evomerge.runs.log_file import MAX_CELL, LogError
from evomerge.version import VERSION
from fitness.tasks.identity import TaskIdentity
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.genes import Choice, Gene, Integer, Real

CHECKSUM = "checksum"
"""Key of the hash of everything else in the file but the versions, which are compared for warnings alone."""
MOST_GENES = 20_000
"""Genes that are recorded; spaces of raw weights have millions, which are not read by name."""
_VERSIONS = ("evomerge", "packages")


class FileIdentity(BaseModel):
    """Size and hash of a source's file; the hash covers its `contents` or, where it is large, `samples` of them.

    `merged_in` is the dtype that an adapter's sum with its base is rounded to; None if it is not rounded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: int
    sha256: str
    covers: Literal["contents", "samples"]
    merged_in: str | None = None


class GeneRecord(BaseModel):
    """One gene of the space that is searched, as far as its coordinates are read with it.

    Attributes
    ----------
    low, high
        Of real numbers and integers: the least and the largest value.
    options
        Of choices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["real", "integer", "choice"]
    low: float = 0.0
    high: float = 0.0
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, gene: Gene) -> GeneRecord:
        """Return the record of a gene."""
        if isinstance(gene, Choice):
            return cls(name=gene.name, kind="choice", options=gene.options)
        if isinstance(gene, Integer):
            return cls(name=gene.name, kind="integer", low=gene.smallest, high=gene.largest)
        return cls(name=gene.name, kind="real", low=gene.low, high=gene.high)

    def gene(self) -> Gene:
        """Return the gene, without its start and its prior."""
        if self.kind == "choice":
            return Choice(self.name, self.options, self.options[0])
        if self.kind == "integer":
            return Integer(self.name, int(self.low), int(self.high), int(self.low))
        return Real(self.name, self.low, self.high, self.low)


class Environment(BaseModel):
    """The versions of all packages that affect numbers, and the identity of a search.

    Attributes
    ----------
    evomerge, packages
        Versions.
    config
        The search file's values that two sessions must share, with hashes in place of paths to files.
    items
        Task name to its identity.
    earlier
        Keys of the questions that the searches before this one have seen: of its warm start, and of the recipe at which
        it starts.
    references
        Model name to its reference when the run began; recipes are hashed with these.
    sources, tokenizers
        Model name to its files' identity, by file name.
    chat_template
        Hash of the chat template that prompts are formatted with; empty where none is used.
    compute_dtype
        What forward passes compute in; `auto` where that is known to the workers alone.
    layout, sizes
        The models' tensors.
    chosen
        What `strategy: auto` was taken to mean, and why; empty if the search file names a strategy.
    genes
        What a genotype's coordinates are, for other programs; empty for spaces with more than `MOST_GENES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    evomerge: str = ""
    packages: dict[str, str] = {}
    config: dict[str, Any] = {}
    items: dict[str, TaskIdentity] = {}
    earlier: str = ""
    references: dict[str, str] = {}
    sources: dict[str, dict[str, FileIdentity]] = {}
    tokenizers: dict[str, dict[str, str]] = {}
    chat_template: str = ""
    compute_dtype: str = ""
    layout: ModelLayout = ModelLayout((), (), "", ())
    sizes: dict[str, int] = {}
    chosen: str = ""
    genes: tuple[GeneRecord, ...] = ()

    @property
    def seen(self) -> frozenset[str]:
        """Keys of all questions that the recipes of this run were searched on, those of earlier runs included."""
        own = (task.seen for task in self.items.values())
        return frozenset(self.earlier.split()).union(*own)


def to_json(environment: Environment | Mapping[str, Any]) -> str:
    """Return the text of the file, with a checksum."""
    values = environment.model_dump(mode="json") if isinstance(environment, Environment) else dict(environment)
    return json.dumps({CHECKSUM: _checksum(values)} | values, indent=1) + "\n"


def read(file: Path) -> Environment:
    """Return what the file holds.

    Raises
    ------
    LogError
        If it is missing or damaged.
    """
    otherwise = "restore it from a backup, or start a new run"
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is not a regular file")
        if file.stat().st_size > MAX_CELL:
            raise ValueError(f"it is larger than {MAX_CELL:,} bytes")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop(CHECKSUM, None) != _checksum(values):
            raise ValueError("it is not as it was written")
        return Environment.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if values.get("evomerge") != VERSION:  # with a checksum that is right
            otherwise = f"use evomerge {values.get('evomerge')}, which wrote it (this is {VERSION})"
    except (OSError, ValueError, RecursionError) as error:
        why = reason(error, file)
    raise LogError(f"{file} cannot be read ({why}); {otherwise}")


def _checksum(values: Mapping[str, Any]) -> str:
    identity = {key: value for key, value in values.items() if key not in _VERSIONS}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
