"""A transformers architecture: its tensors by position, and empty modules of it.

Everything is read from the module itself, built on the meta device (no memory, no weights), so that every decoder-only
architecture that transformers loads works without a table of names.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.files.messages import counted, reason
from evomerge.merging.well_known.architectures import EMBEDDINGS, HEAD, Shape, WellKnownModel
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# A layer's children are recognised by their class (Qwen3Attention, GPT2MLP, MixtralSparseMoeBlock), because attribute
# names mislead: Gemma has a norm called post_attention_layernorm.
_ATTENTION_CLASSES = ("attention",)
_MLP_CLASSES = ("mlp", "feedforward", "moe", "experts")
_FINAL_MARKS = ("final", "ln_f", "lm_head", "embed_out", "project_out")


class ArchitectureError(ValueError):
    """A configuration that does not describe a decoder-only model with a list of layers."""


def layout_of(config: PretrainedConfig) -> ModelLayout:
    """Return the names of the model's tensors by position, for any decoder-only architecture.

    Parameters
    ----------
    config
        A transformers configuration; no weights are needed.

    Raises
    ------
    ArchitectureError
        If transformers has no causal language model for it or cannot build it, or no list of ``num_hidden_layers``
        blocks is found.
    """
    return layout_of_module(meta_module(config))


class StoredBuffer(nn.Parameter):
    """A number that training or conversion sets and that transformers keeps as a buffer, as a parameter.

    Biases of routers (DeepSeek 3, GLM 4 MoE, MiniMax 2) and factors of layers (Gemma 4) belong to a model as weights
    do: as parameters they are merged, they move with their layers, and they are written.
    """


class Outline:
    """A model without its weights: everything that follows from its configuration. It takes no memory.

    Attributes
    ----------
    config
        The transformers configuration.
    trust_remote_code
        Whether code from the checkpoint's folder may run.
    module
        The causal language model on the meta device.
    layout
        Its tensors by position.
    tied_names
        Names of parameters that share another's storage, with that other's name in the layout.
    stored_buffers
        Names of tensors that transformers keeps as buffers, among those of the layout.
    stated
        The contents of config.json, for well-known models alone.

    Raises
    ------
    ArchitectureError
        As `layout_of`.
    """

    stated: Mapping[str, Any] | None = None
    stored_buffers: frozenset[str] = frozenset()

    def __init__(self, config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
        self.config = config
        self.trust_remote_code = trust_remote_code
        self.module = meta_module(config, trust_remote_code=trust_remote_code)
        self.layout: ModelLayout = layout_of_module(self.module)
        self.tied_names = tied_names(self.module)
        named = self.module.named_parameters()
        self.stored_buffers = frozenset(name for name, values in named if isinstance(values, StoredBuffer))

    @property
    def tied(self) -> bool:
        """Whether the output projection is the embedding matrix."""
        return bool(self.tied_names)

    @property
    def embeddings(self) -> str:
        """Name of the embedding matrix."""
        owner = self.module.get_input_embeddings()
        return next(name for name in self.layout.tensors() if self.module_of(name) is owner)

    @property
    def architecture(self) -> str:
        """Class of the causal language model, such as LlamaForCausalLM."""
        return type(self.module).__name__

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(math.prod(self.shapes[name]) for name in self.layout.tensors())

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor that a checkpoint of this architecture stores, by name."""
        return {name: tuple(values.shape) for name, values in self.module.state_dict().items()}

    @property
    def persistent_buffers(self) -> tuple[str, ...]:
        """Whole numbers that checkpoints of this architecture store; a merge takes them from its config donor."""
        parameters = set(dict(self.module.named_parameters(remove_duplicate=False)))
        return tuple(name for name in self.module.state_dict() if name not in parameters)

    def module_of(self, name: str) -> nn.Module:
        """Return the (empty) module that the parameter `name` belongs to."""
        return self.module.get_submodule(name.rpartition(".")[0])

    @property
    def rows_by_token(self) -> tuple[str, ...]:
        """Names of the tensors with a row per token: embeddings, head, the head's bias."""
        owners = [self.module.get_input_embeddings(), self.module.get_output_embeddings()]
        return tuple(name for name in self.layout.tensors() if any(self.module_of(name) is owner for owner in owners))


class WellKnownOutline(Outline):
    """The outline of a well-known model, from its config.json alone.

    Only what asks for its configuration or its module imports transformers.
    """

    def __init__(self, model: WellKnownModel, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.trust_remote_code = False
        self.layout = model.layout
        self.tied_names = {} if model.layout.head else {HEAD: EMBEDDINGS}
        self.stated = model.stated

    @cached_property
    def config(self) -> PretrainedConfig:
        """The transformers configuration."""
        from transformers import AutoConfig

        with quiet():
            found: PretrainedConfig = AutoConfig.from_pretrained(self._folder)
        return found

    @cached_property
    def module(self) -> PreTrainedModel:
        """The causal language model on the meta device."""
        return meta_module(self.config)

    @property
    def embeddings(self) -> str:
        """Name of the embedding matrix."""
        return EMBEDDINGS

    @property
    def architecture(self) -> str:
        """Class of the causal language model."""
        return self._model.architecture

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor that a checkpoint stores, by name."""
        return self._model.shapes

    @property
    def persistent_buffers(self) -> tuple[str, ...]:
        """None: these architectures store no buffers."""
        return ()

    @property
    def rows_by_token(self) -> tuple[str, ...]:
        """Names of the tensors with a row per token: embeddings and head."""
        return (EMBEDDINGS, HEAD) if self.layout.head else (EMBEDDINGS,)


def meta_module(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the causal language model of `config` without storage, its tied parameters tied (see `StoredBuffer`)."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    # a copy, because building a module writes its dtype into the configuration
    own = type(config).from_dict(config.to_dict())
    try:
        with quiet(), torch.device("meta"):
            return _with_buffers_as_parameters(
                AutoModelForCausalLM.from_config(own, trust_remote_code=trust_remote_code)
            )
    except Exception as error:  # ValueError, AssertionError, ZeroDivisionError, ... for values that do not fit
        if not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ArchitectureError(
                f"{config.model_type}: transformers has no causal language model for this configuration "
                f"({reason(error)}); name a decoder-only text model instead"
            ) from error
        raise ArchitectureError(
            f"transformers cannot build a {config.model_type} from config.json ({reason(error)}); use the config.json "
            "that was saved with the weights"
        ) from error


def layout_of_module(module: PreTrainedModel) -> ModelLayout:
    """Return the layout of a module that is built already, see `layout_of`."""
    count = int(module.config.num_hidden_layers)
    prefix, blocks = _layer_list(module, count)
    parameters = [name for name, _ in module.named_parameters()]  # tied ones once
    layers: list[list[str]] = [[] for _ in range(count)]
    embeddings: list[str] = []
    final: list[str] = []
    for name in parameters:
        if name.startswith(f"{prefix}."):
            index, _, rest = name[len(prefix) + 1 :].partition(".")
            layers[int(index)].append(rest)
        elif any(layers) or any(mark in name for mark in _FINAL_MARKS):
            final.append(name)
        else:
            embeddings.append(name)
    head = _head_name(module, final)
    return ModelLayout(
        embeddings=tuple(embeddings),
        layers=tuple(tuple(names) for names in layers),
        layer_prefix=f"{prefix}.{{}}.",
        final=tuple(final),
        head=head,
        attention=_child_of_class(blocks[0], _ATTENTION_CLASSES),
        mlp=_child_of_class(blocks[0], _MLP_CLASSES),
    )


def empty_module(
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a module of `config` in eval mode with uninitialised parameters and correct buffers (see `StoredBuffer`).

    The state of the global random generator does not change.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    own = type(config).from_dict(config.to_dict())
    with quiet(), no_init_weights(), torch.random.fork_rng(devices=[]), torch.device(device):
        module = AutoModelForCausalLM.from_config(own, dtype=dtype, trust_remote_code=trust_remote_code)
    module.tie_weights()
    module.requires_grad_(False)
    return _with_buffers_as_parameters(module.eval())


def _with_buffers_as_parameters(module: PreTrainedModel) -> PreTrainedModel:
    """Turn the floating-point buffers that checkpoints store into parameters of the same names."""
    for owner in module.modules():
        for leaf, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.is_floating_point() and leaf not in owner._non_persistent_buffers_set:
                del owner._buffers[leaf]
                owner.register_parameter(leaf, StoredBuffer(buffer, requires_grad=False))
    return module


def tied_names(module: PreTrainedModel) -> dict[str, str]:
    """Return the names that share another parameter's storage, as ``{other name: name in the layout}``."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        canonical = first.setdefault(id(parameter), name)
        if canonical != name:
            tied[name] = canonical
    return tied


def _layer_list(module: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Return the outermost ``ModuleList`` with as many entries as the model has layers."""
    found = [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if not found:
        raise ArchitectureError(
            f"{type(module).__name__}: no list of {counted(count, 'layer')} found; name a decoder-only text model"
        )
    return min(found, key=lambda entry: entry[0].count("."))


def _head_name(module: PreTrainedModel, final: list[str]) -> str | None:
    """Return the output projection's name; None when it is the embedding matrix."""
    head = module.get_output_embeddings()
    if head is None:
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    name = names.get(id(head.weight))
    return name if name in final else None


def _child_of_class(layer: nn.Module, classes: tuple[str, ...]) -> str | None:
    for name, child in layer.named_children():
        kind = type(child).__name__.lower()
        if "norm" not in kind and any(mark in kind for mark in classes):
            return name
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars inside the block."""
    from transformers.utils import logging

    before: Any = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
