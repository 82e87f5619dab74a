"""Files with several recipes, where later merges use the results of earlier ones by name.

The format of mergekit-multi: YAML documents separated by ``---``, each a recipe. A document that another one uses has a
``name``. The order in the file does not matter. The file's result is the document without a name, or the last one if
all have names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from search_spaces.recipes import mergekit_yaml, yaml_text
from search_spaces.recipes.errors import RecipeError, shown
from search_spaces.recipes.fields import VOCABULARIES
from search_spaces.recipes.mergekit.other_files import refuse_other_files
from search_spaces.recipes.mergekit.passed_over import without_passed_over
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import adapted, is_dequantized, parts
from search_spaces.recipes.yaml_text import Repeated
from search_spaces.yaml_lines import line_of


@dataclass(frozen=True)
class Document:
    """One document: a merge and the name of its result; None for the file's own result."""

    name: str | None
    recipe: Recipe

    def uses(self, names: Sequence[str | None]) -> tuple[str, ...]:
        """Return the `names` that are models of the recipe, with an adapter or without."""
        models = dict.fromkeys(parts(reference)[0] for reference in self._references())
        return tuple(model for model in models if model in names)

    def with_results(self, folders: Mapping[str, str]) -> Recipe:
        """Return the recipe with names of other documents replaced by the folders of their results."""
        mapping = {}
        for reference in self._references():
            model, adapter = parts(reference)
            mapping[reference] = adapted(folders.get(model, model), adapter, dequantize=is_dequantized(reference))
        return self.recipe.with_models(mapping)

    def _references(self) -> list[str]:
        tokenizer = self.recipe.tokenizer_source
        return [*self.recipe.models, *([] if tokenizer is None or tokenizer in VOCABULARIES else [tokenizer])]


def read_documents(path: Path, passed_over: list[str] | None = None) -> tuple[Document, ...]:
    """Read a file of one or several documents; return each document after those it uses.

    The last is the file's result.

    Parameters
    ----------
    path
        The file.
    passed_over
        A list that takes up a sentence for each key without effect in mergekit (see `passed_over`), with file and line.
        None: such keys are errors.

    Raises
    ------
    RecipeError
        If a document is not a valid recipe, a name is missing, repeated or invalid, or documents use each other in a
        circle.
    """
    return parse_documents(yaml_text.read_text(path), str(path), passed_over)


def parse_documents(text: str, origin: str, passed_over: list[str] | None = None) -> tuple[Document, ...]:
    """Read documents from a text; errors start with `origin` and name the document. See `read_documents`."""
    repeated: list[Repeated] | None = None if passed_over is None else []
    loaded = yaml_text.documents(text, origin, repeated)
    refuse_other_files(loaded, origin)
    if passed_over is not None:
        found: list[tuple[int, str]] = []
        loaded = [_without_passed_over(data, text, index, found) for index, data in enumerate(loaded)]
        found += [(key.line, f"{shown(key.key)} has no effect: it is given again below") for key in repeated or ()]
        passed_over += [f"{origin}:{line}: {text}" for line, text in sorted(found)]
    several = len(loaded) > 1
    documents = [
        _document(data, f"{origin}: document {index + 1}" if several else origin, text, index)
        for index, data in enumerate(loaded)
    ]
    if not several:
        return (documents[0],)
    names = [document.name for document in documents]
    for name in names:
        if names.count(name) > 1:
            said = "have no name; give all but one a name" if name is None else f"are called {name}; rename one"
            raise RecipeError(f"{origin}: two documents {said}")
    result = next((document for document in documents if document.name is None), documents[-1])
    by_name = {document.name: document for document in documents}
    try:
        order = [*TopologicalSorter({document.name: document.uses(names) for document in documents}).static_order()]
    except CycleError as error:
        circle = " -> ".join(str(name) for name in error.args[1])
        raise RecipeError(f"{origin}: documents use each other in a circle ({circle}); rename one of them") from None
    return (*(by_name[name] for name in order if by_name[name] is not result), result)


def _without_passed_over(data: Any, text: str, index: int, passed_over: list[tuple[int, str]]) -> Any:
    """Return a document without keys that have no effect, and add the line and a sentence for each."""
    name = {"name": data["name"]} if isinstance(data, dict) and "name" in data else {}
    own = {key: value for key, value in data.items() if key != "name"} if name else data
    kept, found = without_passed_over(own)
    passed_over += [(line_of(text, key.keys, index) or 1, str(key)) for key in found]
    return name | kept if name else kept


def needed(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Return the documents that the last one needs, in their order, and the last one."""
    names = [document.name for document in documents]
    wanted = {documents[-1].name}
    for document in reversed(documents):
        if document.name in wanted:
            wanted.update(document.uses(names))
    return tuple(document for document in documents if document.name in wanted)


def dump(documents: Sequence[Document]) -> str:
    """Return the documents as YAML that `parse_documents` reads back."""
    if len(documents) == 1:
        return mergekit_yaml.dump(documents[0].recipe)
    heads = ["" if document.name is None else f"name: {document.name}\n" for document in documents]
    return "---\n".join(
        head + mergekit_yaml.dump(document.recipe) for head, document in zip(heads, documents, strict=True)
    )


def with_models(documents: Sequence[Document], mapping: Mapping[str, str]) -> tuple[Document, ...]:
    """Return the documents with references that are keys of `mapping` replaced."""
    return tuple(replace(document, recipe=document.recipe.with_models(mapping)) for document in documents)


def _document(data: Any, origin: str, text: str, index: int) -> Document:
    name = None
    if isinstance(data, dict) and "name" in data:
        name = data["name"]
        data = {key: value for key, value in data.items() if key != "name"}
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise RecipeError(f"{origin}: name: {name!r} is not a name; use letters, digits, ., - and _")
    return Document(name, mergekit_yaml.build(data, origin, text, index))
