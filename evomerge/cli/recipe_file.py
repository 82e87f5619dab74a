"""A recipe's file as verbs read it: with a warning for each key that has no effect. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evomerge.files.messages import say
from search_spaces.recipes import mergekit_export
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import Document, read_documents
from search_spaces.recipes.yaml_text import read_text
from search_spaces.yaml_lines import misread_numbers


def read(file: Path, *, strict: bool = False) -> tuple[Document, ...]:
    """Read a recipe's documents and warn of keys without effect, all at once; or refuse them.

    Raises
    ------
    RecipeError
        If the file is not a valid recipe, or it is `strict` and has such keys; a line for each.
    """
    passed_over: list[str] = []
    try:
        documents = read_documents(file, passed_over)
    except RecipeError as error:
        if strict and passed_over:
            raise RecipeError("\n".join((*passed_over, str(error)))) from None
        warn(passed_over)
        raise
    if strict and passed_over:
        raise RecipeError("\n".join((*passed_over, f"{file}: remove these keys, or merge without --strict")))
    warn(passed_over)
    warn(
        f"{file}:{found.line}: {'.'.join(map(str, found.keys))}: {found}; it is read as mergekit reads it"
        for found in misread_numbers(read_text(file))
    )
    for document in documents:
        warn(f"{file}: {difference}" for difference in mergekit_export.differences(document.recipe))
    return documents


def warn(sentences: Iterable[str]) -> None:
    """Print sentences as warnings, one line each."""
    for sentence in sentences:
        say(f"warning: {sentence}", stderr=True)
