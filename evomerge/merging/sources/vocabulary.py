"""Sources whose vocabularies differ, brought to one: embedding rows matched by token, what is missing filled.

Policies, as in mergekit's `tokenizer_source` (`union`, `base`, a model) and two of ours (`first`, `pad`):

* ``base``, a model, ``first`` (the first that is not the base): that model's vocabulary;
* ``union``: the base's with its ids, then every further token in order of the models;
* ``pad``: rows compared by id, not by token, up to the longest matrix.

A row that a model lacks is the base's; where the base lacks it too, the mean of those that have it (mergekit's rule). A
recipe may say otherwise of single tokens, and add tokens and rows (`search_spaces.recipes.token_rules`). Added rows
without a
token are the mean of the model's rows with one.

Letters: V rows of the common vocabulary, D width of the embeddings.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.sources.architecture import meta_module, quiet
from evomerge.merging.sources.checkpoints import TOKENIZER_FILES, Checkpoint, CheckpointError
from search_spaces.recipes.token_rules import TokenRow, TokenRules

MISSING = -1


@dataclass(frozen=True)
class Given:
    """A row that a recipe names: one of a model's own, by its name; None: zeros."""

    model: str | None
    row: int
    force: bool


@dataclass(frozen=True)
class Vocabulary:
    """A common vocabulary.

    Attributes
    ----------
    rows
        Length V of the embedding matrices.
    tokens
        Id of each token; ids from V on have no row.
    indices
        Per model, int64[V]: the model's own row for each common one, or -1.
    base
        Name of the model whose rows stand in for missing ones.
    owner
        Name of the model whose tokenizer settings and special tokens the result has.
    folder
        Where the tokenizer lies.
    given
        By common row: the model and the row of its that models without the token have, or all of them (`force`).
    padding
        int64[P]: rows that were added to reach a multiple.
    """

    rows: int
    tokens: Mapping[str, int]
    indices: Mapping[str, Tensor]
    base: str
    owner: str
    folder: Path
    given: Mapping[int, Given] = field(default_factory=dict)
    padding: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    kept: object = None  # what must live as long as `folder` does


def align(
    checkpoints: Mapping[str, Checkpoint], policy: str, base: str, rules: TokenRules | None = None
) -> dict[str, Checkpoint]:
    """Bring all models to one vocabulary; those that have it already stay as they are.

    Parameters
    ----------
    checkpoints
        Opened sources by name; adapters among them have their base's vocabulary.
    policy
        ``base``, ``union``, ``first``, ``pad``, or a name or reference of one of the models.
    base
        The base's name.
    rules
        What is said of single tokens.

    Raises
    ------
    CheckpointError
        If a tokenizer is needed and missing, the policy names no model, tokenizers cannot be joined, or a model lacks a
        token whose row it is to give.
    """
    vocabulary = _vocabulary(checkpoints, policy, base, rules.added if rules else ())
    if rules is not None:
        vocabulary = _ruled(vocabulary, checkpoints, rules)
    return {
        name: checkpoint
        if _has(checkpoint, name, vocabulary, checkpoints[base])
        else AlignedCheckpoint(name, checkpoint, vocabulary, checkpoints)
        for name, checkpoint in checkpoints.items()
    }


class AlignedCheckpoint(Checkpoint):
    """A source in another vocabulary: its embeddings and head with rows added, dropped and moved.

    Those tensors are made when asked for; all others are the source's own.
    """

    def __init__(self, name: str, inner: Checkpoint, vocabulary: Vocabulary, sources: Mapping[str, Checkpoint]) -> None:
        self.inner = inner
        self.reference = inner.reference
        self.path = inner.path
        self.trust_remote_code = inner.trust_remote_code
        self.layout = inner.layout
        self.tied = inner.tied
        self._name = name
        self._vocabulary = vocabulary
        self._sources = sources
        self.config = copy.deepcopy(inner.config)
        self.config.vocab_size = vocabulary.rows
        for key, value in _special(sources[vocabulary.owner].config.to_dict()).items():
            setattr(self.config, key, value)
        self._module = meta_module(self.config, trust_remote_code=self.trust_remote_code)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; one with a row per token in the common vocabulary, in the source's dtype."""
        own = self.inner.tensor(name)
        return self._aligned(name, own) if name in self._by_token else own

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without making it."""
        shape = self.inner.shape(name)
        return (self._vocabulary.rows, *shape[1:]) if name in self._by_token else shape

    @cached_property
    def dtype(self) -> torch.dtype:
        """The source's."""
        return self.inner.dtype

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The source's."""
        return self.inner.weight_files

    @property
    def config_file(self) -> Path:
        """The source's."""
        return self.inner.config_file

    @property
    def files(self) -> tuple[Path, ...]:
        """The source's."""
        return self.inner.files

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Those of the common vocabulary."""
        return _files(self._vocabulary.folder)

    def tokenizer(self) -> Any:
        """Return the common vocabulary's tokenizer."""
        return _load(self._vocabulary.folder)

    def generation_config(self) -> dict[str, Any] | None:
        """Return the source's, with the special tokens of the vocabulary's owner."""
        own = self.inner.generation_config()
        special = _special(self._sources[self._vocabulary.owner].generation_config() or {})
        return None if own is None else {key: v for key, v in own.items() if not key.endswith("token_id")} | special

    def stored(self, name: str) -> Tensor | None:
        """Return a tensor or persistent buffer by name."""
        return self.tensor(name) if name in self.names else self.inner.stored(name)

    @cached_property
    def _by_token(self) -> frozenset[str]:
        return frozenset(by_token(self.inner))

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
            with_token = torch.tensor(sorted(id for id in self._vocabulary.tokens.values() if id < len(result)))
            result[padding] = result[with_token].float().mean(0).to(own.dtype)
        return result

    def _filled(self, name: str, ids: Tensor, own: Tensor) -> Tensor:
        """Return the common rows `ids` as the models give them that have them, float32[len(ids), D]."""
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


def by_token(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the tensors with a row per token: embeddings, head, the head's bias."""
    modules = [checkpoint.embedding_module, checkpoint.head_module]
    return [
        name for name in checkpoint.names if any(checkpoint.module_of(name) is module for module in modules if module)
    ]


def _rows(checkpoint: Checkpoint) -> int:
    return checkpoint.shape(by_token(checkpoint)[0])[0]


def _has(checkpoint: Checkpoint, name: str, vocabulary: Vocabulary, base: Checkpoint) -> bool:
    """Whether the model has the common vocabulary already, rows and tokenizer."""
    index_V = vocabulary.indices[name]
    if vocabulary.given:
        return False
    same_rows = len(index_V) == _rows(checkpoint) and bool((index_V == torch.arange(len(index_V))).all())
    return same_rows and _tokens(checkpoint, base) == vocabulary.tokens


# --- the common vocabulary ---


def _vocabulary(checkpoints: Mapping[str, Checkpoint], policy: str, base: str, added: Sequence[str] = ()) -> Vocabulary:
    if policy == "pad":
        return _padded(checkpoints, base)
    tokens = {name: _tokens(checkpoint, checkpoints[base]) for name, checkpoint in checkpoints.items()}
    if policy == "union":
        kept = tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-")
        folder, owner = Path(kept.name), base
        target = _join(checkpoints, base, tokens, folder)
    else:
        kept, owner = None, _owner(checkpoints, policy, base)
        folder, target = _tokenizer_folder(checkpoints[owner], checkpoints[base]), tokens[owner]
    rows = _rows(checkpoints[owner])
    further = [token for token in added if token not in target]
    if further:
        source, before = folder, kept  # what `folder` lies in must live until it is read
        kept = tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-")
        folder = Path(kept.name)
        target = _with_tokens(source, further, folder)
        del before
    if policy == "union" or further:
        rows = max(rows, 1 + max(target.values()))
    indices = {
        name: _index(target, tokens[name], rows, _rows(checkpoint), is_owner=name == owner)
        for name, checkpoint in checkpoints.items()
    }
    return Vocabulary(rows, target, indices, base, owner, folder, kept=kept)


def _ruled(vocabulary: Vocabulary, checkpoints: Mapping[str, Checkpoint], rules: TokenRules) -> Vocabulary:
    """Return the vocabulary with the rows that the rules name, as many as they ask for."""
    given = {
        vocabulary.tokens[rule.token]: _given(rule, checkpoints, checkpoints[vocabulary.base])
        for rule in rules.rows
        if rule.zero or rule.model is not None
    }
    missing = -vocabulary.rows % (rules.multiple or 1)
    padding = torch.arange(vocabulary.rows, vocabulary.rows + missing)
    return replace(
        vocabulary,
        rows=vocabulary.rows + missing,
        indices={name: torch.cat([index, padding * 0 + MISSING]) for name, index in vocabulary.indices.items()},
        given=given,
        padding=padding,
    )


def _given(rule: TokenRow, checkpoints: Mapping[str, Checkpoint], base: Checkpoint) -> Given:
    place = f"tokenizer.tokens.{rule.token}"
    if rule.model is None:
        return Given(None, 0, rule.force)
    name = next((name for name, c in checkpoints.items() if rule.model in (name, c.reference)), None)
    if name is None:
        raise CheckpointError(
            f"{place}: {rule.model} is none of the models; write source: one of {', '.join(checkpoints)}"
        )
    checkpoint, row = checkpoints[name], rule.row
    if not isinstance(row, int):
        token = rule.token if row is None else row
        row = _tokens(checkpoint, base).get(token, MISSING)
        if row == MISSING:
            raise CheckpointError(f"{place}: {name} has no token {token!r}; name a model that has it")
    if row >= _rows(checkpoint):
        raise CheckpointError(
            f"{place}: {name} has no row {row}; write a token_id below {_rows(checkpoint)}, or another token"
        )
    return Given(name, row, rule.force)


def _with_tokens(source: Path, added: Sequence[str], folder: Path) -> dict[str, int]:
    """Write the tokenizer in `source` with tokens added into `folder`; return its vocabulary."""
    tokenizer = _load(source)
    tokenizer.add_tokens(list(added))
    with quiet():
        tokenizer.save_pretrained(folder)
    target: dict[str, int] = _load(folder).get_vocab()
    if target != tokenizer.get_vocab():
        raise CheckpointError(
            f"tokenizer.tokens: {', '.join(added)} cannot be added to the tokenizer; name tokens of one of the models"
        )
    return target


def _index(target: Mapping[str, int], own: Mapping[str, int], rows: int, own_rows: int, *, is_owner: bool) -> Tensor:
    """Return the model's own row of every common one; rows without a token (padding) are the owner's."""
    index_V = torch.full((rows,), MISSING)
    if is_owner:
        index_V[:own_rows] = torch.arange(own_rows)
    for token, place in target.items():
        if place >= rows:
            continue
        row = own.get(token, MISSING)
        index_V[place] = row if row < own_rows else MISSING
    return index_V


def _owner(checkpoints: Mapping[str, Checkpoint], policy: str, base: str) -> str:
    if policy == "base":
        return base
    if policy == "first":
        return next((name for name in checkpoints if name != base), base)
    for name, checkpoint in checkpoints.items():
        if policy in (name, checkpoint.reference):
            return name
    raise CheckpointError(
        f"tokenizer_source: {policy} is none of the models; write base, union, or one of {', '.join(checkpoints)}"
    )


def _padded(checkpoints: Mapping[str, Checkpoint], base: str) -> Vocabulary:
    """Return the vocabulary of the longest tokenizer, which the others must be beginnings of."""
    tokens = {name: _tokens(checkpoint, checkpoints[base]) for name, checkpoint in checkpoints.items()}
    owner = max(tokens, key=lambda name: (len(tokens[name]), name == base))
    for name, own in tokens.items():
        for token, place in own.items():
            if tokens[owner].get(token) != place:
                raise CheckpointError(
                    f"{name}: pad compares rows by id, and {token!r} is {place} here and {tokens[owner].get(token)} in "
                    f"{owner}; write union, or base"
                )
    rows = max(_rows(checkpoint) for checkpoint in checkpoints.values())
    indices = {}
    for name, checkpoint in checkpoints.items():
        indices[name] = torch.full((rows,), MISSING)
        indices[name][: _rows(checkpoint)] = torch.arange(_rows(checkpoint))
    folder = _tokenizer_folder(checkpoints[owner], checkpoints[base])
    return Vocabulary(rows, tokens[owner], indices, base, owner, folder)


def _tokens(checkpoint: Checkpoint, base: Checkpoint) -> dict[str, int]:
    """Return the model's vocabulary; one without a tokenizer has the base's."""
    vocabulary: dict[str, int] = (checkpoint if checkpoint.tokenizer_files else base).tokenizer().get_vocab()
    return vocabulary


def _tokenizer_folder(checkpoint: Checkpoint, base: Checkpoint) -> Path:
    return (checkpoint if checkpoint.tokenizer_files else base).tokenizer_files[0].parent


# --- joining tokenizers ---


def _join(
    checkpoints: Mapping[str, Checkpoint], base: str, tokens: Mapping[str, dict[str, int]], folder: Path
) -> dict[str, int]:
    """Write the base's tokenizer with all further tokens into `folder`; return its vocabulary.

    Text is cut up as by the base: a token that another model's merges would have made is in the vocabulary and never
    made; added tokens (special ones, chat marks) are recognised.
    """
    tokenizer = checkpoints[base].tokenizer()
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{base}: union needs a fast tokenizer (tokenizer.json); write tokenizer_source: base")
    with quiet():
        tokenizer.save_pretrained(folder)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    target = dict(tokens[base])
    in_model = data["model"].get("vocab") if isinstance(data["model"].get("vocab"), dict) else None
    if in_model is not None:  # ids of added tokens are kept only where the model knows them too
        in_model.update({entry["content"]: entry["id"] for entry in data["added_tokens"]})
    for name, checkpoint in checkpoints.items():
        if name == base or not checkpoint.tokenizer_files:
            continue
        added = {token.content: token for token in checkpoint.tokenizer().added_tokens_decoder.values()}
        for token in sorted(tokens[name], key=tokens[name].__getitem__):
            if token in target:
                continue
            target[token] = 1 + max(target.values())
            if in_model is not None:
                in_model[token] = target[token]
            if token in added or in_model is None:
                data["added_tokens"].append(_entry(token, target[token], added.get(token)))
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    joined: dict[str, int] = _load(folder).get_vocab()
    if joined != target:
        raise CheckpointError(
            f"{', '.join(checkpoints)}: their tokenizers cannot be joined; write tokenizer_source: base, or a model"
        )
    return target


def _entry(token: str, place: int, settings: Any) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": place, "content": token} | {flag: bool(getattr(settings, flag, False)) for flag in flags}


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        return AutoTokenizer.from_pretrained(folder)


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}))


def _special(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.endswith("token_id")}
