"""One vocabulary for sources whose vocabularies differ: embedding rows are matched by token, missing rows filled.

Policies, from mergekit's `tokenizer_source` (`union`, `base`, a model) and two of our own (`first`, `pad`):

* ``base``, a model, ``first`` (the first that is not the base): that model's vocabulary;
* ``union``: the base's vocabulary with its ids, then every further token in the order of the models;
* ``pad``: rows are matched by id instead of by token, up to the longest matrix; renamed tokens have the longest
  tokenizer's names.

A row that a model lacks is the base's; where the base lacks it too, it is the mean over the models that have it
(mergekit's rule). A recipe may set other rules for single tokens, and add tokens and rows
(`search_spaces.recipes.token_rules`). Rows that no model has are the mean of the model's rows with a token; mergekit
writes zeros there.

Letters: V rows of the common vocabulary, D width of the embeddings.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.sources.architecture import quiet
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from search_spaces.recipes.token_rules import TokenRow, TokenRules

MISSING = -1


@dataclass(frozen=True)
class Given:
    """A row that a recipe names: row `row` of the model with the name `model`; zeros where `model` is None."""

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
        Id of each token; ids of V and above have no row.
    indices
        Per model, int64[V]: the model's own row for each common one, or -1.
    base
        Name of the model whose rows replace missing ones.
    owner
        Name of the model that gives the tokenizer settings and the special tokens.
    folder
        The tokenizer's folder.
    given
        By common row: the row that models without the token get, or all models (`force`).
    padding
        int64[P]: rows that no model has; they get the mean of the rows with a token.
    """

    rows: int
    tokens: Mapping[str, int]
    indices: Mapping[str, Tensor]
    base: str
    owner: str
    folder: Path
    given: Mapping[int, Given] = field(default_factory=dict)
    padding: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    kept: object = None  # keeps a temporary `folder` alive


def rows_of(source: Source) -> int:
    """Return the length of a model's embedding matrix."""
    return source.shape(source.outline.rows_by_token[0])[0]


def common_vocabulary(
    sources: Mapping[str, Source], policy: str, base: str, rules: TokenRules | None = None
) -> Vocabulary:
    """Return the vocabulary that a policy gives.

    Parameters
    ----------
    sources
        Opened sources by name; adapters among them have their base's vocabulary.
    policy
        ``base``, ``union``, ``first``, ``pad``, or a name or reference of one of the models.
    base
        The base's name.
    rules
        What a recipe says about single tokens.

    Raises
    ------
    CheckpointError
        If a tokenizer is needed and missing, the policy names no model, tokenizers cannot be joined, or a model lacks
        a token whose row it is to give.
    """
    vocabulary = _by_policy(sources, policy, base, rules.added if rules else ())
    if rules is not None:
        vocabulary = _ruled(vocabulary, sources, rules)
    return replace(vocabulary, padding=_nowhere(vocabulary))


def _nowhere(vocabulary: Vocabulary) -> Tensor:
    """Return the rows that no model has and no rule gives: padding, and tokens beyond the matrices of their models.

    They get the mean of the rows with a token; zeros would be likelier than most tokens.
    """
    missing_V = torch.stack([index_V == MISSING for index_V in vocabulary.indices.values()]).all(0)
    for place in vocabulary.given:
        missing_V[place] = False
    return torch.nonzero(missing_V).flatten()


def _by_policy(sources: Mapping[str, Source], policy: str, base: str, added: Sequence[str]) -> Vocabulary:
    if policy == "pad":
        return _padded(sources, base)
    tokens = {name: tokens_of(source, sources[base]) for name, source in sources.items()}
    if policy == "union":
        kept = tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-")
        folder, owner = Path(kept.name), base
        target = _join(sources, base, tokens, folder)
    else:
        kept, owner = None, _owner(sources, policy, base)
        folder, target = _tokenizer(sources[owner], sources[base]).path, tokens[owner]
    rows = rows_of(sources[owner])
    further = [token for token in added if token not in target]
    if further:
        source, before = folder, kept  # a temporary folder must stay until it is read
        kept = tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-")
        folder = Path(kept.name)
        target = _withtokens_of(source, further, folder)
        del before
    if policy == "union" or further:
        rows = max(rows, 1 + max(target.values()))
    indices = {
        name: _index(target, tokens[name], rows, rows_of(source), is_owner=name == owner)
        for name, source in sources.items()
    }
    return Vocabulary(rows, target, indices, base, owner, folder, kept=kept)


def _ruled(vocabulary: Vocabulary, sources: Mapping[str, Source], rules: TokenRules) -> Vocabulary:
    """Return the vocabulary with the rows and the number of rows that the rules ask for."""
    given = {
        vocabulary.tokens[rule.token]: _given(rule, sources, sources[vocabulary.base])
        for rule in rules.rows
        if rule.zero or rule.model is not None
    }
    missing = -vocabulary.rows % (rules.multiple or 1)
    padding = torch.full((missing,), MISSING)
    return replace(
        vocabulary,
        rows=vocabulary.rows + missing,
        indices={name: torch.cat([index, padding]) for name, index in vocabulary.indices.items()},
        given=given,
    )


def _given(rule: TokenRow, sources: Mapping[str, Source], base: Source) -> Given:
    place = f"tokenizer.tokens.{rule.token}"
    if rule.model is None:
        return Given(None, 0, rule.force)
    name = next((name for name, c in sources.items() if rule.model in (name, c.reference)), None)
    if name is None:
        raise CheckpointError(
            f"{place}: {rule.model} is not one of the models; write source: one of {', '.join(sources)}"
        )
    source, row = sources[name], rule.row
    if not isinstance(row, int):
        token = rule.token if row is None else row
        row = tokens_of(source, base).get(token, MISSING)
        if row == MISSING:
            raise CheckpointError(f"{place}: {name} has no token {token!r}; name a model that has it")
    if row >= rows_of(source):
        raise CheckpointError(
            f"{place}: {name} has no row {row}; write a token_id below {rows_of(source)}, or another token"
        )
    return Given(name, row, rule.force)


def _withtokens_of(source: Path, added: Sequence[str], folder: Path) -> dict[str, int]:
    """Write the tokenizer in `source` with tokens added into `folder`; return its vocabulary."""
    tokenizer = _load(source)
    tokenizer.add_tokens(list(added))
    with quiet():
        tokenizer.save_pretrained(folder)
    target: dict[str, int] = _load(folder).get_vocab()
    if target != tokenizer.get_vocab():
        raise CheckpointError(
            f"tokenizer.tokens: the tokenizer does not take {', '.join(added)}; name tokens of one of the models"
        )
    return target


def _index(target: Mapping[str, int], own: Mapping[str, int], rows: int, own_rows: int, *, is_owner: bool) -> Tensor:
    """Return the model's own row for every common row; rows without a token (padding) are the owner's."""
    index_V = torch.full((rows,), MISSING)
    if is_owner:
        index_V[:own_rows] = torch.arange(own_rows)
    for token, place in target.items():
        if place >= rows:
            continue
        row = own.get(token, MISSING)
        index_V[place] = row if row < own_rows else MISSING
    return index_V


def _owner(sources: Mapping[str, Source], policy: str, base: str) -> str:
    if policy == "base":
        return base
    if policy == "first":
        return next((name for name in sources if name != base), base)
    for name, source in sources.items():
        if policy in (name, source.reference):
            return name
    raise CheckpointError(
        f"tokenizer_source: {policy} is not one of the models; write base, union, or one of {', '.join(sources)}"
    )


def _padded(sources: Mapping[str, Source], base: str) -> Vocabulary:
    """Return the vocabulary of the longest tokenizer; every other one must be a beginning of it.

    A row may have another name in it, as reserved tokens have that a trainer uses for a chat template.
    """
    tokens = {name: tokens_of(source, sources[base]) for name, source in sources.items()}
    owner = max(tokens, key=lambda name: (len(tokens[name]), name == base))
    names = {place: token for token, place in tokens[owner].items()}
    for name, own in tokens.items():
        for token, place in own.items():
            there = tokens[owner].get(token)
            if there != place and (there is not None or place not in names or names[place] in own):
                raise CheckpointError(
                    f"{name}: pad matches rows by id, and {token!r} is {place} here and {there} in {owner}; write "
                    "union, or base"
                )
    rows = max(rows_of(source) for source in sources.values())
    indices = {}
    for name, source in sources.items():
        indices[name] = torch.full((rows,), MISSING)
        indices[name][: rows_of(source)] = torch.arange(rows_of(source))
    folder = _tokenizer(sources[owner], sources[base]).path
    return Vocabulary(rows, tokens[owner], indices, base, owner, folder)


def tokens_of(source: Source, base: Source) -> dict[str, int]:
    """Return the model's vocabulary; a model without a tokenizer has the base's."""
    vocabulary: dict[str, int] = _tokenizer(source, base).load().get_vocab()
    return vocabulary


def _tokenizer(source: Source, base: Source) -> TokenizerFolder:
    return source.tokenizer if source.tokenizer.files else base.tokenizer


# --- joining tokenizers ---


def _join(
    sources: Mapping[str, Source], base: str, tokens: Mapping[str, dict[str, int]], folder: Path
) -> dict[str, int]:
    """Write the base's tokenizer with all further tokens into `folder`; return its vocabulary.

    The result splits text as the base does: a token that only another model's merges produce is in the vocabulary but
    never produced. Added tokens (special tokens, chat marks) are recognised.
    """
    tokenizer = sources[base].tokenizer.load()
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{base}: union needs a fast tokenizer (tokenizer.json); write tokenizer_source: base")
    with quiet():
        tokenizer.save_pretrained(folder)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    target = dict(tokens[base])
    in_model = data["model"].get("vocab") if isinstance(data["model"].get("vocab"), dict) else None
    if in_model is not None:  # added tokens keep their ids only if the model knows them too
        in_model.update({entry["content"]: entry["id"] for entry in data["added_tokens"]})
    for name, source in sources.items():
        if name == base or not source.tokenizer.files:
            continue
        added = {token.content: token for token in source.tokenizer.load().added_tokens_decoder.values()}
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
            f"{', '.join(sources)}: their tokenizers cannot be joined; write tokenizer_source: base, or name a model"
        )
    return target


def _entry(token: str, place: int, settings: Any) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": place, "content": token} | {flag: bool(getattr(settings, flag, False)) for flag in flags}


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        return AutoTokenizer.from_pretrained(folder)
