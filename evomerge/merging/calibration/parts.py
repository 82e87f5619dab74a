"""Statistics on disk: a folder of safetensors files, one for each part, so that memory holds one part at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Statistics: TypeAlias = Mapping[str, Tensor]
"""By the tensor's name in the module; by `WHOLE` what belongs to every tensor of the model."""

WHOLE = "model"


@dataclass(frozen=True)
class Part:
    """Some of a model's statistics.

    Attributes
    ----------
    values
        By the tensor's name.
    same
        Names of further tensors, with the name of the one whose values they share.
    """

    values: Mapping[str, Tensor]
    same: Mapping[str, str] = field(default_factory=dict)


def write(folder: Path, parts: Iterable[Part]) -> None:
    """Write each part as soon as it is there."""
    for number, part in enumerate(parts):
        values = {name: tensor.contiguous() for name, tensor in part.values.items()}
        save_file(values, folder / f"{number:04}.safetensors", {"same": json.dumps(dict(part.same))})


def load(folder: Path) -> Statistics:
    """Return what `write` wrote, memory-mapped: it takes no more memory than is read of it."""
    found: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(folder)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is not a mapping
            found |= {name: found[other] for name, other in json.loads(opened.metadata()["same"]).items()}
    return found
