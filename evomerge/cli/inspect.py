"""`evomerge inspect`: how similar models are, and what prevents merging them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.cli.printing import console, grid, size
from evomerge.config.errors import ConfigError
from evomerge.config.paths import names_of
from evomerge.files.references import named_twice
from evomerge.merging.checks import behaviour, preflight
from evomerge.merging.checks.licences import conflicts, licence
from evomerge.merging.checks.similarity import Similarity, measure_similarity
from evomerge.merging.sources.adapters import AdapterSource
from evomerge.merging.sources.aligned import original
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_sources, typed
from evomerge.merging.sources.source import Source


def inspect(
    models: Sequence[str], quick: bool, allow_unrelated: bool, as_json: bool, vocabulary: str | None = None
) -> None:
    """Print what was found; end with exit code 1 if the models cannot be merged as they are, or in that vocabulary."""
    twice = named_twice(models)
    if twice is not None:
        raise ConfigError(f"inspect: {twice}; name each model once")
    models = [typed(model) for model in models]
    names = names_of(models)
    checkpoints = open_sources(dict(zip(names, models, strict=True)), names[0], vocabulary=vocabulary)
    summary = inspected(checkpoints, names[0], quick=quick, allow_unrelated=allow_unrelated)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        _print(summary)
    if summary["obstacles"]:
        raise SystemExit(1)


def inspected(
    checkpoints: Mapping[str, Source], base: str, *, quick: bool = False, allow_unrelated: bool = False
) -> dict[str, Any]:
    """Return everything found out about the sources, as plain data for JSON.

    Parameters
    ----------
    checkpoints
        Opened sources by name, in the vocabulary that a merge would have.
    base
        The base's name.
    quick
        Measure similarity on a sample of each tensor.
    allow_unrelated
        Count sources that do not share the base among the warnings.
    """
    own = {name: original(checkpoint) for name, checkpoint in checkpoints.items()}
    vocabularies = {name: c.tokenizer.load().get_vocab() for name, c in own.items() if c.tokenizer.files}
    obstacles = _shape_obstacles(checkpoints, base)
    similarity = None if obstacles else measure_similarity(checkpoints, base, sample=quick)
    warnings = [*conflicts({name: licence(c) for name, c in checkpoints.items()})]
    warnings += behaviour.differing_statements(checkpoints, base)
    warnings += preflight.unverified_bases(checkpoints, base)
    for name, checkpoint in checkpoints.items():
        warnings += behaviour.behaviour(name, checkpoint, base, checkpoints[base])
    try:
        for name, checkpoint in checkpoints.items():
            preflight.check_tokenizers(name, checkpoint, base, checkpoints[base])
    except CheckpointError as error:
        obstacles.append(str(error))
    if similarity is not None:
        (warnings if allow_unrelated else obstacles).extend(preflight.unrelated(similarity, base))
    return {
        "models": {name: _model(checkpoint, vocabularies.get(name)) for name, checkpoint in own.items()},
        "vocabulary": _overlaps(vocabularies, base),
        "similarity": None if similarity is None else _similarity(similarity),
        "warnings": list(dict.fromkeys(warnings)),
        "obstacles": list(dict.fromkeys(obstacles)),
    }


def _shape_obstacles(checkpoints: Mapping[str, Source], base: str) -> list[str]:
    found = []
    for name, checkpoint in checkpoints.items():
        try:
            preflight.check_form(name, checkpoint, base, checkpoints[base])
        except CheckpointError as error:
            found.append(str(error))
    return found


def _model(checkpoint: Source, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
    return {
        "reference": checkpoint.reference,
        "kind": "adapter" if isinstance(checkpoint, AdapterSource) else "checkpoint",
        "architecture": checkpoint.outline.architecture,
        "layers": checkpoint.layout.num_layers,
        "parameters": checkpoint.outline.num_parameters,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "tied": checkpoint.outline.tied,
        "bytes": sum(path.stat().st_size for path in checkpoint.weight_files),
        "rows": checkpoint.shape(checkpoint.names[0])[0],
        "tokens": None if vocabulary is None else len(vocabulary),
        "chat_template": checkpoint.tokenizer.chat_template() is not None,
        "licence": licence(checkpoint),
    }


def _overlaps(vocabularies: Mapping[str, Mapping[str, int]], base: str) -> dict[str, dict[str, int]]:
    """Count, for each expert, the tokens shared with the base, those with the same id, and those only it has."""
    if base not in vocabularies:
        return {}
    wanted = vocabularies[base]
    return {
        name: {
            "shared": len(own.keys() & wanted.keys()),
            "same_id": sum(wanted.get(token) == place for token, place in own.items()),
            "only_here": len(own.keys() - wanted.keys()),
            "only_in_base": len(wanted.keys() - own.keys()),
        }
        for name, own in vocabularies.items()
        if name != base
    }


def _similarity(similarity: Similarity) -> dict[str, Any]:
    return {
        "entries": similarity.entries,
        "total": similarity.total,
        "groups": list(similarity.groups),
        "base_norms": list(similarity.base_norms),
        "experts": {
            expert: {
                "relative_norm": similarity.relative_norm(expert),
                "delta_norms": list(similarity.delta_norms[expert]),
                "weight_cosines": dict(similarity.weight_cosines[expert]),
            }
            for expert in similarity.experts
        },
        "cosines": _finite(similarity.cosines),
        "pearsons": _finite(similarity.pearsons),
    }


def _finite(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Return the matrix for JSON, which has no NaN."""
    return [[value if math.isfinite(value) else None for value in row] for row in matrix]


# --- for people ---


def _print(summary: dict[str, Any]) -> None:
    out = console()
    columns = ["model", "architecture", "layers", "parameters", "dtype", "tied", "files", "tokens", "chat", "licence"]
    out.print(grid(columns, [_row(name, model) for name, model in summary["models"].items()]))
    if summary["vocabulary"]:
        out.print("\nvocabulary, against the base")
        columns = ["model", "shared", "same id", "only here", "only in the base"]
        rows = [[name, *(f"{count:,}" for count in counts.values())] for name, counts in summary["vocabulary"].items()]
        out.print(grid(columns, rows))
    if summary["similarity"] is not None and summary["similarity"]["experts"]:
        _print_similarity(summary["similarity"])
    for line in summary["warnings"]:
        out.print(f"warning: {line}", soft_wrap=True)
    for line in summary["obstacles"]:
        out.print(f"cannot be merged: {line}", soft_wrap=True)


def _row(name: str, model: dict[str, Any]) -> list[str]:
    return [
        name,
        model["architecture"] + (" + LoRA" if model["kind"] == "adapter" else ""),
        str(model["layers"]),
        f"{model['parameters']:,}",
        model["dtype"],
        "yes" if model["tied"] else "no",
        size(model["bytes"]),
        "none" if model["tokens"] is None else f"{model['tokens']:,}",
        "yes" if model["chat_template"] else "no",
        model["licence"] or "not stated",
    ]


def _print_similarity(similarity: dict[str, Any]) -> None:
    out = console()
    share = similarity["entries"] / similarity["total"]
    out.print(f"\nsimilarity, from {'all' if share >= 1 else f'{share:.1%} of the'} weights (delta: model minus base)")
    names = list(similarity["experts"])
    modules = sorted({module for expert in similarity["experts"].values() for module in expert["weight_cosines"]})
    columns = ["model", "delta / base", *(f"cosine {module}" for module in modules)]
    rows = [
        [name, f"{e['relative_norm']:.4f}", *(f"{e['weight_cosines'].get(module, math.nan):.4f}" for module in modules)]
        for name, e in similarity["experts"].items()
    ]
    out.print(grid(columns, rows))
    out.print("\nnorm of the delta by layer")
    deltas = [similarity["experts"][name]["delta_norms"] for name in names]
    columns_of_norms = zip(similarity["groups"], similarity["base_norms"], *deltas, strict=True)
    norms = [[group, *(f"{norm:.3f}" for norm in row)] for group, *row in columns_of_norms]
    out.print(grid(["layer", "base's weights", *names], norms))
    if len(names) > 1:
        out.print("\ncosine / Pearson of the deltas")
        pairs = [
            [name, *(_pair(similarity["cosines"][i][j], similarity["pearsons"][i][j]) for j in range(len(names)))]
            for i, name in enumerate(names)
        ]
        out.print(grid(["", *names], pairs))


def _pair(cosine: float | None, pearson: float | None) -> str:
    return "-" if cosine is None or pearson is None else f"{cosine:.3f} / {pearson:.3f}"
