"""A recipe's rules for single tokens: mergekit's ``tokenizer.tokens`` and ``tokenizer.pad_to_multiple_of``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.recipes.errors import RecipeError, mapping, shown, text_of
from search_spaces.recipes.references import format_reference, parse_reference

MAX_TOKENS = 4096
MAX_MULTIPLE = 1 << 16


@dataclass(frozen=True)
class TokenRow:
    """The source of one token's embedding.

    Attributes
    ----------
    token
        The token; it is added if the vocabulary lacks it.
    model
        The model that gives the row. None: zeros; or, if `row` is None and `zero` is False, the rule for all tokens.
    row
        The model's token, or its id, that has the row; None: the same token.
    zero
        The row is zeros.
    force
        True: all models get the row; False: only those that lack the token.
    """

    token: str
    model: str | None = None
    row: str | int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class TokenRules:
    """Rows of single tokens, and a number that divides the number of rows (None: any number of rows)."""

    rows: tuple[TokenRow, ...] = ()
    multiple: int | None = None

    @property
    def added(self) -> tuple[str, ...]:
        """Tokens that are added to the vocabulary if it lacks them."""
        return tuple(row.token for row in self.rows)

    def with_models(self, names: Mapping[str, str]) -> TokenRules:
        """Return the rules with references that are keys of `names` replaced."""
        rows = (row if row.model is None else replace(row, model=names.get(row.model, row.model)) for row in self.rows)
        return replace(self, rows=tuple(rows))


def from_data(fields: dict[str, Any], place: str) -> TokenRules | None:
    """Read the keys `tokens` and `pad_to_multiple_of` of a recipe's tokenizer section; None if it has neither.

    Raises
    ------
    RecipeError
        If one has an impossible value.
    """
    tokens, multiple = fields.get("tokens") or {}, fields.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or not 0 < multiple <= MAX_MULTIPLE):
        raise RecipeError(
            f"{place}.pad_to_multiple_of: {shown(multiple)} is not a number of rows; write a whole number such as 64"
        )
    if not isinstance(tokens, dict) or len(tokens) > MAX_TOKENS:
        raise RecipeError(f"{place}.tokens: write at most {MAX_TOKENS} pairs such as <|im_start|>: {{source: MODEL}}")
    rows = tuple(_row(token, value, f"{place}.tokens.{token}") for token, value in tokens.items())
    return TokenRules(rows, multiple) if rows or multiple is not None else None


def _row(token: Any, value: Any, place: str) -> TokenRow:
    if not text_of(token, place):
        raise RecipeError(f"{place}: the token is empty; write its text")
    fields = mapping(value, place, ("source", "force"))
    force = fields.get("force", False)
    if not isinstance(force, bool):
        raise RecipeError(f"{place}.force: {shown(force)} is not a truth value; write true or false")
    source = fields.get("source")
    if source is None:
        if force:
            raise RecipeError(f"{place}: force gives all models the row, but no row is named; add source: MODEL")
        return TokenRow(token)
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRow(token, parse_reference(source, f"{place}.source"), force=force)
    if source["kind"] == "zero":
        mapping(source, f"{place}.source", ("kind",))
        return TokenRow(token, zero=True, force=force)
    if source["kind"] != "model_token":
        raise RecipeError(f"{place}.source.kind: {shown(source['kind'])} is not zero or model_token; write one of them")
    source = mapping(source, f"{place}.source", ("kind", "model", "token", "token_id"), required=("model",))
    own, index = source.get("token"), source.get("token_id")
    if (own is None) == (index is None):
        raise RecipeError(f"{place}.source: give either token or token_id; write token: TEXT")
    if index is not None and (type(index) is not int or index < 0):
        raise RecipeError(f"{place}.source.token_id: {shown(index)} is not an id; write a whole number from 0 on")
    row = index if own is None else text_of(own, f"{place}.source.token")
    return TokenRow(token, parse_reference(source["model"], f"{place}.source.model"), row, force=force)


def as_data(rules: TokenRules) -> dict[str, Any]:
    """Return what `from_data` reads."""
    data: dict[str, Any] = {"tokens": {row.token: _row_data(row) for row in rules.rows}} if rules.rows else {}
    return data if rules.multiple is None else data | {"pad_to_multiple_of": rules.multiple}


def _row_data(row: TokenRow) -> dict[str, Any]:
    data: dict[str, Any] = {"force": True} if row.force else {}
    if row.zero:
        return {"source": {"kind": "zero"}} | data
    if row.model is None:
        return data
    if row.row is None:
        return {"source": format_reference(row.model)} | data
    key = "token" if isinstance(row.row, str) else "token_id"
    return {"source": {"kind": "model_token", "model": format_reference(row.model), key: row.row}} | data
