"""The safetensors files of a model's folder: which of them count, and what tensors they hold."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.files.messages import reason
from evomerge.files.pages import advise
from evomerge.merging.sources.adapters import WEIGHTS as ADAPTER_WEIGHTS
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import LimitError, check_header, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors writes the types of weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class WeightFiles:
    """Opened safetensors files; headers are read, weights are not.

    Attributes
    ----------
    paths
        The file that holds each key.
    """

    paths: Mapping[str, Path]
    _opened: Mapping[Path, Any]

    @classmethod
    def open(cls, reference: str, folder: Path) -> WeightFiles:
        """Open the files that transformers would load.

        Raises
        ------
        CheckpointError
            If there is none, one is damaged or missing, or two hold tensors of one name.
        """
        opened: dict[Path, Any] = {}
        paths: dict[str, Path] = {}
        named = _named_in_index(reference, folder)
        for path in _shards(reference, folder, named):
            opened[path] = _open(reference, path)
            for key in opened[path].keys():  # noqa: SIM118 - safetensors' file is not a mapping
                if key in paths:
                    raise CheckpointError(
                        f"{reference}: {key} is in {paths[key].name} and in {path.name}; "
                        "remove the file that is not the model's"
                    )
                paths[key] = path
        lost = sorted(named.keys() - paths.keys())
        if lost:
            raise CheckpointError(
                f"{reference}: {INDEX} lists {lost[0]} in {named[lost[0]]}, which does not contain it; download the "
                "model again"
            )
        return cls(paths, opened)

    def __contains__(self, key: object) -> bool:
        return key in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def tensor(self, key: str) -> Tensor:
        """Return a tensor, memory-mapped: do not write to it."""
        values: Tensor = self._opened[self.paths[key]].get_tensor(key)
        return values

    def release(self, key: str) -> None:
        """Give back the pages of memory that reading a tensor took; it can be read again."""
        values = self.tensor(key)
        advise(values.data_ptr(), values.nbytes, "MADV_DONTNEED")

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return tuple(self._opened[self.paths[key]].get_slice(key).get_shape())

    def kind(self, key: str) -> str:
        """Return a tensor's type as safetensors writes it: F32, BF16, F8_E4M3, ..."""
        return str(self._opened[self.paths[key]].get_slice(key).get_dtype())


def _open(reference: str, path: Path) -> Any:
    try:
        check_header(path)
        return safe_open(path, framework="pt")
    except (SafetensorError, LimitError, OSError) as error:
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM):
            raise CheckpointError(
                f"{reference}: {path.name} cannot be read ({reason(error, path)}); check its permissions"
            ) from error
        raise CheckpointError(
            f"{reference}: {path.name} is damaged or cut short ({reason(error, path)}); download or save it again"
        ) from error


def _named_in_index(reference: str, folder: Path) -> dict[str, str]:
    """Return the index's file for each tensor; nothing where there is none, or a single file counts before it."""
    index = folder / INDEX
    if is_there(reference, folder / SINGLE) or not is_there(reference, index):
        return {}
    try:
        named = read_json(index)["weight_map"]
        valid = isinstance(named, dict) and all(isinstance(name, str) and name for name in named.values())
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise CheckpointError(f"{reference}: {INDEX} is damaged; save the model again")
    # names alone: an index cannot point out of its folder
    return {key: Path(name).name for key, name in named.items()}


def _shards(reference: str, folder: Path, named: Mapping[str, str]) -> list[Path]:
    """Return the files that transformers would load: the single file before the index."""
    if is_there(reference, folder / SINGLE):
        return [folder / SINGLE]
    if named:
        paths = [folder / name for name in sorted(set(named.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{reference}: shard {missing[0]} is missing ({len(missing)} of {len(paths)}); "
                "download the rest of the model"
            )
        return paths
    paths = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    if paths:
        return [path for path in paths if is_there(reference, path)]
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise CheckpointError(
            f"{reference}: its weights are pickled, which can run code when they are read; convert them to "
            'safetensors with AutoModelForCausalLM.from_pretrained("...").save_pretrained("NEW")'
        )
    raise CheckpointError(f"{reference}: the folder has no safetensors file; name a transformers checkpoint")


def is_there(reference: str, path: Path) -> bool:
    """Whether there is such a file; a link to a file that is gone (an interrupted download) is an error."""
    if path.is_file():
        return True
    if path.is_symlink():
        raise CheckpointError(
            f"{reference}: {path.name} is a link to a file that is not there; download the model again"
        )
    return False
