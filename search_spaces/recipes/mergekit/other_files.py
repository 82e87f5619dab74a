"""Files that are not recipes but look like one: those of mergekit's other commands, and of models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import quote
from typing import Any

from search_spaces.recipes.errors import RecipeError

_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("experts", "gate_mode", "shared_experts"),
        "a mergekit-moe file, which builds a mixture of experts, and evomerge does not build these",
        "build it with mergekit-moe, or write merge_method and models to merge the experts' weights",
    ),
    (
        ("genome",),
        "a mergekit-evolve file, which describes a search",
        "write a search file with `evomerge init --from {origin}`",
    ),
    (
        ("layer_slices", "embedding_source", "lm_head_source"),
        "a bakllama file, of mergekit's first releases",
        "write merge_method: passthrough, and slices with layer_range: [start, end]",
    ),
    (
        ("peft_type", "target_modules"),
        "the configuration of an adapter",
        "name the adapter in a recipe as MODEL+ADAPTER",
    ),
    (
        ("architectures", "model_type"),
        "the configuration of a model",
        "name the model's folder in a recipe",
    ),
    (
        ("fitness", "space", "strategy"),
        "a search file",
        "search with `evomerge search {origin}`; `evomerge merge` takes the recipe that it finds",
    ),
)
"""Keys of which a file of some kind has one at its top, what it is, and what to do with it."""

_TENSOR_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def refuse_other_files(documents: Sequence[Any], origin: str) -> None:
    """Raise a `RecipeError` that names what a file is, if it is none of recipes."""
    for data in documents:
        if isinstance(data, str) and "merge_method" in data:
            raise RecipeError(f"{origin}: is text that contains a recipe; copy its YAML into a separate file")
        if not isinstance(data, dict):
            continue
        if "merge_method" not in data:
            for keys, what, instead in _OTHERS:
                found = [key for key in keys if key in data]
                if found:
                    advice = instead.format(origin=quote(origin))
                    raise RecipeError(f"{origin}: is {what} ({', '.join(found)}); {advice}")
        for name in _references(data):
            if name.lower().endswith(_TENSOR_FILES):
                raise RecipeError(
                    f"{origin}: {name} is a file of tensors, as mergekit-pytorch takes them; name the model's folder, "
                    "with its config.json"
                )


def _references(data: dict[Any, Any]) -> Iterable[str]:
    """Yield the models that a recipe names as text."""
    slices = data["slices"] if isinstance(data.get("slices"), list) else []
    groups = [data.get("models"), *(part.get("sources") for part in slices if isinstance(part, dict))]
    for group in groups:
        for entry in group if isinstance(group, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("model"), str):
                yield entry["model"]
    if isinstance(data.get("base_model"), str):
        yield data["base_model"]
