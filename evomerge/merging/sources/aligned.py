"""Sources in a vocabulary that they share: their embeddings and heads with rows added, dropped and moved.

Letters: V rows of the common vocabulary, D width of the embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.merging.sources.architecture import Outline
from evomerge.merging.sources.source import Source
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from evomerge.merging.sources.vocabulary import MISSING, Vocabulary, common_vocabulary, rows_of, tokens_of
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.token_rules import TokenRules

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def align(sources: Mapping[str, Source], policy: str, base: str, rules: TokenRules | None = None) -> dict[str, Source]:
    """Bring all models to one vocabulary; those that have it already stay as they are.

    Parameters and errors are those of `common_vocabulary`.
    """
    vocabulary = common_vocabulary(sources, policy, base, rules)
    return {
        name: source
        if _has(source, name, vocabulary, sources[base], sources[vocabulary.owner])
        else AlignedSource(name, source, vocabulary, sources)
        for name, source in sources.items()
    }


class AlignedSource:
    """A source in another vocabulary.

    Tensors with a row per token are computed when asked for; all others are the source's own. `inner` is that source.
    """

    def __init__(self, name: str, inner: Source, vocabulary: Vocabulary, sources: Mapping[str, Source]) -> None:
        self.inner = inner
        self._name = name
        self._vocabulary = vocabulary
        self._sources = sources
        config = copy.deepcopy(inner.config)
        config.vocab_size = vocabulary.rows
        for key, value in _special(sources[vocabulary.owner].config.to_dict()).items():
            setattr(config, key, value)
        self.outline = Outline(config, trust_remote_code=inner.outline.trust_remote_code)
        self._by_token = frozenset(inner.outline.rows_by_token)

    @property
    def owner(self) -> str:
        """Name of the model that gives the tokenizer, the special tokens and the chat template."""
        return self._vocabulary.owner

    @property
    def reference(self) -> str:
        """The source's."""
        return self.inner.reference

    @property
    def path(self) -> Path:
        """The source's."""
        return self.inner.path

    @property
    def config(self) -> PretrainedConfig:
        """The source's, with the rows of the vocabulary and its owner's special tokens."""
        return self.outline.config

    @property
    def layout(self) -> ModelLayout:
        """The source's."""
        return self.inner.layout

    @property
    def names(self) -> tuple[str, ...]:
        """The source's."""
        return self.inner.names

    @property
    def dtype(self) -> torch.dtype:
        """The source's."""
        return self.inner.dtype

    @property
    def buffer_dtype(self) -> torch.dtype | None:
        """The source's."""
        return self.inner.buffer_dtype

    @property
    def merged_in(self) -> torch.dtype | None:
        """The source's."""
        return self.inner.merged_in

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; one with a row per token has the common vocabulary's rows, in the source's dtype."""
        own = self.inner.tensor(name)
        return self._aligned(name, own) if name in self._by_token else own

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took."""
        self.inner.release(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without computing the tensor."""
        shape = self.inner.shape(name)
        return (self._vocabulary.rows, *shape[1:]) if name in self._by_token else shape

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer; None when the source does not hold one of that name."""
        return self.tensor(name) if name in self.names else self.inner.stored(name)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The source's."""
        return self.inner.weight_files

    @property
    def files(self) -> tuple[Path, ...]:
        """The source's."""
        return self.inner.files

    @property
    def tokenizer(self) -> TokenizerFolder:
        """The common vocabulary's."""
        return TokenizerFolder(self.reference, self._vocabulary.folder)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The source's."""
        return self.inner.left_out

    def generation_config(self) -> dict[str, Any] | None:
        """Return the source's, with the special tokens of the vocabulary's owner."""
        own, owner = self.inner.generation_config(), self._sources[self._vocabulary.owner]
        stated = owner.generation_config()
        if own is None and stated is None:
            return None
        special = _special(owner.config.to_dict() if stated is None else stated)
        return {key: value for key, value in (own or {}).items() if not key.endswith("token_id")} | special

    def _aligned(self, name: str, own: Tensor) -> Tensor:
        index_V = self._vocabulary.indices[self._name]
        result = own[index_V.clamp(min=0)]
        missing = torch.nonzero(index_V == MISSING).flatten()
        if len(missing):
            result[missing] = self._filled(name, missing, own).to(own.dtype)
        for place, given in self._vocabulary.given.items():
            if given.force or index_V[place] == MISSING:
                source = None if given.model is None else self._sources[given.model].tensor(name)
                result[place] = 0.0 if source is None else source[given.row].to(own.dtype)
        padding = self._vocabulary.padding
        if len(padding):
            alone = set(padding.tolist())
            known = (id for id in self._vocabulary.tokens.values() if id < len(result) and id not in alone)
            result[padding] = result[torch.tensor(sorted(known))].float().mean(0).to(own.dtype)
        return result

    def _filled(self, name: str, ids: Tensor, own: Tensor) -> Tensor:
        """Return the common rows `ids` from the models that have them, float32[len(ids), D]."""
        vocabulary = self._vocabulary
        total = own.new_zeros((len(ids), *own.shape[1:]), dtype=torch.float32)
        count = torch.zeros(len(ids))
        base_has = vocabulary.indices[vocabulary.base][ids] != MISSING
        for model, source in self._sources.items():
            index = vocabulary.indices[model][ids]
            gives = (index != MISSING) & (base_has if model == vocabulary.base else ~base_has)
            if gives.any():
                total[gives] += source.tensor(name)[index[gives]].float()
                count[gives] += 1
        return total / count.clamp(min=1).view(-1, *[1] * (own.dim() - 1))


def original(source: Source) -> Source:
    """Return the source as its folder holds it, in its own vocabulary."""
    return source.inner if isinstance(source, AlignedSource) else source


def _has(source: Source, name: str, vocabulary: Vocabulary, base: Source, owner: Source) -> bool:
    """Whether the model has the common vocabulary already: its rows, its tokenizer and its way to end a text."""
    index_V = vocabulary.indices[name]
    if vocabulary.given:
        return False
    if _endings(source, base) != _endings(owner, base):
        return False
    same_rows = len(index_V) == rows_of(source) and bool((index_V == torch.arange(len(index_V))).all())
    return same_rows and tokens_of(source, base) == vocabulary.tokens


def _endings(source: Source, base: Source) -> object:
    """Return what decides where texts end: special tokens and the chat template.

    A model without a tokenizer has the base's template.
    """
    tokenizer = source.tokenizer if source.tokenizer.files else base.tokenizer
    generation = _special(source.generation_config() or {})
    return _special(source.config.to_dict()), generation, tokenizer.chat_templates()


def _special(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.endswith("token_id")}
