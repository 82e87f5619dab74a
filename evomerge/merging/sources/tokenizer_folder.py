"""The tokenizer that a model's folder holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from evomerge.files.messages import reason
from evomerge.merging.sources.architecture import quiet
from evomerge.merging.sources.errors import CheckpointError

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
        """The tokenizer's files, sorted by name; empty when the folder holds none."""
        return tuple(sorted({path for pattern in PATTERNS for path in self.path.glob(pattern) if path.is_file()}))

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
        try:
            with quiet():
                return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # a damaged tokenizer raises all kinds of errors, and the user sees one line
            raise CheckpointError(
                f"{self.reference}: its tokenizer cannot be loaded ({reason(error)}); save it again"
            ) from error

    def chat_template(self) -> str | None:
        """Return the chat template that the files hold; None when there is none."""
        for path in self.files:
            if path.name == "chat_template.jinja":
                return path.read_text(encoding="utf-8")
        for path in self.files:
            if path.name == "tokenizer_config.json":
                try:
                    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
                except (ValueError, AttributeError):
                    return None
                return template if isinstance(template, str) else None
        return None
