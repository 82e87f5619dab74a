"""Calibration texts: read, checked, and cut into windows of tokens.

Letters: W windows, S tokens of a window.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source

WINDOW = 512
"""Tokens of one window; windows are read independently."""
MAX_WINDOWS = 256
"""At most this many windows are read, as by AIM's authors."""
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
    """Return the text's token ids, int64[W, S], the last window padded with -1.

    Raises
    ------
    CheckpointError
        If the text has fewer than `SHORTEST` tokens, or tokens that the model has no embedding of.
    """
    encoded = checkpoint.tokenizer.load()(content.decode("utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor(encoded[: WINDOW * MAX_WINDOWS], dtype=torch.int64)
    if len(ids) < SHORTEST:
        raise CheckpointError(
            f"{text}: the calibration text has {len(ids)} tokens of {checkpoint.reference}, and {SHORTEST} are the "
            "least that say something; write some pages"
        )
    rows = int(checkpoint.config.get_text_config().vocab_size)
    if int(ids.max()) >= rows:
        raise CheckpointError(
            f"{text}: the tokenizer of {checkpoint.reference} gives the token {int(ids.max())} and the model has "
            f"{rows} embeddings: it is another model's tokenizer; put the model's own into its folder"
        )
    missing = -len(ids) % WINDOW
    return torch.cat([ids, ids.new_full((missing,), -1)]).reshape(-1, WINDOW)


def without_padding(windows: Tensor, device: torch.device) -> list[Tensor]:
    """Return each window's own tokens, int64[S], on the device."""
    return [window[window >= 0].to(device) for window in windows]
