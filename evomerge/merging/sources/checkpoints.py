"""Checkpoints: opened once, memory-mapped, addressed by the names that the transformers module uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.files.messages import counted, reason
from evomerge.files.references import local_or_hub
from evomerge.merging.sources.architecture import ArchitectureError, Outline, WellKnownOutline, quiet
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import check_numbers, read_json
from evomerge.merging.sources.quantised import quantised_by_files, refuse_quantised
from evomerge.merging.sources.statements import (
    is_text_name,
    left_out,
    refuse_code,
    refuse_other_models,
    text_name,
    text_part,
    usable_generation_config,
)
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from evomerge.merging.sources.weight_files import FLOATS, WeightFiles, is_there
from evomerge.merging.well_known.architectures import well_known_model
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ROTARY = r"rotary_emb\.inv_freq$"  # a buffer that old releases of transformers stored and new ones compute
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md"]
NOT_DOWNLOADED = ["*/*.safetensors", "consolidated*.safetensors"]  # the same weights in the vendor's own format


class Checkpoint:
    """A model in a folder: its configuration, its layout, and its tensors, memory-mapped.

    Attributes
    ----------
    reference
        The recipe's name for it: a folder or a hub id, ``@revision`` appended or not.
    path
        Its folder.
    outline
        What follows from its config.json.
    """

    def __init__(
        self, reference: str, path: Path, *, tied: bool | None = None, trust_remote_code: bool = False
    ) -> None:
        self.reference = reference
        self.path = path
        self._tied = tied  # None: as config.json says
        self._loaded: Mapping[str, Tensor] | None = None
        self._is_text_part = False
        stated = self._read_statements(trust_remote_code)
        known = well_known_model(stated) if tied is None and not trust_remote_code else None
        config = None if known else self._checked_config(trust_remote_code)
        self._files = WeightFiles.open(reference, path)
        if known is not None and known.shapes.keys() == set(self._files):
            self.outline: Outline = WellKnownOutline(known, path)
            self._keys = {name: name for name in self.names}
        else:
            self._build(config or self._checked_config(trust_remote_code), trust_remote_code)
        self._check_types()
        self._check_shapes()
        self._check_tied()

    @classmethod
    def open(cls, reference: str, *, trust_remote_code: bool = False) -> Checkpoint:
        """Open a local folder or a model of the Hugging Face hub.

        Raises
        ------
        CheckpointError
            If there is no such folder or model, it has no safetensors file, or a file is damaged or missing.
        """
        return cls(reference, locate(reference), trust_remote_code=trust_remote_code)

    def retied(self, tied: bool) -> Checkpoint:
        """Return the same model with a head that is tied to the embeddings, or with one of its own.

        Raises
        ------
        CheckpointError
            If the head is to be tied and differs from the embeddings.
        """
        trusted = self.outline.trust_remote_code
        return Checkpoint(self.reference, self.path, tied=tied, trust_remote_code=trusted)

    @property
    def config(self) -> PretrainedConfig:
        """The transformers configuration in config.json."""
        return self.outline.config

    @property
    def layout(self) -> ModelLayout:
        """The tensors by position."""
        return self.outline.layout

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors by the module's names, in the layout's order; tied ones once."""
        return self.layout.tensors()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, memory-mapped: do not write to it.

        Raises
        ------
        CheckpointError
            If the model has no tensor of that name.
        """
        if self._loaded is not None:
            return self._loaded[name]
        return self._files.tensor(self._key(name))

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took; it can be read again."""
        if self._loaded is None:
            self._files.release(self._key(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        if self._loaded is not None:
            return tuple(self._loaded[name].shape)
        return self._files.shape(self._key(name))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every weight without loss: the common one, or a wider one where they differ."""
        # stored buffers have a dtype of their own: a model in bfloat16 has router biases in float32
        result = self._common_dtype(name for name in self.names if name not in self.outline.stored_buffers)
        assert result is not None, "a model has tensors"
        return result

    @cached_property
    def buffer_dtype(self) -> torch.dtype | None:
        """The dtype that holds every stored buffer without loss; None where there are none."""
        return self._common_dtype(self.outline.stored_buffers)

    def _common_dtype(self, names: Iterable[str]) -> torch.dtype | None:
        result: torch.dtype | None = None
        for name in names:
            own = self.tensor(name).dtype
            result = own if result is None else torch.promote_types(result, own)
        return result

    @property
    def merged_in(self) -> None:
        """None: weights are stored."""

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer; None when the checkpoint does not hold one of that name."""
        if self._loaded is not None:
            return self._loaded.get(name)
        return self.tensor(name) if name in self._keys else None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted by name."""
        return tuple(sorted(set(self._files.paths.values())))

    @property
    def files(self) -> tuple[Path, ...]:
        """config.json and the safetensors files."""
        return (self.path / "config.json", *self.weight_files)

    @property
    def tokenizer(self) -> TokenizerFolder:
        """The model's own tokenizer."""
        return TokenizerFolder(self.reference, self.path, self.outline.trust_remote_code)

    def generation_config(self) -> dict[str, Any] | None:
        """Return generation_config.json without settings that have no effect; None when there is none."""
        return None if self._generation is None else dict(self._generation[0])

    @property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for each statement of the folder that a merge does not take over."""
        dropped = () if self._generation is None else self._generation[1]
        lines = left_out(self.path, dropped, is_text_part=self._is_text_part)
        if self._tied is not False:
            return lines
        return (*lines, "its head is its embedding matrix, and a merge has a head of its own, as another model has")

    @cached_property
    def _generation(self) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """The contents of generation_config.json, and the settings that were removed from it."""
        path = self.path / "generation_config.json"
        if not path.is_file():
            return None
        try:
            values = read_json(path)
        except ValueError as error:
            raise CheckpointError(
                f"{self.reference}: generation_config.json is damaged ({reason(error)}); remove it"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.reference}: generation_config.json does not contain a mapping; remove it")
        return usable_generation_config(self.reference, values)

    def _build(self, config: PretrainedConfig, trust_remote_code: bool) -> None:
        """Find out what follows from the configuration by building the module without weights."""
        part = text_part(config, self._files)
        self._is_text_part = part is not None
        config = part or config
        if self._tied is not None:
            config.tie_word_embeddings = self._tied
        self.outline = self._build_outline(config, trust_remote_code)
        self._keys = self._match_names()

    def _build_outline(self, config: PretrainedConfig, trust_remote_code: bool) -> Outline:
        try:
            return Outline(config, trust_remote_code=trust_remote_code)
        except ArchitectureError as error:
            raise CheckpointError(f"{self.reference}: {error}") from error

    def _read_statements(self, trust_remote_code: bool) -> Any:
        """Return the contents of config.json, without what cannot be merged."""
        if not is_there(self.reference, self.path / "config.json"):
            raise CheckpointError(f"{self.reference}: the folder has no config.json; {_other_folder(self.path)}")
        try:
            values = read_json(self.path / "config.json")
            check_numbers(values)
            if isinstance(values, dict):
                refuse_quantised(self.reference, values)
                if not trust_remote_code:
                    refuse_code(self.reference, values)
        except CheckpointError:
            raise
        except Exception as error:  # ValueError, OSError, and others for values of wrong types
            raise self._unreadable(error) from error
        return values

    def _checked_config(self, trust_remote_code: bool) -> PretrainedConfig:
        """Return the configuration as transformers reads it, if it is a decoder-only text model's."""
        from transformers import AutoConfig

        try:
            with quiet():
                config: PretrainedConfig = AutoConfig.from_pretrained(self.path, trust_remote_code=trust_remote_code)
        except Exception as error:  # ValueError, KeyError, OSError, validation errors of the config classes
            raise self._unreadable(error) from error
        refuse_other_models(self.reference, config)
        return config

    def _unreadable(self, error: Exception) -> CheckpointError:
        why = reason(error, self.path / "config.json")
        return CheckpointError(
            f"{self.reference}: config.json cannot be read ({why}); check the file, or update transformers"
        )

    def _match_names(self) -> dict[str, str]:
        """Map the module's names to the checkpoint's keys, as transformers does when it loads.

        Where the weights themselves must be rearranged (experts to fuse, rows to split), transformers loads the model,
        and it stays in memory.
        """
        prefix = self.outline.module.base_model_prefix
        wanted = set(self.outline.module.state_dict())
        keys: dict[str, str] = {}
        for key in self._files:
            bare = text_name(key) if self._is_text_part else key
            for name in (bare, bare.removeprefix(f"{prefix}."), f"{prefix}.{bare}"):
                if name in wanted:
                    if name in keys:
                        raise CheckpointError(
                            f"{self.reference}: the files contain {name} twice, as {keys[name]} and {key}; remove one"
                        )
                    keys[name] = key
                    break
        renamed = _renamer(self.outline.module)
        for key in set(self._files) - set(keys.values()):
            name = renamed(key)
            if name in wanted:
                keys.setdefault(name, key)
        for other, canonical in self.outline.tied_names.items():
            if canonical not in keys and other in keys:
                keys[canonical] = keys[other]
        held_once = self._tied is False and self.layout.head not in keys
        if held_once and self.outline.embeddings in keys:
            keys[str(self.layout.head)] = keys[self.outline.embeddings]
        missing = [name for name in self.names if name not in keys]
        unused = self._unused(set(keys.values()))
        if missing:
            self._loaded = self._load(missing[0], unused)
        elif unused:
            raise CheckpointError(f"{self.reference}: {self._why_unused(unused)}")
        return keys

    def _unused(self, used: set[str]) -> list[str]:
        """Return the keys that the model has no place for, without those that its architecture ignores."""
        if self._is_text_part:  # all that belongs to images or sound stays out
            return sorted(key for key in self._files if key not in used and is_text_name(key))
        patterns = [_ROTARY, *(self.outline.module._keys_to_ignore_on_load_unexpected or ())]
        buffers = {name for name, _ in self.outline.module.named_buffers()}  # also those that are not stored
        unused = (key for key in self._files if key not in used and not any(re.search(p, key) for p in patterns))
        prefix = self.outline.module.base_model_prefix
        return sorted(key for key in unused if not {key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")} & buffers)

    def _why_unused(self, unused: list[str]) -> str:
        quantised = quantised_by_files(self.path, unused)
        if quantised is not None:
            return f"config.json does not describe how its weights are stored, but {quantised}"
        others = f" and {counted(len(unused) - 1, 'other')}" if len(unused) > 1 else ""
        return (
            f"its files contain {unused[0]}{others}, for which {self.outline.architecture} has no place, so a merge "
            "would lose it; use the config.json that was saved with the weights, or save the model again with "
            "transformers"
        )

    def _load(self, missing: str, unused: list[str]) -> Mapping[str, Tensor]:
        quantised = quantised_by_files(self.path, unused)
        if quantised is not None:
            raise CheckpointError(
                f"{self.reference}: config.json does not describe how its weights are stored, but {quantised}"
            )
        absent = f"{self.reference}: the weight files have no tensor for {missing}; {self._why_missing(missing)}"
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        kind = AutoModelForImageTextToText if self._is_text_part else AutoModelForCausalLM
        try:
            with quiet():
                module, info = kind.from_pretrained(
                    self.path,
                    dtype="auto",
                    output_loading_info=True,
                    use_safetensors=True,  # or pickles would be read when they are beside
                    trust_remote_code=self.outline.trust_remote_code,
                )
        except Exception as error:  # OSError, RuntimeError, ValueError, ... for files that transformers does not take
            raise CheckpointError(f"{absent} (transformers says: {reason(error)})") from error
        # a model that was saved without its router biases has those that transformers starts with
        if set(info["missing_keys"]) - self.outline.stored_buffers or info["mismatched_keys"]:
            raise CheckpointError(absent)
        if info["unexpected_keys"]:
            raise CheckpointError(f"{self.reference}: {self._why_unused(sorted(info['unexpected_keys']))}")
        state: dict[str, Tensor] = module.state_dict()
        if self._is_text_part:
            state = {text_name(name): values for name, values in state.items() if is_text_name(name)}
        if not state.keys() >= set(self.names):
            raise CheckpointError(absent)
        return state

    def _why_missing(self, missing: str) -> str:
        if missing == self.layout.head:
            return (
                "set tie_word_embeddings to true in config.json if its head is the embedding matrix, or download the "
                "model again"
            )
        return "download the model again, or use the config.json that was saved with these weights"

    def _check_types(self) -> None:
        """Refuse weights that are not floating-point numbers: codes of a quantiser, truth values, complex numbers."""
        for name in self.names:
            if self._loaded is not None:
                fits, kind = self._loaded[name].dtype in _FLOAT_DTYPES, str(self._loaded[name].dtype)
            else:
                kind = self._files.kind(self._keys[name])
                fits = kind in FLOATS
            if not fits:
                hint = quantised_by_files(self.path, list(self._files))
                raise CheckpointError(
                    f"{self.reference}: {name} is stored as {kind}, and a merge needs weights in float16, bfloat16, "
                    f"float32 or float64; {hint or 'name the model that it was converted from'}"
                )

    def _check_shapes(self) -> None:
        """Refuse weights that do not have the shapes that config.json gives."""
        wanted = self.outline.shapes
        for name in self.names:
            if self.shape(name) != wanted[name]:
                raise CheckpointError(
                    f"{self.reference}: {name} has shape {list(self.shape(name))}, but config.json requires "
                    f"{list(wanted[name])}; use the config.json that was saved with the weights"
                )

    def _check_tied(self) -> None:
        """Refuse a head that the configuration ties to the embeddings and that differs from them in the file.

        transformers loads such a head as its own parameter, and mergekit's output loses it.
        """
        for other, canonical in self.outline.tied_names.items():
            key = self._keys.get(other)
            if self._loaded is None and key is not None and key != self._keys[canonical]:
                head, embeddings = self._files.tensor(key), self.tensor(canonical)
                if head.shape != embeddings.shape or not torch.equal(head, embeddings):
                    raise CheckpointError(
                        f"{self.reference}: {other} differs from {canonical}, but config.json ties them; "
                        "set tie_word_embeddings to false there"
                    )

    def _key(self, name: str) -> str:
        try:
            return self._keys[name]
        except KeyError:
            raise CheckpointError(
                f"{self.reference}: it has no tensor {name}; its names look like {self.names[0]}"
            ) from None


def _other_folder(path: Path) -> str:
    """Return what to name instead of a folder without config.json."""
    snapshots = sorted(path.glob("snapshots/*/config.json"))
    if snapshots:
        return f"it is a model's folder in the hub's cache: name {snapshots[-1].parent}, or its hub id"
    return "name a transformers checkpoint"


def locate(reference: str) -> Path:
    """Return the folder of a checkpoint or adapter on this disk, or downloaded from the hub.

    Raises
    ------
    CheckpointError
        If there is no such folder, and the hub has no such model or cannot be reached.
    """
    place = local_or_hub(reference)
    if isinstance(place, str):
        return _download(place)
    if not place.is_dir():
        raise CheckpointError(f"{reference}: no such folder; name a model folder or a hub id like org/name")
    return place


def _download(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED
            )
        )
    except Exception as error:  # HTTP errors, LocalEntryNotFoundError, OfflineModeIsEnabled, ...
        raise CheckpointError(
            f"{reference}: no such folder, and the hub did not give a model of that name ({reason(error)}); "
            "check the name and the connection, or download it first"
        ) from error


def _renamer(module: PreTrainedModel) -> Callable[[str], str]:
    """Return a function from a key to its name in the module; transformers renames some keys (GPT-NeoX's embed_out)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # some releases of transformers 5 lack these
        return lambda key: key
    renamings = [rule for rule in get_model_conversion_mapping(module) if isinstance(rule, WeightRenaming)]
    prefix, names = module.base_model_prefix, module.state_dict()
    return lambda key: str(rename_source_key(key, renamings, [], prefix, names)[0])
