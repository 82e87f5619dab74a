"""Calibration texts: read, checked, and cut into windows of tokens.

Letters: W windows, S tokens of a window.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from evomerge.files.messages import counted
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source

WINDOW = 512
"""Tokens of one window; windows are read independently."""
MAX_WINDOWS = 256
"""At most the tokens of so many windows are read, as by AIM's authors."""
SHORTEST = 16
"""Tokens that a text has to have."""


def read(text: Path) -> bytes:
    """Return a text's contents.

    Raises
    ------
    CheckpointError
        If it cannot be read, is not UTF-8, or is empty.
    """
    if text.exists() and not text.is_file():  # a pipe may never end
        raise CheckpointError(f"{text}: the calibration text is not a regular file; name a text file")
    try:
        content = text.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{text}: the calibration text cannot be read ({error.strerror or error}); name a text file"
        ) from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{text}: the calibration text is not UTF-8; save it as such") from None
    if not content.strip():
        raise CheckpointError(f"{text}: the calibration text is empty; write some pages into it") from None
    return content


def most_tokens(content: bytes) -> int:
    """Return a bound of the tokens that are read of a text."""
    return min(len(content), WINDOW * MAX_WINDOWS)


def windows_of(checkpoint: Source, content: bytes, text: Path) -> Tensor:
    """Return the text's token ids, int64[W, S], windows shorter than the longest padded with -1.

    Documents of a JSONL file are read apart, with the tokenizer's special tokens, as prompts are.

    Raises
    ------
    CheckpointError
        If the text has fewer than `SHORTEST` tokens, or tokens that the model has no embedding of.
    """
    tokenizer, pieces, count = checkpoint.tokenizer.load(), list[Tensor](), 0
    for document in documents(content, text):
        encoded = tokenizer(document, add_special_tokens=is_jsonl(text), verbose=False)["input_ids"]
        ids = torch.tensor(encoded[: WINDOW * MAX_WINDOWS - count], dtype=torch.int64)
        count += len(ids)
        pieces += [piece for piece in ids.split(WINDOW) if len(piece)]
        if count == WINDOW * MAX_WINDOWS:
            break
    if count < SHORTEST:
        raise CheckpointError(
            f"{text}: the calibration text has {counted(count, 'token')} of {checkpoint.reference}, and "
            f"{SHORTEST} are the "
            "least that say something; write some pages"
        )
    windows = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=-1)
    rows = int(checkpoint.config.get_text_config().vocab_size)
    if int(windows.max()) >= rows:
        raise CheckpointError(
            f"{text}: the tokenizer of {checkpoint.reference} gives the token {int(windows.max())} and the model has "
            f"{rows} embeddings: it is another model's tokenizer; put the model's own into its folder"
        )
    return windows


def is_jsonl(text: Path) -> bool:
    """Return whether a text is a file of documents, one in a line."""
    return text.suffix == ".jsonl"


def documents(content: bytes, text: Path) -> list[str]:
    """Return what is read apart from each other: the lines of a JSONL file, or a text as one.

    A line is a JSON string, or an object with a ``text``.

    Raises
    ------
    CheckpointError
        If a line is neither.
    """
    if not is_jsonl(text):
        return [content.decode("utf-8")]
    found = []
    # not splitlines(), which also ends a line at characters that JSON's texts may contain, such as U+2028
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        value = value.get("text") if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise CheckpointError(f'{text}:{number}: it is not a document; write a line such as {{"text": "..."}}')
        found.append(value)
    return found


def without_padding(windows: Tensor, device: torch.device) -> list[Tensor]:
    """Return each window's own tokens, int64[S], on the device."""
    return [window[window >= 0].to(device) for window in windows]
