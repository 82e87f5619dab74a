"""Source checkpoints: opened once, memory-mapped, addressed by the names that the module itself uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from evomerge.files.hashing import sha256, sha256_of_samples
from evomerge.files.messages import reason
from evomerge.files.references import local_or_hub
from evomerge.merging.sources.architecture import (
    ArchitectureError,
    layout_of,
    layout_of_module,
    meta_module,
    quiet,
    tied_names,
)
from evomerge.merging.sources.limits import LimitError, check_counts, check_header, read_json
from search_spaces.recipes.layout import ModelLayout

__all__ = ["Checkpoint", "CheckpointError", "layout_of"]

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
)
_INCIDENTAL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures")
CONTENT_LIMIT = 1 << 30  # bytes; larger weight files are fingerprinted by their header and samples


class CheckpointError(ValueError):
    """A source checkpoint that cannot be used; one line that says what to do."""


class Checkpoint:
    """A model on disk: configuration, layout and memory-mapped tensors.

    Attributes
    ----------
    reference
        What the recipe calls it: a folder or a hub id, ``@revision`` appended or not.
    path
        The folder it lies in.
    config
        Its transformers configuration.
    layout
        Its tensors by position.
    tied
        Whether the output projection is the embedding matrix.
    trust_remote_code
        Whether code from the checkpoint's folder may run; off unless asked for.
    """

    def __init__(self, reference: str, path: Path, *, trust_remote_code: bool = False) -> None:
        self.reference = reference
        self.path = path
        self.trust_remote_code = trust_remote_code
        self.config = self._read_config()
        self._module = self._build()
        self.layout: ModelLayout = layout_of_module(self._module)
        self.tied = bool(tied_names(self._module))
        self._files = self._open_files()
        self._keys = self._match_names()
        self._check_shapes()
        self._check_tied()

    @classmethod
    def open(cls, reference: str, *, trust_remote_code: bool = False) -> Checkpoint:
        """Open a local folder or a model of the Hugging Face hub.

        Raises
        ------
        CheckpointError
            If there is no such folder or model, it holds no safetensors, or a file is damaged or missing.
        """
        return cls(reference, locate(reference), trust_remote_code=trust_remote_code)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors by the module's names, in the layout's order; tied ones once."""
        return self.layout.tensors()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, memory-mapped: not to be written to.

        Raises
        ------
        CheckpointError
            If the model has no tensor of that name.
        """
        if self._loaded is not None:
            return self._loaded[name]
        key = self._key(name)
        return self._files[key].get_tensor(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        if self._loaded is not None:
            return tuple(self._loaded[name].shape)
        key = self._key(name)
        return tuple(self._files[key].get_slice(key).get_shape())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every tensor without loss: the common one, or the wider where they differ."""
        result: torch.dtype | None = None
        for name in self.names:
            own = self.tensor(name).dtype
            result = own if result is None else torch.promote_types(result, own)
        assert result is not None
        return result

    @property
    def architecture(self) -> str:
        """Class of the causal language model, such as LlamaForCausalLM."""
        return type(self._module).__name__

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(self._module.get_parameter(name).numel() for name in self.names)

    @cached_property
    def persistent_buffers(self) -> tuple[str, ...]:
        """Buffers that checkpoints of this architecture store; a merge takes them from its config donor."""
        parameters = set(dict(self._module.named_parameters(remove_duplicate=False)))
        return tuple(name for name in self._module.state_dict() if name not in parameters)

    def module_of(self, name: str) -> nn.Module:
        """Return the (empty) module that the parameter `name` belongs to."""
        return self._module.get_submodule(name.rpartition(".")[0])

    @property
    def embedding_module(self) -> nn.Module:
        """The (empty) input embedding."""
        return self._module.get_input_embeddings()

    @property
    def head_module(self) -> nn.Module | None:
        """The (empty) output projection; None where the architecture has none."""
        return self._module.get_output_embeddings()

    @property
    def config_file(self) -> Path:
        """The file that says what the weights mean."""
        return self.path / "config.json"

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted by name."""
        return tuple(sorted(set(self._paths.values())))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide the weights."""
        return (self.config_file, *self.weight_files)

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files, sorted by name; empty when the model comes without one."""
        found = {path for pattern in TOKENIZER_FILES for path in self.path.glob(pattern) if path.is_file()}
        return tuple(sorted(found))

    def tokenizer(self) -> Any:
        """Return the model's tokenizer.

        Raises
        ------
        CheckpointError
            If the folder holds none that transformers can load.
        """
        if not self.tokenizer_files:
            raise CheckpointError(
                f"{self.reference}: no tokenizer in the folder; save one with tokenizer.save_pretrained()"
            )
        try:
            with quiet():
                return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # whatever a damaged tokenizer raises, the user sees one line
            raise CheckpointError(
                f"{self.reference}: its tokenizer cannot be loaded ({reason(error)}); save it again"
            ) from error

    def chat_template(self) -> str | None:
        """Return the tokenizer's chat template, None when it has none; read from the files."""
        for path in self.tokenizer_files:
            if path.name == "chat_template.jinja":
                return path.read_text(encoding="utf-8")
        for path in self.tokenizer_files:
            if path.name == "tokenizer_config.json":
                try:
                    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
                except (ValueError, AttributeError):
                    return None
                return template if isinstance(template, str) else None
        return None

    def generation_config(self) -> dict[str, Any] | None:
        """Return the contents of generation_config.json, None when there is none."""
        path = self.path / "generation_config.json"
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = read_json(path)
        except ValueError as error:
            raise CheckpointError(
                f"{self.reference}: generation_config.json is damaged ({reason(error)}); remove it"
            ) from error
        return values

    def architecture_key(self, config: PretrainedConfig) -> str:
        """Return text that is equal for two models exactly when one module can serve both.

        `config` is this checkpoint's, or one derived from it by reordering layers.
        """
        values = {name: value for name, value in config.to_dict().items() if name not in _INCIDENTAL}
        return json.dumps([values, self.generation_config()], sort_keys=True, default=str)

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the weights: file sizes and hashes, and the hub revision where there is one.

        A file is hashed whole when the checkpoint is smaller than 1 GiB (``covers: contents``); else its
        header and 64 samples of 1 MiB are (``covers: samples``), which tells two fine-tunes apart but not a
        single changed entry.
        """
        whole = sum(path.stat().st_size for path in self.files) <= CONTENT_LIMIT
        files = {
            path.name: {
                "bytes": path.stat().st_size,
                "sha256": sha256(path) if whole else sha256_of_samples(path),
                "covers": "contents" if whole else "samples",
            }
            for path in self.files
        }
        result: dict[str, Any] = {"reference": self.reference, "files": files}
        if self.path.parent.name == "snapshots":
            result["revision"] = self.path.name
        return result

    def _read_config(self) -> PretrainedConfig:
        if not (self.path / "config.json").is_file():
            raise CheckpointError(f"{self.reference}: no config.json in the folder; name a transformers checkpoint")
        try:
            check_counts(read_json(self.path / "config.json"))
            with quiet():
                return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # ValueError, KeyError, OSError, validation errors of the config classes
            raise CheckpointError(
                f"{self.reference}: config.json cannot be read ({reason(error)}); "
                "check the file, or update transformers"
            ) from error

    def _build(self) -> PreTrainedModel:
        if not getattr(self.config, "num_hidden_layers", None):
            raise CheckpointError(
                f"{self.reference}: {self.config.model_type} has no num_hidden_layers; "
                "name a decoder-only text model instead"
            )
        try:
            return meta_module(self.config, trust_remote_code=self.trust_remote_code)
        except ArchitectureError as error:
            raise CheckpointError(f"{self.reference}: {error}") from error

    def _open_files(self) -> dict[str, Any]:
        """Map every key to the open file that holds it; headers are read, weights are not."""
        self._paths: dict[str, Path] = {}
        files: dict[str, Any] = {}
        for path in self._shards():
            try:
                check_header(path)
                file = safe_open(path, framework="pt")
                keys = list(file.keys())
            except (SafetensorError, LimitError, OSError) as error:
                raise CheckpointError(
                    f"{self.reference}: {path.name} is damaged or cut short ({reason(error)}); "
                    "download or save it again"
                ) from error
            for key in keys:
                files[key] = file
                self._paths[key] = path
        return files

    def _shards(self) -> list[Path]:
        index = self.path / INDEX
        if index.is_file():
            try:
                named = sorted(set(read_json(index)["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{self.reference}: {INDEX} is damaged; save the model again") from error
            paths = [self.path / Path(name).name for name in named]  # names only: an index cannot leave its folder
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise CheckpointError(
                    f"{self.reference}: shard {missing[0]} is missing ({len(missing)} of {len(paths)}); "
                    "download the rest of the model"
                )
            return paths
        single = self.path / "model.safetensors"
        paths = [single] if single.is_file() else sorted(self.path.glob("*.safetensors"))
        if paths:
            return paths
        if any(next(self.path.glob(pattern), None) for pattern in PICKLES):
            raise CheckpointError(
                f"{self.reference}: only pickled weights, which can run code when read; convert them to "
                "safetensors with "
                'AutoModelForCausalLM.from_pretrained("...").save_pretrained("NEW")'
            )
        raise CheckpointError(f"{self.reference}: no safetensors file in the folder; name a transformers checkpoint")

    def _match_names(self) -> dict[str, str]:
        """Map the module's names to the checkpoint's keys, as transformers does when it loads.

        Where the weights themselves must be rearranged (experts to fuse, rows to split), the model is loaded
        through transformers and kept in memory.
        """
        self._loaded: Mapping[str, Tensor] | None = None
        prefix = self._module.base_model_prefix
        wanted = set(self._module.state_dict())
        keys: dict[str, str] = {}
        for key in self._files:
            for name in (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}"):
                if name in wanted:
                    keys[name] = key
                    break
        renamed = _renamer(self._module)
        for key in set(self._files) - set(keys.values()):
            name = renamed(key)
            if name in wanted:
                keys.setdefault(name, key)
        for other, canonical in tied_names(self._module).items():
            if canonical not in keys and other in keys:
                keys[canonical] = keys[other]
        missing = [name for name in self.names if name not in keys]
        if missing:
            self._loaded = self._load(missing[0])
        return keys

    def _load(self, missing: str) -> Mapping[str, Tensor]:
        with quiet():
            module, info = AutoModelForCausalLM.from_pretrained(
                self.path, dtype="auto", output_loading_info=True, trust_remote_code=self.trust_remote_code
            )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise CheckpointError(
                f"{self.reference}: no tensor for {missing} in the weight files; download the model again"
            )
        return module.state_dict()

    def _check_shapes(self) -> None:
        """Refuse weights that are not of the model that config.json describes."""
        wanted = self._module.state_dict()
        for name in self.names:
            if self.shape(name) != tuple(wanted[name].shape):
                raise CheckpointError(
                    f"{self.reference}: {name} has shape {list(self.shape(name))} and config.json makes it "
                    f"{list(wanted[name].shape)}; put the config.json there that the weights were saved with"
                )

    def _check_tied(self) -> None:
        """Refuse a head that the configuration says is tied and the file says is not.

        transformers then loads the head as its own parameter, and mergekit's output loses it.
        """
        for other, canonical in tied_names(self._module).items():
            key = self._keys.get(other)
            if self._loaded is None and key is not None and key != self._keys[canonical]:
                head, embeddings = self._files[key].get_tensor(key), self.tensor(canonical)
                if head.shape != embeddings.shape or not torch.equal(head, embeddings):
                    raise CheckpointError(
                        f"{self.reference}: {other} differs from {canonical} but config.json ties them; "
                        "set tie_word_embeddings to false there"
                    )

    def _key(self, name: str) -> str:
        try:
            return self._keys[name]
        except KeyError:
            raise CheckpointError(f"{self.reference}: no tensor {name}; its names are like {self.names[0]}") from None

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer by name, None when the checkpoint does not hold it."""
        if self._loaded is not None:
            return self._loaded.get(name)
        return self.tensor(name) if name in self._keys else None


def locate(reference: str) -> Path:
    """Return the folder of a local checkpoint or adapter, or of one that the hub gives.

    Raises
    ------
    CheckpointError
        If there is no such folder and the hub gives none.
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
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=DOWNLOADED))
    except Exception as error:  # HTTP errors, LocalEntryNotFoundError, OfflineModeIsEnabled, ...
        raise CheckpointError(
            f"{reference}: no such folder, and the hub gave no such model ({reason(error)}); "
            "check the name and the connection, or download it first"
        ) from error


def _renamer(module: PreTrainedModel) -> Callable[[str], str]:
    """Return what gives the module's name for a key that transformers renames when it loads (GPT-NeoX's embed_out)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # not every transformers 5 has these
        return lambda key: key
    renamings = [rule for rule in get_model_conversion_mapping(module) if isinstance(rule, WeightRenaming)]
    prefix, names = module.base_model_prefix, module.state_dict()
    return lambda key: str(rename_source_key(key, renamings, [], prefix, names)[0])
