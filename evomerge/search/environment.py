"""The identity of a search: what its numbers follow from, so that another session or worker can be compared with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from evomerge.config.search_file import SearchConfig
from evomerge.files.hashing import sha256
from evomerge.merging.engine.placement import torch_device
from evomerge.merging.sources.source import Source, fingerprint
from evomerge.workers.config import RayConfig
from fitness.scoring.engine_config import AnyEngine, VllmEngine
from search_spaces.spaces.registry import RECIPE_KEYS

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "jinja2", "cma", "numpy", "scipy")
_OF_TASKS = ("lm_eval", "datasets")  # a search that a function judges goes without
OPTIONAL_PACKAGES = (*_OF_TASKS, "cmaes", "nevergrad", "peft", "evaluate", "sacrebleu", "rouge_score", "nltk", "sympy")
_FILES = ("item_bank", "ids", "calibration_text", "text", *RECIPE_KEYS)
"""Keys of a search file that may name a file whose contents count."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect numbers and are installed."""
    # Looking for each optional package is faster than reading all installed names.
    optional = [package for package in OPTIONAL_PACKAGES if any(metadata.distributions(name=package))]
    return {name: metadata.version(name) for name in (*PACKAGES, *optional)}


def engine_versions(engine: AnyEngine) -> dict[str, str]:
    """Return the versions of the packages that compute answers in an environment of their own; none for transformers.

    Raises
    ------
    TaskError
        If vLLM is not there, or of a version that was not tested.
    """
    if not isinstance(engine, VllmEngine):
        return {}
    from fitness.vllm.environment import versions as of_vllm

    return of_vllm(engine)


def config_identity(config: SearchConfig) -> dict[str, Any]:
    """Return the values of a resolved search file that two sessions share, with hashes in place of paths to files."""
    identity: dict[str, Any] = _without_places(config.identity())
    return identity


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_place(key, inner) for key, inner in value.items()}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def _without_place(key: str, value: Any) -> Any:
    if key == "warm_start" and isinstance(value, dict):
        return value | {"run": None}  # its candidates have been read
    if key in RECIPE_KEYS and isinstance(value, list):
        return [_without_place(key, entry) for entry in value]
    if key in _FILES and isinstance(value, dict):
        return {name: _without_place(key, inner) for name, inner in value.items()}
    if key in _FILES and isinstance(value, str) and Path(value).is_file():
        return sha256(Path(value))
    return _without_places(value)


def source_files(sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return sizes and hashes of the files that decide each source's weights."""
    return {name: fingerprint(source)["files"] for name, source in sources.items()}


def tokenizer_files(sources: Mapping[str, Source]) -> dict[str, dict[str, str]]:
    """Return the hash of each file of the sources' tokenizers and of their generation settings.

    These decide how prompts become tokens and where texts end; of a model in a common vocabulary they are its owner's.
    """
    return {name: _texts(source) for name, source in sources.items()}


def _texts(source: Source) -> dict[str, str]:
    files = [*source.tokenizer.files, source.path / "generation_config.json"]
    return {path.name: sha256(path) for path in files if path.is_file()}


def text_hash(text: str | None) -> str:
    """Return the SHA-256 of a text; empty for none."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()


def compute_dtype(config: SearchConfig) -> str:
    """Return what forward passes compute in; `auto` where only the workers know, because they choose their device."""
    settings, workers = config.workers.settings(), config.workers
    if settings.compute_dtype != "auto":
        return settings.compute_dtype
    if not isinstance(workers, RayConfig):
        on_cpu = torch_device(settings.device) == "cpu"
    elif workers.gpus_per_worker == "auto":
        return "auto"
    else:
        on_cpu = workers.gpus_per_worker == 0
    return "float32" if on_cpu else config.out_dtype
