"""One layer of a path through models; see `search_spaces.recipes.layer_path`."""

from __future__ import annotations

from dataclasses import dataclass

WRITERS = ("down_proj", "o_proj")
"""What adds to the residual stream and carries a layer's scale: parts of tensors' names."""


@dataclass(frozen=True)
class Stop:
    """One layer of a path.

    Attributes
    ----------
    model
        Reference of the model that it is of; None: the merge that the recipe describes.
    layer
        Which of its layers.
    scale
        What its writers are multiplied with.
    """

    model: str | None
    layer: int
    scale: float = 1.0

    def scale_of(self, tensor: str) -> float:
        """Return what the tensor of that name is multiplied with."""
        return self.scale if any(writer in tensor for writer in WRITERS) else 1.0
