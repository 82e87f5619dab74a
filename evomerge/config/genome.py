"""The search file that means what a genome file of mergekit-evolve means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from transformers import AutoConfig

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.paths import names_of
from evomerge.files.atomic import write_text
from evomerge.files.messages import counted
from evomerge.files.references import local_or_hub
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.references import parse_reference, parts, with_parts
from search_spaces.recipes.yaml_text import documents, read_text

METHODS_OF_EVOLVE = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
EVALUATIONS = 100
"""mergekit-evolve's own budget, unless --max-fevals gave another."""


class _Read(BaseModel):
    """A section of a genome file; unknown keys are passed over, as in mergekit-evolve, and named."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _Task(_Read):
    name: str
    weight: float = 1.0
    metric: str = "acc,none"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _Genome(_Read):
    models: list[str] = Field(min_length=1)
    merge_method: str
    base_model: str | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @field_validator("models", "base_model", mode="before")
    @classmethod
    def _references(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [parse_reference(entry, f"genome.models[{index}]") for index, entry in enumerate(value)]
        return None if value is None else parse_reference(value, "genome.base_model")

    @model_validator(mode="after")
    def _as_mergekit_requires(self) -> _Genome:
        if self.merge_method not in METHODS_OF_EVOLVE:
            raise ValueError(f"merge_method {self.merge_method} is none of {', '.join(METHODS_OF_EVOLVE)}")
        if METHODS[self.merge_method].base == "required" and self.base_model is None and self.merge_method != "slerp":
            raise ValueError(f"{self.merge_method} needs a base; add base_model")
        if self.merge_method == "slerp" and (self.smooth or self.filters):
            raise ValueError("slerp takes neither smooth nor filters; remove them")
        return self


class _File(_Read):
    genome: _Genome
    tasks: list[_Task] = Field(min_length=1)
    limit: int | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


def from_genome(file: Path, output: Path, include_path: Sequence[Path] = ()) -> list[str]:
    """Write the search file; return sentences on keys without effect and on settings that mean something else here.

    Raises
    ------
    ConfigError
        If the file is not one of mergekit-evolve, the output exists, or what would be written is not a search file.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already; name another file with -o")
    found = _read(file)
    fields = _search_file(found, file, include_path)
    text = "".join(
        (
            f"# Written by `evomerge init --from {quote(file.name)}`, a genome of mergekit-evolve. Check it with\n",
            f"# `evomerge plan {quote(str(output))}`, then run `evomerge search {quote(str(output))}`.\n",
            "# All keys: `python -m evomerge.config.reference`.\n",
            *(f"# {note}\n" for note in _notes(found)),
            yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=110),
        )
    )
    write_text(output, text)
    try:
        load(output)
    except BaseException:
        output.unlink()
        raise
    return [*_without_effect(found, file), *(f"note: {note}" for note in _notes(found))]


def _read(file: Path) -> _File:
    try:
        text = read_text(file)
    except RecipeError as error:  # it names the file, and what a recipe needs
        said = str(error).rpartition("; ")[0]
        raise ConfigError(f"--from {said}; name a file of mergekit-evolve") from None
    data, *others = documents(text, str(file))
    if others or not isinstance(data, dict) or "genome" not in data:
        raise ConfigError(f"--from {file}: is not a file of mergekit-evolve; it has `genome:` and `tasks:` at its top")
    try:
        return _File.model_validate(data)
    except ValidationError as error:
        places = (
            (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()
        )
        raise ConfigError(
            "\n".join(f"{file}: {place}: {message}; correct it there" for place, message in places)
        ) from None


def _without_effect(found: _File, file: Path) -> list[str]:
    sections = (("", found), ("genome.", found.genome))
    keys = [f"{place}{key}" for place, section in sections for key in section.model_extra or ()]
    return [f"warning: {file}: {key} has no effect: mergekit-evolve has no such key" for key in keys]


def _search_file(found: _File, file: Path, include_path: Sequence[Path]) -> dict[str, Any]:
    models = _models(found.genome)
    fitness: dict[str, Any] = {"tasks": [_task(task) for task in found.tasks]}
    if include_path:
        fitness["include_path"] = [str(path.resolve()) for path in include_path]
    if found.limit is not None:
        fitness["subset"] = found.limit
    if found.num_fewshot is not None:
        fitness["num_fewshot"] = found.num_fewshot
    fitness["apply_chat_template"] = found.apply_chat_template
    fields: dict[str, Any] = {
        "models": models,
        "space": _space(found.genome, models),
        "strategy": "cma_es",
        "fitness": fitness,
        "budget": EVALUATIONS,
        "out_dtype": "bfloat16",
        "seed": 0,
    }
    vocabulary = _vocabulary(found.genome, models, file)
    return fields if vocabulary is None else fields | {"vocabulary": vocabulary}


def _models(genome: _Genome) -> dict[str, str]:
    """Return the base and the experts by name; the model whose vocabulary is asked for is the first expert.

    linear merges exactly the models: without a base among them the first gives the configuration.
    """
    base = genome.base_model
    if base is None or (METHODS[genome.merge_method].base == "none" and base not in genome.models):
        base = genome.models[0]
    experts = [model for model in dict.fromkeys(genome.models) if model != base]
    experts.sort(key=lambda model: model != genome.tokenizer_source)
    if not experts:
        raise ConfigError("genome.models: only the base is there; add at least one more model")
    references = [with_parts(model, lambda part: str(local_or_hub(part))) for model in (base, *experts)]
    return dict(zip(names_of([parts(model)[0] for model in (base, *experts)]), references, strict=True))


def _task(task: _Task) -> dict[str, Any]:
    written: dict[str, Any] = {"task": task.name, "metric": task.metric}
    return written if task.weight == 1 else written | {"weight": task.weight}


def _space(genome: _Genome, models: dict[str, str]) -> dict[str, Any]:
    method = genome.merge_method
    space: dict[str, Any] = {"kind": "layer_coefficients", "method": method, **_groups(genome, models)}
    if genome.filters:
        space["modules"] = [*genome.filters, "other"]
    if method == "slerp":
        return space | {"t": {"low": 0.0, "high": 1.0, "start": 0.5}}
    low = -1.0 if genome.allow_negative_weights else 0.0
    space["weight"] = {"low": low, "high": 1.5, "start": round(1 / len(genome.models), 4)}
    if method in ("ties", "dare_ties"):
        space["density"] = {"low": 0.05, "high": 1.0, "start": 1.0}
    normalize = genome.normalize if genome.normalize is not None else method != "task_arithmetic"
    if normalize != METHODS[method].parameter("normalize").default:
        space["fixed"] = {"normalize": normalize}
    return space


def _groups(genome: _Genome, models: dict[str, str]) -> dict[str, Any]:
    """Return the groups of layers: runs of `layer_granularity`, or the whole model.

    As in mergekit-evolve, the embeddings belong to the first group and the final norm and head to the last; with
    `smooth` these take the first value as well.
    """
    size = genome.layer_granularity
    if size <= 0:
        return {"groups": "model"}
    depth = _depth(next(iter(models.values())))
    if depth is None:
        return {"layers_per_group": size} | ({"smooth": True} if genome.smooth else {})
    if depth % size:
        raise ConfigError(
            f"genome.layer_granularity: {size} does not divide the models' {counted(depth, 'layer')}; correct it"
        )
    runs: list[list[int | str]] = [
        [f"{first}-{first + size - 1}" if size > 1 else first] for first in range(0, depth, size)
    ]
    runs[0].insert(0, "embeddings")
    runs[0 if genome.smooth else -1].append("final")
    return {"groups": runs} | ({"smooth": True} if genome.smooth and len(runs) > 1 else {})


def _depth(reference: str) -> int | None:
    """Return a model's number of layers; None if its configuration is not on this machine."""
    place = local_or_hub(parts(reference)[0])
    name, _, revision = place.partition("@") if isinstance(place, str) else (str(place), "", "")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or None, local_files_only=True)
    except (OSError, ValueError):
        return None
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _vocabulary(genome: _Genome, models: dict[str, str], file: Path) -> str | None:
    source = genome.tokenizer_source
    if source in (None, "base", "union"):
        return source
    source = str(source).removeprefix("model:")
    if source == genome.base_model or source == genome.models[0] == genome.base_model:
        return "base"
    if source in genome.models:
        first = [model for model in models.values()][1]
        return "first" if str(local_or_hub(source)) == first else "base"
    raise ConfigError(
        f"{file}: genome.tokenizer_source: {source} is not one of the models; write base, union or one of them"
    )


def _notes(found: _File) -> list[str]:
    """Return a sentence for each setting that means something else here, or nothing."""
    notes = []
    if found.random_init:
        notes.append("random_init has no counterpart: the search begins at `start`")
    if found.shuffle or found.limit is not None:
        notes.append("each candidate is asked `subset` items drawn with the seed, others in each generation")
    if not found.fewshot_as_multiturn and found.apply_chat_template:
        notes.append("fewshot_as_multiturn: false has no counterpart: examples are turns of the chat")
    if any(task.weight < 0 for task in found.tasks):
        notes.append("a task with a negative weight is better if its metric is lower")
    return notes
