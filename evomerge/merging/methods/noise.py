"""Seeded noise of a recipe: normal numbers that depend on seed, tensor name and entry alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search_spaces.recipes.mixture_table import Piece


class NoiseStream:
    """The noises of one tensor, drawn from its first entry to its last.

    numpy's ziggurat draws one number after the other, so the blocks make no difference.
    """

    def __init__(self, tensor: str, pieces: Sequence[Piece]) -> None:
        seeds = sorted({noise.seed for piece in pieces for noise in piece.noises})
        self._streams = {seed: _generator(seed, tensor) for seed in seeds}

    def add_to(self, out_E: Tensor, piece: Piece) -> None:
        """Add the noises of the next E entries, which are part of `piece`, to float32[E]."""
        deviations = {noise.seed: noise.deviation for noise in piece.noises}
        for seed, stream in self._streams.items():
            drawn = stream.standard_normal(out_E.numel(), dtype=np.float32)  # ~ N(0, 1), drawn in any case
            if seed in deviations:
                out_E.add_(torch.from_numpy(drawn).to(out_E.device), alpha=deviations[seed])


def _generator(seed: int, tensor: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{tensor}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
