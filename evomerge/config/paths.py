"""Paths in a search file: relative to its own folder, not to the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evomerge.files.references import absolute, local_or_hub
from evomerge.runs.result import FOUND, START
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.references import parse_reference, spelled, with_parts
from search_spaces.spaces.coefficient_config import TASK
from search_spaces.spaces.layer_coefficients import STARTS
from search_spaces.spaces.registry import RECIPE_KEYS


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make local paths absolute, so that the run and its recipes do not depend on where they are used."""
    models = values.get("models")
    if isinstance(models, dict):
        values["models"] = {name: _model(reference, folder) for name, reference in models.items()}
    space, strategy, fitness = (values.get(name) for name in ("space", "strategy", "fitness"))
    if isinstance(space, dict):
        _space(space, folder)
    if isinstance(strategy, dict):
        _resolve_key(strategy, "warm_start", folder)
        if isinstance(strategy.get("warm_start"), dict):
            _resolve_key(strategy["warm_start"], "run", folder)
        for section in (strategy, strategy.get("warm_start")):
            _loss(section, folder)
    if isinstance(fitness, dict):
        paths = fitness.get("include_path")
        if isinstance(paths, list | str):
            fitness["include_path"] = [_local(path, folder) for path in ([paths] if isinstance(paths, str) else paths)]
        if isinstance(fitness.get("subset"), dict):
            _resolve_key(fitness["subset"], "item_bank", folder)
            _resolve_key(fitness["subset"], "ids", folder)
        if isinstance(fitness.get("engine"), dict):
            _python(fitness["engine"], folder)
        for key in ("function", "function_items"):
            if isinstance(fitness.get(key), str):
                fitness[key] = _code(fitness[key], folder)


def _python(engine: dict[str, Any], folder: Path) -> None:
    """Make the path of an interpreter absolute; links stay, because a virtual environment is where its link is."""
    if isinstance(engine.get("python"), str):
        engine["python"] = os.path.abspath(folder / os.path.expanduser(engine["python"]))


def _code(reference: str, folder: Path) -> str:
    """Return `FILE.py:NAME` with an absolute path, also for a `module:NAME` whose file is beside the search file."""
    place, colon, name = reference.rpartition(":")
    if reference.endswith(".jsonl"):
        return str(absolute(reference, folder))
    beside = absolute(f"{place.replace('.', '/')}.py", folder)
    if place.endswith(".py") or (colon and place and beside.is_file()):
        return f"{absolute(place, folder) if place.endswith('.py') else beside}:{name}"
    return reference


def _loss(section: Any, folder: Path) -> None:
    """Resolve the texts of a loss, in a gradient search or in one that begins with gradients."""
    if not isinstance(section, dict):
        return
    _loss(section.get("gradient"), folder)
    loss = section.get("loss")
    if isinstance(loss, dict):
        _resolve_key(loss, "text", folder)
        if isinstance(loss.get("text"), dict):
            for name in loss["text"]:
                _resolve_key(loss["text"], name, folder)


def _space(space: dict[str, Any], folder: Path) -> None:
    """Resolve the paths of a space that has any; a `start` of another package's space is not a path."""
    if space.get("kind", "layer_coefficients") == "layer_coefficients":
        if space.get("start") not in STARTS:
            _resolve_key(space, "start", folder)
        texts = space.get("calibration_text")
        section, keys = (texts, [*texts]) if isinstance(texts, dict) else (space, ["calibration_text"])
        for key in keys:
            if not str(section.get(key)).startswith(TASK):
                _resolve_key(section, key, folder)
    elif space.get("kind") in ("data_flow", "layer_actions"):
        for key in RECIPE_KEYS:
            space.update({key: _recipes(space[key], folder)} if key in space else {})
    if isinstance(space.get("parameters"), dict):
        _space(space["parameters"], folder)


def _recipes(value: Any, folder: Path) -> Any:
    """Return the paths of recipe files made absolute; names of models and methods, which are not files, stay."""
    if isinstance(value, list | tuple):
        return [_recipes(entry, folder) for entry in value]
    if isinstance(value, str) and value:
        file = absolute(value, folder)
        with suppress(OSError, ValueError):  # too long for a name, a null byte: no file is called so
            return str(file) if file.is_file() else value
    return value


def _resolve_key(section: dict[str, Any], key: str, folder: Path) -> None:
    if isinstance(section.get(key), str):
        section[key] = str(absolute(section[key], folder))


def _model(reference: Any, folder: Path) -> Any:
    """Return a model's reference with its folder, and its adapter's, made absolute."""
    if isinstance(reference, dict):
        with suppress(RecipeError):  # validation names what is wrong with it
            reference = parse_reference(reference, "models")
    if not isinstance(reference, str):
        return reference
    reference = spelled(reference, lambda text: absolute(text, folder).exists())
    return with_parts(reference, lambda part: _local(part, folder))


def _local(reference: Any, folder: Path) -> Any:
    return str(local_or_hub(reference, folder)) if isinstance(reference, str) and reference else reference


def names_of(models: Sequence[str]) -> list[str]:
    """Return short, distinct names: the folders' own, with a number where two are alike or the final table has one."""
    names: list[str] = []
    for model in models:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model).name).strip("-").lower() or "model"
        name, count = stem, 1
        while name in (*names, FOUND, START):
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names
