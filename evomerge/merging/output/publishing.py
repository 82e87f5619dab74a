"""What of a merged folder goes to the hub: checked for what must not be published, and free of this machine's paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from evomerge.files.messages import reason
from evomerge.merging.output.card import (
    MERGEKIT_CONFIG,
    README,
    RECIPE,
    all_references,
    is_hub_id,
    public_names,
    public_recipe,
)
from evomerge.merging.output.shards import INDEX
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import read_documents
from search_spaces.recipes.references import parts, with_parts

UNPUBLISHED = "none"
"""In place of a repository: the model is not on the hub, and the recipe keeps its name alone."""
LARGEST_TEXT = 100_000_000
"""Bytes of a text file that is looked through."""

_WHOLE = (("config.json", "model.safetensors"), ("adapter_config.json", "adapter_model.safetensors"))
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Files whose strings are tokens, which may look like paths."""
_BINARY = (".safetensors", ".gguf", ".bin", ".model", ".png", ".svg")
_SECRETS = {
    "a token of the hub": r"\bhf_[A-Za-z0-9]{30,}",
    "a key of OpenAI or Anthropic": r"\bsk-[A-Za-z0-9_-]{24,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "a token of Slack": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_PATH = re.compile(r"(?:~?/[^\s/'\"`]+/[^\s'\"`]*|[A-Za-z]:[\\/][^\s'\"`]+)")
"""A text that is an absolute path of at least two parts."""
_PATH_INSIDE = re.compile(
    r"(?<![\w./:-])(?:/(?:home|Users|root|tmp|mnt|media|scratch|workspace|work|data|srv|opt|var)/[\w.-][^\s'\"`|)]*"
    r"|[A-Za-z]:\\[^\s'\"`|)]+)"
)
"""A path in the middle of prose: only where folders usually are, because prose has other slashes."""


class PublishError(ValueError):
    """A folder that must not or cannot be published; the message says what to change."""


@dataclass(frozen=True)
class UploadFile:
    """One file to upload.

    Attributes
    ----------
    name
        Its path in the repository.
    source
        Where it is.
    text
        What is uploaded in place of its contents; None: the file as it is.
    """

    name: str
    source: Path
    text: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.source.stat().st_size if self.text is None else len(self.text.encode())


@dataclass(frozen=True)
class Upload:
    """A checked folder.

    Attributes
    ----------
    files
        What is uploaded, by name.
    left_out
        Hidden files and folders, which stay here.
    card
        The card as it is uploaded; huggingface_hub has read it.
    """

    files: tuple[UploadFile, ...]
    left_out: tuple[str, ...]
    card: ModelCard

    def write_to(self, folder: Path) -> None:
        """Fill an empty folder with the files: links to those that are uploaded as they are."""
        for file in self.files:
            place = folder / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.text is None:
                place.symlink_to(file.source.resolve())
            else:
                place.write_text(file.text, encoding="utf-8")


def checked_upload(folder: Path, published: Mapping[str, str] | None = None) -> Upload:
    """Return the files of a folder that go to the hub.

    Parameters
    ----------
    folder
        What `evomerge merge` has written.
    published
        Repository of each model that the recipe names by a folder of this machine, by the folder's name or path;
        `UNPUBLISHED`: it has none.

    Raises
    ------
    PublishError
        If the folder is not a finished merge, its card does not validate, or a file holds a secret or a path of this
        machine; a line for each mistake.
    """
    names, left_out = _listed(folder)
    _check_finished(folder, names)
    local = _Models(folder, published or {})
    files = tuple(UploadFile(name, folder / name, local.rewritten(name)) for name in names)
    card = _card(next(file for file in files if file.name == README))
    mistakes = [mistake for file in files for mistake in _mistakes(file)]
    if mistakes:
        raise PublishError("\n".join(mistakes))
    return Upload(files, left_out, card)


def check_repository(name: str) -> None:
    """Refuse what is not a repository name; raises PublishError."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise PublishError(f"{name!r} is not a repository of the hub; write OWNER/NAME") from None


def _listed(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the names of a folder's files, and those of hidden ones."""
    if not folder.is_dir():
        raise PublishError(f"{folder}: is not a folder; name one that `evomerge merge` has written")
    names, hidden = [], []
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.is_symlink():
            raise PublishError(f"{folder}: {name} is a link; replace it by its target, or remove it")
        if any(part.startswith(".") for part in Path(name).parts):
            hidden += [name] if place.is_file() else []
        elif place.is_file():
            names.append(name)
        elif not place.is_dir():
            raise PublishError(f"{folder}: {name} is not a regular file; remove it")
    return names, tuple(hidden)


def _check_finished(folder: Path, names: Sequence[str]) -> None:
    if RECIPE not in names or README not in names:
        missing = RECIPE if RECIPE not in names else README
        raise PublishError(f"{folder}: has no {missing}; name a folder that `evomerge merge` has written")
    weights = _sharded(folder) if INDEX in names else []
    one_file = next((kind for kind in _WHOLE if kind[1] in names), _WHOLE[0])
    kind = ("config.json", *weights) if weights else one_file
    missing = next((name for name in kind if name not in names), "")
    if missing:
        raise PublishError(f"{folder}: has no {missing}, so the merge is not complete; merge again")
    for name in kind[1:]:
        try:
            with safe_open(folder / name, framework="pt") as file:  # refuses a file that ends early
                file.keys()
        except (SafetensorError, OSError) as error:
            raise PublishError(f"{folder}: {name} is damaged ({reason(error, folder / name)}); merge again") from None


def _sharded(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted({str(name) for name in index["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PublishError(f"{folder}: {INDEX} is damaged ({reason(error)}); merge again") from None


def _card(file: UploadFile) -> ModelCard:
    """Return the card as huggingface_hub reads it."""
    text = file.source.read_text(encoding="utf-8", errors="replace") if file.text is None else file.text
    if not text.startswith("---\n"):
        raise PublishError(f"{file.source}: has no front matter; merge again, or write what the hub reads: base_model")
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise PublishError(
            f"{file.source}: the hub cannot read its front matter ({reason(error)}); correct it"
        ) from None
    base = card.data.base_model
    for name in [base] if isinstance(base, str) else base or []:
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
            raise PublishError(f"{file.source}: base_model: {name!r} is not a repository of the hub; write OWNER/NAME")
    return card


class _Models:
    """The models that a folder's recipe names by folders of this machine, and their names on the hub."""

    def __init__(self, folder: Path, published: Mapping[str, str]) -> None:
        self._folder = folder
        try:
            self._documents = read_documents(folder / RECIPE)
        except RecipeError as error:
            raise PublishError(str(error)) from None
        results = [document.name for document in self._documents]
        named = [
            part
            for reference in (*all_references(self._documents), *self._adapter_base())
            for part in parts(reference)
            if part is not None and part not in results
        ]
        self._hub = self._mapped([name for name in dict.fromkeys(named) if not is_hub_id(name)], published)

    def rewritten(self, name: str) -> str | None:
        """Return what is uploaded in place of a file with the local names replaced; None: the file as it is."""
        text = {RECIPE: self._recipe, MERGEKIT_CONFIG: self._recipe, README: self._readme}.get(name, lambda: None)()
        if text is None and name.endswith(".json") and name not in _VOCABULARIES:
            text = self._json(name)
        return None if text is None or text == self._text(name) else text

    def _text(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8", errors="replace")

    def _adapter_base(self) -> list[str]:
        file = self._folder / "adapter_config.json"
        if not file.is_file():
            return []
        try:
            base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError) as error:
            raise PublishError(f"{file}: is not valid JSON ({reason(error)}); merge again") from None
        return [base] if isinstance(base, str) and base else []

    def _mapped(self, local: Sequence[str], published: Mapping[str, str]) -> dict[str, str]:
        """Return the public name of each local folder."""
        short = [Path(name).name for name in local]
        keys = {name: Path(name).name if short.count(Path(name).name) == 1 else name for name in local}
        unknown = next((name for name in published if name not in (*local, *keys.values())), None)
        if unknown is not None:
            known = ", ".join(keys.values()) or "no model of this machine"
            raise PublishError(f"--base-model {unknown}: the recipe names {known}; write one of these before the =")
        found = {name: published.get(name, published.get(keys[name], "")) for name in local}
        missing = [keys[name] for name in local if not found[name]]
        if missing:
            options = " ".join(f"--base-model {quote(name)}=OWNER/NAME" for name in missing)
            raise PublishError(
                f"{self._folder / RECIPE}: names models by folders of this machine; give their public names: "
                f"{options} (or NAME={UNPUBLISHED} for one that is not)"
            )
        for name in found.values():
            if name != UNPUBLISHED:
                check_repository(name)
        return {name: Path(name).name if hub == UNPUBLISHED else hub for name, hub in found.items()}

    def _recipe(self) -> str:
        references = all_references(self._documents)
        named = {model: with_parts(model, lambda part: self._hub.get(part, part)) for model in references}
        return public_recipe(self._documents, named)

    def _readme(self) -> str:
        """Return the card with the models of the hub as base models, and in the recipe that it quotes."""
        text = self._text(README)
        quoted = public_recipe(self._documents, public_names(all_references(self._documents))).strip()
        text = text.replace(quoted, self._recipe().strip())
        hub = [name for name in self._hub.values() if is_hub_id(name)]
        if not hub or not text.startswith("---\n"):
            return text
        try:
            card = ModelCard(text)
        except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
            return text  # `_card` says what is wrong with it
        stated = card.data.base_model or []
        card.data.base_model = list(dict.fromkeys([*([stated] if isinstance(stated, str) else stated), *hub]))
        return str(card)

    def _json(self, name: str) -> str | None:
        try:
            values = json.loads(self._text(name))
        except ValueError:
            return None
        changed = _replaced(values, self._hub)
        return None if changed == values else json.dumps(changed, indent=2, ensure_ascii=False) + "\n"


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


# --- what must not be published ---


def _mistakes(file: UploadFile) -> Iterator[str]:
    """Yield a line for each kind of secret and each path of this machine in a file."""
    if file.source.suffix in _BINARY:
        return
    if file.text is None and file.source.stat().st_size > LARGEST_TEXT:
        yield f"{file.source}: is too large to check for secrets; remove it, or upload it by hand"
        return
    text = file.source.read_text(encoding="utf-8", errors="replace") if file.text is None else file.text
    for what, pattern in _SECRETS.items():
        found = re.search(pattern, text)
        if found:
            line = text.count("\n", 0, found.start()) + 1
            yield f"{file.source}:{line}: contains what looks like {what} ({found[0][:6]}...); remove it"
    for place in _paths(file.name, text):
        yield f"{file.source}: {place}, a path of this machine; remove it, or write a public name"


def _paths(name: str, text: str) -> Iterator[str]:
    """Yield where a text has a path of this machine: `key is PATH`, or `line N has PATH`."""
    if name in _VOCABULARIES:
        return
    if name.endswith((".json", ".yaml", ".yml")):
        try:
            loaded = list(yaml.safe_load_all(text)) if not name.endswith(".json") else json.loads(text)
        except (ValueError, yaml.YAMLError, RecursionError):
            loaded = None
        if loaded is not None:
            yield from (f"{key} is {value}" for key, value in _strings(loaded, "") if _PATH.fullmatch(value))
            return
    for number, line in enumerate(text.splitlines(), start=1):
        found = _PATH_INSIDE.search(line)
        if found:
            yield f"line {number} has {found[0]}"


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, str):
        yield key, value
