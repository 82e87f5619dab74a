"""The protocol of a model to merge, and functions for any such model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from evomerge.files.hashing import sha256, sha256_of_samples
from evomerge.merging.sources.architecture import Outline
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONTENT_LIMIT = 1 << 30  # bytes; larger weight files are fingerprinted by samples
_INCIDENTAL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures")


class Source(Protocol):
    """A model that is merged: a checkpoint, an adapter on its base, or either of them in another vocabulary.

    Three classes implement it, each on its own: `Checkpoint`, `AdapterSource` and `AlignedSource`. The last two hold
    the source that they change. Tensors have the names that the transformers module uses, tied ones once.
    """

    @property
    def reference(self) -> str:
        """The recipe's name for it: a folder or a hub id, ``@revision`` appended or not, or a model with an adapter."""

    @property
    def path(self) -> Path:
        """The folder of its own files."""

    @property
    def outline(self) -> Outline:
        """All that follows from its configuration."""

    @property
    def config(self) -> PretrainedConfig:
        """Its transformers configuration."""

    @property
    def layout(self) -> ModelLayout:
        """Its tensors by position."""

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the layout's order."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that a checkpoint of this model is stored in."""

    @property
    def buffer_dtype(self) -> torch.dtype | None:
        """The dtype of its stored buffers (see `StoredBuffer`); None where there are none."""

    @property
    def merged_in(self) -> torch.dtype | None:
        """The dtype that the sums of a base and an adapter are rounded to; None for stored weights."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, perhaps memory-mapped: do not write to it.

        Raises
        ------
        CheckpointError
            If the model has no tensor of that name.
        """

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took; it can be read again."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer; None when the source does not hold one of that name."""

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Its own safetensors files, sorted by name."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide the weights."""

    @property
    def tokenizer(self) -> TokenizerFolder:
        """The folder of its tokenizer, which may hold none."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for each statement of its folder that a merge does not take over."""

    def generation_config(self) -> dict[str, Any] | None:
        """Return generation_config.json without settings that have no effect; None when there is none.

        Raises
        ------
        CheckpointError
            If the file is damaged, or transformers does not accept its settings.
        """


def all_finite(values: Tensor) -> bool:
    """Whether no entry is infinite or NaN, at the speed of reading.

    A sum is infinite or NaN if any entry is. It is, too, where finite entries add up to more than the dtype holds; then
    the extremes tell, which take twice as long and are NaN if any entry is.
    """
    if bool(values.sum().isfinite()):
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def with_buffers(dtype: torch.dtype, source: Source) -> torch.dtype:
    """Return the dtype of stored buffers (see `StoredBuffer`) in a model of `dtype`: never less than `source` has.

    transformers, too, keeps router biases in float32 where the weights are bfloat16.
    """
    return dtype if source.buffer_dtype is None else torch.promote_types(dtype, source.buffer_dtype)


def fingerprint(source: Source) -> dict[str, Any]:
    """Return what identifies a source's weights: file sizes and hashes, and the hub revision where there is one.

    Files are hashed whole when they are 1 GiB together or less (``covers: contents``). Of larger ones, 64 samples of
    1 MiB are hashed (``covers: samples``): this tells two fine-tunes apart, but does not notice a single changed entry.
    An adapter's weights have the dtype that they are merged in, too (``merged_in``), if it rounds them.
    """
    whole = sum(path.stat().st_size for path in source.files) <= CONTENT_LIMIT
    files: dict[str, dict[str, Any]] = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": sha256(path) if whole else sha256_of_samples(path),
            "covers": "contents" if whole else "samples",
        }
        for path in source.files
    }
    if source.merged_in in (torch.float16, torch.bfloat16):
        files[source.weight_files[0].name]["merged_in"] = str(source.merged_in).removeprefix("torch.")
    result: dict[str, Any] = {"reference": source.reference, "files": files}
    if source.path.parent.name == "snapshots":
        result["revision"] = source.path.name
    return result


def architecture_key(source: Source, config: PretrainedConfig) -> str:
    """Return text that is equal for two models exactly when one module can serve both.

    `config` is the source's, or one derived from it by reordering layers.
    """
    values = {name: value for name, value in config.to_dict().items() if name not in _INCIDENTAL}
    return json.dumps([values, source.generation_config()], sort_keys=True, default=str)
