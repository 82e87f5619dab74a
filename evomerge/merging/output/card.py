"""The model card of a merged checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from evomerge.files.references import local_or_hub
from evomerge.merging.checks.licences import licence
from evomerge.merging.sources.source import Source
from search_spaces.recipes.mergekit.documents import Document, dump, with_models
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import parts, with_parts


def model_card(
    recipe: Recipe, checkpoints: Mapping[str, Source], notes: Sequence[str] = (), documents: Sequence[Document] = ()
) -> str:
    """Return the README.md of a merged model, with the hub's front matter.

    Parameters
    ----------
    recipe
        The recipe that was merged.
    checkpoints
        Opened sources by the recipe's references.
    notes
        Paragraphs to put before the recipe, such as scores and the search that found it.
    documents
        The documents to quote, the recipe's own last; empty: the recipe alone.
    """
    documents = documents or (Document(None, recipe),)
    references = [document.name for document in documents if document.name is not None]
    references += [model for document in documents for model in document.recipe.models if model not in references]
    licences = {reference: licence(checkpoints[reference]) for reference in recipe.models}
    names = public_names(recipe.models)
    lines = [
        *_front_matter(references, set(licences.values())),
        f"# Merge of {', '.join(names.values())}",
        "",
        *(f"Merged with evomerge, method `{spec.name}`: {spec.doc}" for spec in recipe.specs),
        "",
        *(f"{note}\n" for note in notes),
        *_licence_lines({names[reference]: value for reference, value in licences.items()}),
        "## Recipe",
        "",
        "Also in `recipe.yaml`; `evomerge merge recipe.yaml OUT` rebuilds the model.",
        "",
        "```yaml",
        dump(with_models(documents, public_names(references))).strip(),
        "```",
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _front_matter(references: Sequence[str], licences: set[str | None]) -> list[str]:
    """Return the lines that the hub reads; a licence only where all sources have the same."""
    front: dict[str, object] = {
        "base_model": [name for name in _named(references) if _is_hub_id(name)] or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "evomerge"],
        "license": next(iter(licences)) if len(licences) == 1 else None,
    }
    known = {key: value for key, value in front.items() if value is not None}
    return ["---", yaml.safe_dump(known, sort_keys=False, allow_unicode=True).strip(), "---", ""]


def public_names(references: Sequence[str]) -> dict[str, str]:
    """Return a unique name for each reference that does not reveal folders of its author's disk."""
    names: dict[str, str] = {}
    for reference in references:
        name = with_parts(reference, lambda part: part if _is_hub_id(part) else Path(part).name)
        names[reference] = f"{name}-{len(names)}" if name in names.values() else name
    return names


def _named(references: Sequence[str]) -> list[str]:
    """Return every model and adapter once."""
    return list(dict.fromkeys(part for reference in references for part in parts(reference) if part is not None))


def _is_hub_id(reference: str) -> bool:
    return isinstance(local_or_hub(reference), str)


def _licence_lines(licences: Mapping[str, str | None]) -> list[str]:
    if len(set(licences.values())) == 1:
        return []
    rows = [f"- {model}: {name or 'not stated'}" for model, name in licences.items()]
    return ["## Licences of the sources", "", *rows, ""]
