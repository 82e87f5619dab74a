"""PEFT LoRA adapters as sources: base plus ``scale · B @ A``, each presented as a whole model.

LoRA (arXiv:2106.09685) scales by alpha / r, rsLoRA (arXiv:2312.03732) by alpha / √r; DoRA (arXiv:2402.09353) then
gives each output the length that the adapter stores. The whole model is the one that peft's ``merge_and_unload`` makes,
rounded as there: the delta is float32, the sum has the base's dtype. mergekit 0.1.5 merges this model, so that a recipe
means the same in both. Letters: M rows, N columns of a weight, R rank of the adapter.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from evomerge.files.messages import counted, reason
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import read_json
from evomerge.merging.sources.source import Source
from evomerge.merging.sources.statements import text_name
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Kinds of LoRA whose delta is more than scale · B @ A, or whose targets are not weights of the base.
UNSUPPORTED = (
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
    "kasa_config",
    "velora_config",
)
# Initialisations that change the base's weights: the stored delta starts from weights that are not published.
SHIFTED = ("pissa", "olora", "loftq", "corda", "lora_ga")

_MERGED = "merge the adapter into its model with peft's merge_and_unload() and name that folder"
_MAGNITUDE = "magnitude_vector"
_PARTS = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.weight)?")
_NAMED = re.compile(
    r".+\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector|modules_to_save)\.(?!weight$|bias$)(\w+)(\.weight|\.bias)?"
)
_FLOATS = ("F64", "F32", "F16", "BF16")
_PLAIN = re.compile(r"(.+?)(?:\.modules_to_save|\.base_layer)?\.(weight|bias)")


@dataclass(frozen=True)
class Factors:
    """A low-rank task vector, ``scale · left @ right``.

    Attributes
    ----------
    left
        float32[M, R]; rows are the rows of the weight as the module stores it.
    right
        float32[R, N].
    scale
        alpha / r, or alpha / √r.
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Columns of `left`."""
        return self.left.shape[1]

    def delta(self) -> Tensor:
        """Return the task vector, float32[M, N]."""
        return torch.mm(self.left, self.right).mul_(self.scale)


class AdapterSource:
    """A model that consists of a base and an adapter, as peft's ``merge_and_unload`` makes it.

    Adapted tensors are computed when asked for and not kept; all others are the base's own, memory-mapped. `base` is
    the model that the adapter was trained on, `adapter_config` the contents of its adapter_config.json.

    Raises
    ------
    CheckpointError
        If the adapter is of another kind, pickled or damaged, or does not fit the base.
    """

    def __init__(self, reference: str, path: Path, base: Source) -> None:
        self.reference = reference
        self.path = path
        self.base = base
        self.outline = base.outline
        self.adapter_config = read_config(reference, path)
        self._refuse_other_kinds()
        self._file = self._open()
        self._pairs, self._saved = self._sort()
        self._check_fit()

    # --- the members of a source ---

    @property
    def config(self) -> PretrainedConfig:
        """The base's."""
        return self.base.config

    @property
    def layout(self) -> ModelLayout:
        """The base's."""
        return self.base.layout

    @property
    def names(self) -> tuple[str, ...]:
        """The base's."""
        return self.base.names

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of the base's first tensor, by file and name: transformers loads the whole base in it for peft."""
        with safe_open(self.base.weight_files[0], framework="pt") as file:
            first: Tensor = file.get_tensor(next(iter(file.keys())))
        return first.dtype

    @property
    def buffer_dtype(self) -> torch.dtype | None:
        """The base's."""
        return self.base.buffer_dtype

    @property
    def merged_in(self) -> torch.dtype | None:
        """Its dtype, to which sums of weights and deltas are rounded."""
        return self.dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in the model's dtype: the base's, the adapter's own copy, or base plus delta."""
        if name in self.outline.stored_buffers:
            return self.base.tensor(name)
        whole = self._saved.get(name)
        values = (self.base.tensor(name) if whole is None else self._file.get_tensor(whole)).to(self.dtype)
        pair = self._pairs.get(name)
        return values if pair is None else self._merged(pair, values)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor of the base took."""
        self.base.release(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without computing it."""
        return self.base.shape(name)

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer; None when neither adapter nor base holds one of that name."""
        return self.tensor(name) if name in self.names else self.base.stored(name)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The adapter's safetensors file."""
        return (self.path / WEIGHTS,)

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter's configuration, which decides the scale, its weights, and the base's files."""
        return (self.path / CONFIG, *self.weight_files, *self.base.files)

    @property
    def tokenizer(self) -> TokenizerFolder:
        """The adapter's own tokenizer if it has one, else the base's."""
        own = TokenizerFolder(self.reference, self.path, self.outline.trust_remote_code)
        return own if own.files else self.base.tokenizer

    @property
    def left_out(self) -> tuple[str, ...]:
        """The base's."""
        return self.base.left_out

    def generation_config(self) -> dict[str, Any] | None:
        """Return the base's."""
        return self.base.generation_config()

    # --- what core space needs ---

    @property
    def adapted(self) -> tuple[str, ...]:
        """Tensors with low-rank task vectors, in the layout's order."""
        return tuple(name for name in self.names if name in self._pairs)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Tensors that the adapter stores whole (modules_to_save, biases), in the layout's order."""
        return tuple(name for name in self.names if name in self._saved and name not in self._pairs)

    def factors(self, name: str) -> Factors | None:
        """Return the low-rank task vector of a tensor, not rounded; None for a tensor without one.

        Raises
        ------
        CheckpointError
            If the task vector has a higher rank: DoRA's, and that of a matrix which the adapter also stores whole.
        """
        pair = self._pairs.get(name)
        if pair is None:
            return None
        if pair.magnitude is not None or name in self._saved:
            why = "is a DoRA adapter" if pair.magnitude is not None else f"was trained on another {name}"
            raise CheckpointError(
                f"{self.reference}: it {why}, so its change of {name} is not of low rank; write adapters: full"
            )
        a_RN, b_MR = (self._file.get_tensor(key).float() for key in (pair.a, pair.b))
        if pair.transposed:
            return Factors(a_RN.T, b_MR.T, pair.scale)
        return Factors(b_MR, a_RN, pair.scale)

    # --- peft's arithmetic, in its order ---

    def _merged(self, pair: _Pair, weight: Tensor) -> Tensor:
        """Return a weight with its delta, in the weight's dtype. Sums of a half and a float32 tensor are float32."""
        precise = torch.promote_types(torch.float32, weight.dtype)
        a_RN, b_MR = (self._file.get_tensor(key).to(precise) for key in (pair.a, pair.b))
        product = torch.mm(b_MR, a_RN).mul_(pair.scale)
        delta = product.T if pair.transposed else product
        if pair.magnitude is not None:
            total = weight + delta
            lengths = torch.linalg.norm(total.T if pair.transposed else total, dim=1)  # one for each output
            ratio = self._file.get_tensor(pair.magnitude).to(precise) / lengths
            return (total * ratio.view(*((1, -1) if pair.transposed else (-1, 1)))).to(weight.dtype)
        if pair.embedding:
            delta = delta.to(weight.dtype)
        return (weight + delta).to(weight.dtype).contiguous()

    # --- reading ---

    def _refuse_other_kinds(self) -> None:
        config = self.adapter_config
        if config.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{self.reference}: its peft_type is {config.get('peft_type')}, and only LORA can be merged; merge the "
                "adapter into its model with peft's merge_and_unload() and name that folder"
            )
        for key in UNSUPPORTED:
            if config.get(key):
                raise CheckpointError(
                    f"{self.reference}: {CONFIG} sets {key}, which is more than a low-rank delta; merge the adapter "
                    "into its model with peft's merge_and_unload() and name that folder"
                )
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(SHIFTED):
            raise CheckpointError(
                f"{self.reference}: init_lora_weights={start} changed the base's weights before training; "
                "save it with path_initial_model_for_weight_conversion=..., which makes it a plain LoRA"
            )

    def _open(self) -> Any:
        path = self.path / WEIGHTS
        if not path.is_file():
            pickled = any(self.path.glob("*.bin"))
            found = "its weights are pickled, which can run code when they are read" if pickled else "it has no weights"
            raise CheckpointError(
                f"{self.reference}: {found}; save the adapter again with peft, which writes {WEIGHTS}"
            )
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.reference}: {WEIGHTS} is damaged or cut short ({reason(error, path)}); download or save it "
                "again"
            ) from error

    def _sort(self) -> tuple[dict[str, _Pair], dict[str, str]]:
        """Return the low-rank pairs and the keys of whole tensors, by the tensor's name in the base."""
        halves: dict[str, dict[str, str]] = {}
        saved: dict[str, str] = {}
        keys = list(self._file.keys())
        if not keys:
            raise CheckpointError(f"{self.reference}: {WEIGHTS} contains no tensors; save the adapter again")
        for key in keys:
            self._check_key(key)
            bare = key.removeprefix("base_model.model.")
            if ".original_module." in bare:
                continue  # peft stores the base's own tensor beside a trained copy
            if part := _PARTS.fullmatch(bare):
                halves.setdefault(part[1], {})[part[2]] = key
            elif plain := _PLAIN.fullmatch(bare):
                if not self._is_tied_copy(f"{plain[1]}.{plain[2]}", key):
                    saved[self._name(f"{plain[1]}.{plain[2]}", key)] = key
            else:
                raise CheckpointError(
                    f"{self.reference}: {key} is not a tensor of a LoRA; merge the adapter into its model with peft's "
                    "merge_and_unload() and name that folder"
                )
        pairs = {self._name(f"{module}.weight", module): self._pair(module, keys) for module, keys in halves.items()}
        return pairs, {name: key for name, key in saved.items() if not self._is_copy(name, key)}

    def _check_key(self, key: str) -> None:
        """Refuse tensors that peft does not load, and numbers that are codes."""
        kind = self._file.get_slice(key).get_dtype()
        if kind not in _FLOATS:
            raise CheckpointError(
                f"{self.reference}: {key} is stored as {kind}, and a merge needs float16, bfloat16, float32 or "
                "float64; save the adapter again in one of them"
            )
        if named := _NAMED.fullmatch(key):
            raise CheckpointError(
                f"{self.reference}: {key} has the name of an adapter in it ({named[2]}), so that peft does not load "
                "it; save the adapter again with peft's save_pretrained()"
            )

    def _name(self, name: str, shown: str) -> str:
        spellings = self._spellings(name)
        for candidate in spellings:
            if candidate in self._base_names:
                return candidate
        for candidate in spellings:
            if candidate in self.outline.tied_names:
                raise CheckpointError(
                    f"{self.reference}: it changes {candidate}, which {self.base.reference} ties to "
                    f"{self.outline.tied_names[candidate]}, and a merge cannot change one of two tied tensors; "
                    f"{_MERGED}"
                )
        raise CheckpointError(
            f"{self.reference}: it adapts {shown}, and {self.base.reference} has no such tensor; name the base that "
            "the adapter was trained on"
        )

    def _spellings(self, name: str) -> tuple[str, ...]:
        prefix, text = self.outline.module.base_model_prefix, text_name(name)  # an adapter of a vision-language model
        return name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}", text, f"{prefix}.{text}"

    def _is_tied_copy(self, name: str, key: str) -> bool:
        """Whether a whole tensor is a tied one that equals the base's (peft also saves an untouched head)."""
        tied = next(
            (self.outline.tied_names[own] for own in self._spellings(name) if own in self.outline.tied_names), None
        )
        if tied is None:
            return False
        values, own = self.base.tensor(tied), self._file.get_tensor(key)
        return own.shape == values.shape and torch.equal(own.to(values.dtype), values)

    @cached_property
    def _base_names(self) -> frozenset[str]:
        return frozenset(self.base.names)

    def _pair(self, module: str, keys: dict[str, str]) -> _Pair:
        magnitude = keys.get(_MAGNITUDE)
        if keys.keys() - {_MAGNITUDE} != {"A", "B"}:
            raise CheckpointError(
                f"{self.reference}: {module} has lora_{min(keys)} without its other half; save the adapter again"
            )
        if (magnitude is not None) != bool(self.adapter_config.get("use_dora")):
            raise CheckpointError(
                f"{self.reference}: {module} has {'a' if magnitude else 'no'} lora_{_MAGNITUDE}, and {CONFIG} has "
                f"use_dora: {'false' if magnitude else 'true'}; use the configuration that was saved with the weights"
            )
        embedding = "lora_embedding_" in keys["A"]
        shape = self._file.get_slice(keys["A"]).get_shape()
        if len(shape) != 2 or len(self._file.get_slice(keys["B"]).get_shape()) != 2 or 0 in shape:
            raise CheckpointError(f"{self.reference}: the halves of {module} are not matrices; {_MERGED}")
        rank = shape[0]
        stated = self._pattern("rank_pattern", module, self.adapter_config.get("r", rank))
        if stated != rank:
            raise CheckpointError(
                f"{self.reference}: the rank of {module} is {rank}, and {CONFIG} has {stated:g} (r, rank_pattern), "
                "which also decides its scale; use the configuration that was saved with the weights"
            )
        alpha = self._pattern("alpha_pattern", module, self.adapter_config.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if self.adapter_config.get("use_rslora") else rank)
        return _Pair(keys["A"], keys["B"], embedding, embedding or self._is_transposed(module), scale, magnitude)

    def _pattern(self, key: str, module: str, otherwise: object) -> float:
        """Return a number of the module; as in peft, a pattern is a regular expression for the end of the name."""
        patterns = self.adapter_config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.reference}: {key} in {CONFIG} is not a mapping; correct it")
        value = otherwise
        for pattern, own in patterns.items():
            try:
                if re.fullmatch(rf"(.*\.)?({pattern})", module):
                    value = own
                    break
            except re.error:
                raise CheckpointError(
                    f"{self.reference}: {key} {pattern!r} in {CONFIG} is not a regular expression; correct it"
                ) from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.reference}: {key} or its default in {CONFIG} is {value!r}; write a number")
        return float(value)

    def _is_transposed(self, module: str) -> bool:
        """Whether the module stores its weight as [in, out] (GPT-2's Conv1D; fan_in_fan_out in the configuration)."""
        return not isinstance(self.outline.module_of(self._name(f"{module}.weight", module)), nn.Linear)

    def _is_copy(self, name: str, key: str) -> bool:
        """Whether a stored tensor is the base's own (peft also saves the embeddings when it adapts them)."""
        values = self.base.tensor(name)
        own = self._file.get_tensor(key)
        if own.shape != values.shape:
            raise CheckpointError(self._why_other_shape(name, list(own.shape), list(values.shape)))
        return torch.equal(own.to(values.dtype), values)

    def _why_other_shape(self, name: str, own: list[int], base: list[int]) -> str:
        line = f"{self.reference}: {name} has shape {own} here and {base} in {self.base.reference}"
        if name in self.outline.rows_by_token and own[1:] == base[1:]:
            return (
                f"{line}: the adapter was trained with a vocabulary of {counted(own[0], 'row')}; load the base, call "
                f"model.resize_token_embeddings({own[0]}), put the adapter on it, save the result of "
                "merge_and_unload() with the adapter's tokenizer, name that folder, and set vocabulary: first or union"
            )
        return f"{line}; name the base that the adapter was trained on"

    def _check_fit(self) -> None:
        """Refuse factors whose product does not have the base's shape, and a change to one of two tied tensors."""
        for name in set(self.outline.tied_names.values()) & {*self._pairs, *self._saved}:
            raise CheckpointError(
                f"{self.reference}: it changes {name}, to which the head of {self.base.reference} is tied, and it "
                f"is unclear whether the head should change, too; {_MERGED}"
            )
        for name, pair in self._pairs.items():
            (rank, inner), (outer, other) = (self._file.get_slice(key).get_shape() for key in (pair.a, pair.b))
            made = (inner, outer) if pair.transposed else (outer, inner)
            if rank != other or made != self.base.shape(name):
                raise CheckpointError(
                    f"{self.reference}: its delta for {name} has shape {list(made)} and ranks {rank} and {other}, and "
                    f"the tensor has shape {list(self.base.shape(name))} in {self.base.reference}; name the base that "
                    "the adapter was trained on"
                )
            if pair.magnitude is None:
                continue
            lengths = self._file.get_slice(pair.magnitude).get_shape()
            if list(lengths) != [outer]:
                raise CheckpointError(
                    f"{self.reference}: {pair.magnitude} has shape {lengths}, and {name} has {outer} outputs; save the "
                    "adapter again"
                )


@dataclass(frozen=True)
class _Pair:
    """Keys of one module's matrices and of DoRA's lengths; `transposed` where the module's weight is (B @ A)ᵀ."""

    a: str
    b: str
    embedding: bool
    transposed: bool
    scale: float
    magnitude: str | None


def is_adapter(path: Path) -> bool:
    """Whether the folder holds a PEFT adapter and no whole model; trainers leave the base's config.json beside it.

    Raises
    ------
    CheckpointError
        If it holds the weights of both, so it is unclear which is meant.
    """
    if not (path / CONFIG).is_file():
        return False
    others = sorted(file.name for file in path.glob("*.safetensors") if file.name != WEIGHTS)
    if others and (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: the folder contains a whole model ({others[0]}) and an adapter ({CONFIG}); move one of them to a "
            "folder of its own, and write MODEL+ADAPTER to merge both"
        )
    return True


def read_config(reference: str, path: Path) -> dict[str, Any]:
    """Return the contents of adapter_config.json.

    Raises
    ------
    CheckpointError
        If it is not JSON.
    """
    try:
        values: dict[str, Any] = read_json(path / CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{reference}: {CONFIG} is damaged ({reason(error, path / CONFIG)}); save the adapter again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{reference}: {CONFIG} does not contain a mapping; save the adapter again")
    return values
