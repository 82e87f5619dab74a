"""How a recipe names a model: mergekit's string and its mapping form.

A reference is a local folder or a hub id with an optional revision (``org/name@main``). In mergekit's string
form ``+`` starts a LoRA and ``@`` a revision, so a local path that contains either is written as a mapping.
"""

from __future__ import annotations

from typing import Any

from search_spaces.errors import RecipeError, did_you_mean

_LOCAL_PREFIXES = ("/", "./", "../", "~")


def _is_local_path(reference: str) -> bool:
    return reference.startswith(_LOCAL_PREFIXES)


def parse_reference(value: Any, place: str) -> str:
    """Return the reference that `value` (a string or mergekit's mapping) stands for.

    Raises
    ------
    RecipeError
        If it is neither, names a LoRA adapter, overrides the architecture, or has two revisions.
    """
    if isinstance(value, str):
        return _parse_string(value, place)
    if not isinstance(value, dict):
        raise RecipeError(f"{place}: {value!r} is not a model; write a folder or a hub id such as org/name")
    for key in value:
        if key not in ("model", "lora", "override_architecture"):
            raise RecipeError(f"{place}: unknown key '{key}'; {did_you_mean(key, ('model', 'lora'))}")
    for key in ("lora", "override_architecture"):
        if value.get(key) is not None:
            raise RecipeError(f"{place}: '{key}' is not supported yet; {_MERGE_FIRST}")
    return _parse_path(value.get("model"), place)


_MERGE_FIRST = "merge the adapter into its model first (peft: merge_and_unload) and name the resulting folder"


def _parse_string(value: str, place: str) -> str:
    if not value.strip():
        raise RecipeError(f"{place}: the model's name is empty; write a folder or a hub id such as org/name")
    if "+" in value:
        raise RecipeError(
            f"{place}: LoRA references ('{value}') are not supported yet; {_MERGE_FIRST}, "
            "or write {model: {path: ...}} if the '+' belongs to the folder's name"
        )
    if not _is_local_path(value) and value.count("@") > 1:
        raise RecipeError(f"{place}: '{value}' has more than one '@'; write org/name@revision")
    return value


def _parse_path(value: Any, place: str) -> str:
    if isinstance(value, str):
        return _parse_string(value, place)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or not value["path"]:
        raise RecipeError(f"{place}: the model has no path; write {{model: {{path: FOLDER}}}}")
    for key in value:
        if key not in ("path", "revision"):
            raise RecipeError(f"{place}: unknown key '{key}'; {did_you_mean(key, ('path', 'revision'))}")
    path, revision = value["path"], value.get("revision")
    if revision is None:
        return path
    if _is_local_path(path):
        raise RecipeError(f"{place}: a local folder has no revision; remove 'revision: {revision}'")
    return f"{path}@{revision}"


def format_reference(reference: str) -> str | dict[str, Any]:
    """Return `reference` as mergekit reads it: a string where that is safe, else its mapping form."""
    if "+" in reference or (_is_local_path(reference) and "@" in reference):
        path, _, revision = reference.partition("@")
        if _is_local_path(reference) or not revision:
            return {"model": {"path": reference}}
        return {"model": {"path": path, "revision": revision}}
    return reference
