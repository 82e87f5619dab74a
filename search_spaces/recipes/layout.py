"""The tensors of a decoder-only model by position: before the layers, in each layer, after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_spaces.recipes.errors import RecipeError


@dataclass(frozen=True)
class ModelLayout:
    """Tensor names of a decoder-only model by position, as in its state dict; tied tensors appear once.

    Attributes
    ----------
    embeddings
        Names before layer 0, such as ``model.embed_tokens.weight``.
    layers
        Names within each layer, such as ``self_attn.q_proj.weight``; one tuple per layer (L of them).
    layer_prefix
        What precedes them, with ``{}`` for the index: ``model.layers.{}.``.
    final
        Names after the last layer: the final norm, and the head unless it is tied.
    head
        The output projection's name among `final`; ``None`` when it is tied to the embeddings.
    attention, mlp
        Names of a layer's child modules: ``self_attn``, ``attn``, ...; ``None`` when there is no single one.
    """

    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    layer_prefix: str
    final: tuple[str, ...]
    head: str | None = None
    attention: str | None = None
    mlp: str | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return len(self.layers)

    def layer_tensor(self, layer: int, name: str) -> str:
        """Return the full name of tensor `name` of layer `layer`."""
        return self.layer_prefix.format(layer) + name

    def tensors(self) -> tuple[str, ...]:
        """Return all full names in order: embeddings, layers, final."""
        in_layers = (self.layer_tensor(i, name) for i, names in enumerate(self.layers) for name in names)
        return (*self.embeddings, *in_layers, *self.final)

    def module_filter(self, module: Literal["attention", "mlp"]) -> str:
        """Return the recipe filter that matches the tensors of a layer's attention or MLP and no others.

        The dots on both sides keep ``attention`` from matching ``post_attention_layernorm``.

        Raises
        ------
        RecipeError
            If the model's layers have no such child module.
        """
        child = self.attention if module == "attention" else self.mlp
        if child is None:
            raise RecipeError(f"the model's layers have no {module} module that is known by name; use modules: all")
        return f".{child}."
