"""The tokenizer that a model's folder holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.files.messages import reason
from evomerge.merging.sources.architecture import quiet
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import read_json
from evomerge.merging.well_known import tokenizers

PATTERNS = (
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
)

NAMED_TEMPLATES = "additional_chat_templates"
DEFAULT = "default"
"""transformers' name for the template that is used where none is named."""


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder that may hold a tokenizer; its files are looked up when they are asked for.

    Attributes
    ----------
    reference
        The model, as messages name it.
    path
        The folder.
    trust_remote_code
        Whether code from the folder may run.
    """

    reference: str
    path: Path
    trust_remote_code: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The tokenizer's files, sorted by name; empty when the folder holds none, as with a chat template alone."""
        found = sorted({path for pattern in PATTERNS for path in self.path.glob(pattern) if path.is_file()})
        return tuple(found) if any(not path.name.startswith("chat_template") for path in found) else ()

    def load(self) -> Any:
        """Return the tokenizer.

        Raises
        ------
        CheckpointError
            If the folder holds none that transformers can load.
        """
        if not self.files:
            raise CheckpointError(
                f"{self.reference}: the folder has no tokenizer; save one with tokenizer.save_pretrained()"
            )
        from transformers import AutoTokenizer

        try:
            with quiet():
                return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # a damaged tokenizer raises all kinds of errors, and the user sees one line
            raise CheckpointError(
                f"{self.reference}: its tokenizer cannot be loaded ({reason(error)}); save it again"
            ) from error

    def check(self) -> None:
        """Refuse a tokenizer that cannot be loaded.

        Raises
        ------
        CheckpointError
            As `load`.
        """
        if tokenizers.end_token_id(self.path) is None:
            self.load()

    def end_token_id(self) -> int | None:
        """Return the id of the token that ends texts; None if the tokenizer has no such token."""
        known = tokenizers.end_token_id(self.path)
        if known is not None:
            return known
        found: int | None = self.load().eos_token_id
        return found

    def has_vocabulary_of(self, other: TokenizerFolder) -> bool:
        """Whether both have the same tokens, with the same ids."""
        if tokenizers.have_one_vocabulary(self.files, other.files):
            return True
        return bool(self.load().get_vocab() == other.load().get_vocab())

    def copy_to(self, folder: Path) -> None:
        """Copy the files, without the names of code that is not copied (``auto_map``); named templates come along."""
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        if (self.path / NAMED_TEMPLATES).is_dir():
            (folder / NAMED_TEMPLATES).mkdir()
            for path in sorted((self.path / NAMED_TEMPLATES).glob("*.jinja")):
                shutil.copyfile(path, folder / NAMED_TEMPLATES / path.name)
        settings = folder / "tokenizer_config.json"
        values = read_json(settings) if settings.is_file() else {}
        if isinstance(values, dict) and values.pop("auto_map", None) is not None:
            settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def chat_templates(self) -> dict[str, str]:
        """Return the chat templates that the files hold, by name; the one without a name is ``default``.

        As in transformers, chat_template.jinja counts before tokenizer_config.json, which may list several.
        """
        if not self.files:
            return {}
        found: dict[str, str] = {}
        if (self.path / "tokenizer_config.json").is_file():
            try:
                stated = read_json(self.path / "tokenizer_config.json").get("chat_template")
            except (OSError, ValueError, AttributeError):
                stated = None
            listed = stated if isinstance(stated, list) else [{"name": DEFAULT, "template": stated}]
            pairs = [(entry.get("name"), entry.get("template")) for entry in listed if isinstance(entry, dict)]
            found = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
        if (self.path / "chat_template.jinja").is_file():
            found[DEFAULT] = (self.path / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
        for path in sorted((self.path / NAMED_TEMPLATES).glob("*.jinja")):
            found[path.stem] = path.read_text(encoding="utf-8", errors="replace")
        return found

    def chat_template(self) -> str | None:
        """Return the chat template that is used where none is named; None when there is none."""
        return self.chat_templates().get(DEFAULT)
