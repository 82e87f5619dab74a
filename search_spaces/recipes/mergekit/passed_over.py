"""What mergekit 0.1.5 passes over in a recipe without a message, found and taken out.

mergekit ignores keys that it does not know, parameters that a method does not have, and shared parameters of single
models. The strict reader (``mergekit_yaml``) refuses them, since most are typing errors; recipes that others published
have them nevertheless, and mean what mergekit makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from search_spaces.recipes.errors import shown
from search_spaces.recipes.mergekit_yaml import SLICE_KEYS, TOP_KEYS, readable
from search_spaces.recipes.methods import METHODS, MethodSpec
from search_spaces.recipes.references import PATH_KEYS, REFERENCE_KEYS

_MODEL, _SOURCE, _MODULE = (
    ("model", "parameters"),
    ("model", "layer_range", "parameters"),
    ("models", "slices", "parameters"),
)
_TOKENIZER, _TOKEN = ("source", "tokens", "pad_to_multiple_of"), ("source", "force")
_ROW = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}

_WITHOUT_EFFECT = {
    "residual_weight": "mergekit reads it but does not use it",
    "layer_range": "whole models are merged; write slices to take layers",
}
"""Keys that look as if they did something, and why they do not."""


LONGEST = 40
"""Characters of a key that messages show."""

SIMILAR = 0.7
"""How alike two keys are (`difflib`) for one to be a typing error of the other: unknown keys are often none."""


@dataclass(frozen=True)
class PassedOver:
    """A key without effect.

    Attributes
    ----------
    keys
        Its path in the document: mapping keys and list positions.
    reason
        Why it has none, and what was perhaps meant; a part of a sentence.
    """

    keys: tuple[str | int, ...]
    reason: str

    def __str__(self) -> str:
        *outer, last = self.keys
        return f"{_place(outer)}: {shown(last)} has no effect: {self.reason}"


def without_passed_over(data: Any) -> tuple[Any, tuple[PassedOver, ...]]:
    """Return a recipe's plain data without what mergekit passes over, and each key that was taken out.

    Data of another form than a recipe's is returned as it is, for the reader to refuse.
    """
    walk = _Walk()
    return walk.recipe(data), tuple(walk.found)


class _Walk:
    """One pass over a document; `at` is always the path of the value that comes with it."""

    def __init__(self) -> None:
        self.found: list[PassedOver] = []

    def recipe(self, data: Any) -> Any:
        top = self._kept(data, TOP_KEYS, ())
        if not isinstance(top, dict):
            return top
        spec = _readable_spec(top)
        self._references(top, ("base_model", "tokenizer_source"), ())
        self._parameters(top, spec, ())
        self._content(top, spec, ())
        if isinstance(top.get("modules"), dict):
            top["modules"] = modules = dict(top["modules"])
            modules["default"] = self._kept(modules.get("default"), _MODULE, ("modules", "default"))
            self._parameters(modules["default"], spec, ("modules", "default"))
            self._content(modules["default"], spec, ("modules", "default"))
        if isinstance(top.get("tokenizer"), dict):
            top["tokenizer"] = self._tokenizer(top["tokenizer"], ("tokenizer",))
        return top

    def _content(self, fields: Any, spec: MethodSpec | None, at: tuple[str | int, ...]) -> None:
        if not isinstance(fields, dict):
            return
        if isinstance(fields.get("models"), list):
            models = enumerate(fields["models"])
            fields["models"] = [self._model(entry, _MODEL, spec, (*at, "models", index)) for index, entry in models]
        if isinstance(fields.get("slices"), list):
            slices = enumerate(fields["slices"])
            fields["slices"] = [self._slice(entry, spec, (*at, "slices", index)) for index, entry in slices]

    def _slice(self, value: Any, spec: MethodSpec | None, at: tuple[str | int, ...]) -> Any:
        fields = self._kept(value, SLICE_KEYS, at)
        if not isinstance(fields, dict):
            return fields
        own = fields.get("evomerge")
        if isinstance(own, dict) and own.get("merge_method") in METHODS:
            spec = METHODS[own["merge_method"]]
        self._references(fields, ("base_model",), at)
        self._parameters(fields, spec, at)
        if isinstance(fields.get("sources"), list):
            sources = enumerate(fields["sources"])
            fields["sources"] = [self._model(entry, _SOURCE, spec, (*at, "sources", index)) for index, entry in sources]
        return fields

    def _model(self, value: Any, keys: tuple[str, ...], spec: MethodSpec | None, at: tuple[str | int, ...]) -> Any:
        fields = self._kept(value, keys, at)
        self._references(fields, ("model",), at)
        self._parameters(fields, spec, at, of_source=True)
        return fields

    def _parameters(
        self, scope: Any, spec: MethodSpec | None, at: tuple[str | int, ...], *, of_source: bool = False
    ) -> None:
        if spec is None or not isinstance(scope, dict) or not isinstance(scope.get("parameters"), dict):
            return
        at = (*at, "parameters")
        known = {parameter.name: parameter for parameter in spec.parameters}
        kept = {}
        for name, setting in scope["parameters"].items():
            parameter = known.get(name) if isinstance(name, str) else None
            if parameter is None:
                self._pass_over((*at, name), _unknown_parameter(name, spec))
            elif of_source and not parameter.per_model:
                self._pass_over((*at, name), "it is not per model; write it in the recipe's or a slice's parameters")
            elif setting == []:
                self._pass_over((*at, name), "the list is empty")
            else:
                kept[name] = self._setting(setting, (*at, name))
        scope["parameters"] = kept

    def _setting(self, setting: Any, at: tuple[str | int, ...]) -> Any:
        if isinstance(setting, list):
            return [self._setting(entry, (*at, index)) for index, entry in enumerate(setting)]
        return self._kept(setting, ("value", "filter"), at)

    def _tokenizer(self, value: Any, at: tuple[str | int, ...]) -> Any:
        fields = self._kept(value, _TOKENIZER, at)
        self._references(fields, ("source",), at)
        if isinstance(fields.get("tokens"), dict):
            tokens = fields["tokens"].items()
            fields["tokens"] = {token: self._token(row, (*at, "tokens", token)) for token, row in tokens}
        return fields

    def _token(self, value: Any, at: tuple[str | int, ...]) -> Any:
        fields = self._kept(value, _TOKEN, at)
        source = fields.get("source") if isinstance(fields, dict) else None
        keys = _ROW.get(str(source.get("kind"))) if isinstance(source, dict) else None
        if keys is None:
            self._references(fields, ("source",), at)
        else:
            fields["source"] = self._kept(source, keys, (*at, "source"))
            self._references(fields["source"], ("model",), (*at, "source"))
        return fields

    def _references(self, fields: Any, keys: Iterable[str], at: tuple[str | int, ...]) -> None:
        """Clean the mappings with which `fields` names models."""
        for key in keys:
            if isinstance(fields, dict) and isinstance(fields.get(key), dict):
                known = PATH_KEYS if "path" in fields[key] else REFERENCE_KEYS  # the short form and the long one
                reference = fields[key] = self._kept(fields[key], known, (*at, key))
                for part in ("model", "lora"):
                    if part in reference:
                        reference[part] = self._kept(reference[part], PATH_KEYS, (*at, key, part))

    def _kept(self, value: Any, keys: tuple[str, ...], at: tuple[str | int, ...]) -> Any:
        """Return a copy of a mapping with `keys` only; another value as it is."""
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in keys:
                self._pass_over((*at, key), _unknown_key(key, keys, value))
        return {key: inner for key, inner in value.items() if key in keys}

    def _pass_over(self, keys: tuple[str | int, ...], reason: str) -> None:
        self.found.append(PassedOver(keys, reason))


def _readable_spec(top: dict[str, Any]) -> MethodSpec | None:
    """Return what the recipe's method takes; None if the method is unknown, which the reader refuses."""
    name = top.get("merge_method")
    return readable(METHODS[name], top.get("evomerge")) if isinstance(name, str) and name in METHODS else None


def _unknown_key(key: object, keys: tuple[str, ...], beside: Mapping[Any, Any]) -> str:
    if isinstance(key, str) and key in _WITHOUT_EFFECT:
        return _WITHOUT_EFFECT[key]
    if "parameters" in keys and any(key == known.name for spec in METHODS.values() for known in spec.parameters):
        return "parameters must be under the key parameters"
    return "there is no such key" + _meant(key, [other for other in keys if other not in beside])


def _unknown_parameter(name: object, spec: MethodSpec) -> str:
    if any(parameter.name == name for parameter in METHODS[spec.name].parameters):
        return f"mergekit's {spec.name} has no such parameter; evomerge: {{{spec.name}_weights: true}} enables it"
    return f"{spec.name} has no such parameter" + _meant(name, [parameter.name for parameter in spec.parameters])


def _meant(name: object, valid: list[str]) -> str:
    near = get_close_matches(str(name), sorted(valid), n=1, cutoff=SIMILAR)
    return f"; did you mean '{near[0]}'?" if near else ""


def _place(keys: Iterable[str | int]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{str(key)[:LONGEST]}" for key in keys)
    return text.removeprefix(".") or "the document"
