"""References to models in a recipe: mergekit's string form and its mapping form.

A reference is a local folder or a hub id with an optional revision (``org/name@main``), or such a model with a LoRA
adapter on it, which is stored as ``MODEL+lora:ADAPTER`` (see `adapted`). In mergekit's string form ``+`` starts the
adapter and ``@`` a revision, so a local path that contains either is written as a mapping. ``MODEL+dequantize`` is our
extension: a quantised model whose weights are to be turned into floats (in the mapping form ``dequantize: true``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from search_spaces.recipes.errors import RecipeError, did_you_mean

LORA = "+lora:"
"""Between a model and the adapter on it. Not mergekit's bare ``+``, which names of folders contain."""
DEQUANTIZE = "+dequantize"
"""After a model whose weights are quantised and are to be turned into floats."""

_LOCAL_PREFIXES = ("/", "./", "../", "~")
REFERENCE_KEYS = ("model", "lora", "override_architecture")
PATH_KEYS = ("path", "revision", "dequantize")


def adapted(model: str, adapter: str | None, *, dequantize: bool = False) -> str:
    """Return the reference of `model` with `adapter` on it; of the model alone if `adapter` is None."""
    whole = f"{model}{DEQUANTIZE}" if dequantize else model
    return whole if adapter is None else f"{whole}{LORA}{adapter}"


def parts(reference: str) -> tuple[str, str | None]:
    """Return a reference's model, and its adapter or None."""
    model, _, adapter = reference.partition(LORA)
    return model.removesuffix(DEQUANTIZE), adapter or None


def is_dequantized(reference: str) -> bool:
    """Whether a reference asks for its model's weights to be turned into floats."""
    return reference.partition(LORA)[0].endswith(DEQUANTIZE)


def with_parts(reference: str, change: Callable[[str], str]) -> str:
    """Return the reference with `change` applied to its model, and to its adapter if it has one."""
    model, adapter = parts(reference)
    changed = None if adapter is None else change(adapter)
    return adapted(change(model), changed, dequantize=is_dequantized(reference))


def spelled(text: str, exists: Callable[[str], bool]) -> str:
    """Return the reference for text outside a recipe: MODEL+ADAPTER is split unless such a path `exists`."""
    if LORA in text or exists(text):
        return text
    model, dequantize, adapter = _split(text)
    if "+" in adapter or not model or (text.endswith("+") and not adapter):
        return text
    return adapted(model, adapter or None, dequantize=dequantize)


def _split(text: str) -> tuple[str, bool, str]:
    """Return the model, whether ``+dequantize`` follows it, and the rest after a ``+``, which is its adapter."""
    model, _, rest = text.partition("+")
    mark = DEQUANTIZE.removeprefix("+")
    if rest != mark and not rest.startswith(f"{mark}+"):
        return model, False, rest
    return model, True, rest.removeprefix(mark).removeprefix("+")


def _is_local_path(reference: str) -> bool:
    return reference.startswith(_LOCAL_PREFIXES)


def parse_reference(value: Any, place: str) -> str:
    """Return the reference for `value`, a string or mergekit's mapping.

    Raises
    ------
    RecipeError
        If it is neither, names several adapters, overrides the architecture, or has two revisions.
    """
    if isinstance(value, str):
        return _parse_string(value, place)
    if not isinstance(value, dict):
        raise RecipeError(f"{place}: {value!r} is not a model; write a folder or a hub id such as org/name")
    if "path" in value and "model" not in value:
        value = {"model": value}
    for key in value:
        if key not in REFERENCE_KEYS:
            raise RecipeError(f"{place}: unknown key '{key}'; {did_you_mean(key, REFERENCE_KEYS[:2])}")
    if value.get("override_architecture") is not None:
        raise RecipeError(
            f"{place}: override_architecture is not supported, the architecture is config.json's; remove it"
        )
    model, adapter = _parse_path(value.get("model"), place), None
    if value.get("lora") is not None:
        adapter = _parse_path(value["lora"], f"{place}.lora")
    return adapted(model, adapter, dequantize=_parse_dequantize(value.get("model"), place))


def _parse_dequantize(value: Any, place: str) -> bool:
    wanted = value.get("dequantize", False) if isinstance(value, dict) else False
    if not isinstance(wanted, bool):
        raise RecipeError(f"{place}.dequantize: {wanted!r} is not true or false; write dequantize: true")
    return wanted


def _parse_string(value: str, place: str) -> str:
    model, dequantize, adapter = _split(value)
    plus = adapter or value.endswith("+")
    if "+" in adapter or (plus and not adapter.strip()):
        raise RecipeError(
            f"{place}: '{value}' is not a model with one adapter; write MODEL+ADAPTER, or {{model: {{path: ...}}}} if "
            "the '+' belongs to a folder's name"
        )
    own = _parse_name(adapter, place) if plus else None
    return adapted(_parse_name(model, place), own, dequantize=dequantize)


def _parse_name(value: str, place: str) -> str:
    if not value.strip():
        raise RecipeError(f"{place}: the model's name is empty; write a folder or a hub id such as org/name")
    if not _is_local_path(value) and value.count("@") > 1:
        raise RecipeError(f"{place}: '{value}' has more than one '@'; write org/name@revision")
    return value


def _parse_path(value: Any, place: str) -> str:
    """Read one model or adapter: a string without ``+``, or a mapping, whose path may contain it."""
    if isinstance(value, str):
        if "+" in value:
            raise RecipeError(f"{place}: '{value}' has a '+'; write {{path: ...}} if it belongs to the folder's name")
        return _parse_name(value, place)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or not value["path"]:
        raise RecipeError(f"{place}: the model has no path; write {{model: {{path: FOLDER}}}}")
    for key in value:
        if key not in PATH_KEYS or (key == "dequantize" and place.endswith(".lora")):
            raise RecipeError(f"{place}: unknown key '{key}'; {did_you_mean(key, PATH_KEYS)}")
    path: str = value["path"]
    revision = value.get("revision")
    if LORA in path:
        raise RecipeError(f"{place}: '{path}' contains '{LORA}', which marks an adapter here; rename the folder")
    if path.endswith(DEQUANTIZE):
        raise RecipeError(f"{place}: '{path}' ends with '{DEQUANTIZE}'; write dequantize: true, or rename the folder")
    if revision is None:
        return path
    if _is_local_path(path):
        raise RecipeError(f"{place}: a local folder has no revision; remove 'revision: {revision}'")
    return f"{path}@{revision}"


def format_reference(reference: str) -> str | dict[str, Any]:
    """Return `reference` as mergekit reads it: a string if that is unambiguous, else the mapping form."""
    model, adapter = parts(reference)
    dequantize = {"dequantize": True} if is_dequantized(reference) else {}
    if _is_safe(model) and not dequantize and (adapter is None or _is_safe(adapter)):
        return model if adapter is None else f"{model}+{adapter}"
    written = {"model": _path_form(model) | dequantize}
    return written if adapter is None else written | {"lora": _path_form(adapter)}


def _is_safe(name: str) -> bool:
    return "+" not in name and not (_is_local_path(name) and "@" in name)


def _path_form(name: str) -> dict[str, Any]:
    path, _, revision = name.partition("@")
    if _is_local_path(name) or not revision:
        return {"path": name}
    return {"path": path, "revision": revision}
