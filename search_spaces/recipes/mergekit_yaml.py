"""Recipes as YAML in mergekit's dialect: reading and writing.

Reading accepts every spelling of mergekit 0.1.5 for one decoder-only model, and refuses unknown keys. (mergekit ignores
them, so that a typing error changes the merge without a message; `mergekit.passed_over` takes them out.) Writing uses
spellings that both mergekit 0.1.5 and earlier releases understand. One key is ours, ``evomerge``. In a recipe it has
``seed``, ``calibration_text``, ``adapters: core``, ``vocabulary: first`` or ``pad``, ``mixture``, ``path`` and
``karcher_weights``; in a slice ``merge_method``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from search_spaces.recipes import mixture_table, token_rules
from search_spaces.recipes.errors import RecipeError, entries_of, mapping, shown, text_of
from search_spaces.recipes.fields import MAX_SLICES, MAX_SOURCES, CalibrationText, PathLayer, Slice, Source
from search_spaces.recipes.methods import MethodSpec, method_spec
from search_spaces.recipes.parameter_values import Condition, Parameters, Scalar, Setting
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import LORA, format_reference, parse_reference
from search_spaces.recipes.token_rules import TokenRules
from search_spaces.recipes.yaml_text import check_amount, documents, read_text
from search_spaces.yaml_lines import line_of

if TYPE_CHECKING:
    from yaml import SafeDumper as _SafeDumper
else:  # the compiled one, where PyYAML was built with it
    _SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

TOP_KEYS = (
    "merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template",
    "parameters", "models", "slices", "modules", "evomerge",
)  # fmt: skip

SLICE_KEYS = ("sources", "parameters", "base_model", "evomerge")

_OUR_KEYS = ("seed", "calibration_text", "adapters", "vocabulary", "mixture", "path", "karcher_weights")


_TRUTH = dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True) | dict.fromkeys(
    ("0", "false", "f", "no", "n", "off"), False
)

ONE_DOCUMENT = (
    "it contains {count} documents, and only one can be used here; merge them with `evomerge merge FILE OUT` and "
    "name OUT"
)

# --- reading: text ---


def read(path: str | Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises
    ------
    RecipeError
        If the file cannot be read or does not hold a valid recipe.
    """
    path = Path(path)
    return parse(read_text(path), str(path))


def parse(text: str, origin: str = "recipe") -> Recipe:
    """Return the recipe in a YAML text; errors start with `origin` and name the place in the document.

    Raises
    ------
    RecipeError
        If the text is not YAML, is too large, or is not a valid recipe.
    """
    data, *others = documents(text, origin)
    if others:
        raise RecipeError(f"{origin}: {ONE_DOCUMENT.format(count=1 + len(others))}")
    return build(data, origin, text)


def build(data: Any, origin: str = "recipe", text: str = "", document: int = 0) -> Recipe:
    """Return the recipe in plain mappings, lists and scalars, as `as_dict` gives them.

    Parameters
    ----------
    data
        The mapping.
    origin
        What errors start with.
    text
        The YAML that `data` was read from: errors then name the line in it.
    document
        Which of the documents in `text`.

    Raises
    ------
    RecipeError
        If it is not a valid recipe; the text starts with `origin`.
    """
    try:
        check_amount(data)
        return _recipe(data)
    except RecipeError as error:
        raise RecipeError(f"{_with_line(origin, text, str(error), document)}: {error}") from None


def _with_line(origin: str, text: str, message: str, document: int) -> str:
    """Return `origin` with the line of the place that a message begins with, if the text is a document that has it."""
    place = re.match(r"[a-z_]+(\[\d+\]|\.\w+)*(?=: )", message)
    line = line_of(text, re.findall(r"\w+", place[0]), document) if place and text else None
    return origin if line is None else f"{origin}:{line}"


# --- reading: nouns; `place` is the path in the document ---


def _recipe(data: Any) -> Recipe:
    top = mapping(data, "the document", TOP_KEYS)
    if top.get("merge_method") is None:
        raise RecipeError("merge_method is missing; write one such as merge_method: linear")
    spec = readable(method_spec(text_of(top["merge_method"], "merge_method")), top.get("evomerge"))
    form, content, parameters = _content(top, spec)
    ours = mapping(top.get("evomerge") or {}, "evomerge", _OUR_KEYS)
    vocabulary, tokens = _tokenizer(top)
    return Recipe(
        merge_method=spec.name,
        slices=_models(content, spec) if form == "models" else _slices(content, spec),
        base_model=_optional_reference(top, "base_model"),
        parameters=parameters,
        dtype=_dtype(top, "dtype"),
        out_dtype=_dtype(top, "out_dtype"),
        tokenizer_source=_vocabulary(ours, vocabulary),
        tokens=tokens,
        chat_template=_optional_text(top, "chat_template"),
        **_extensions(ours),
    )


def readable(spec: MethodSpec, ours: Any) -> MethodSpec:
    """Return the spec without parameters of ours that mergekit's other methods have, unless a recipe asks for them.

    mergekit's `karcher` ignores weights, and its recipes mean what it makes of them. `ours` is what a recipe has under
    ``evomerge``.
    """
    if isinstance(ours, dict) and ours.get(f"{spec.name}_weights"):
        return spec
    return replace(spec, parameters=tuple(p for p in spec.parameters if not (p.extension and p.common)))


def _content(top: dict[str, Any], spec: MethodSpec) -> tuple[str, Any, Parameters]:
    """Return which form the recipe has (`models` or `slices`), its list, and the outer parameters."""
    parameters = _parameters(top, "parameters", spec)
    forms = [key for key in ("models", "slices", "modules") if top.get(key)]
    if len(forms) != 1:
        found = " and ".join(forms) if forms else "none of them"
        raise RecipeError(f"write exactly one of models, slices and modules, not {found}")
    if forms[0] != "modules":
        return forms[0], top[forms[0]], parameters
    modules = mapping(top["modules"], "modules", ("default",), required=("default",))
    module = mapping(modules["default"], "modules.default", ("models", "slices", "parameters"))
    forms = [key for key in ("models", "slices") if module.get(key)]
    if len(forms) != 1:
        raise RecipeError("modules.default: write exactly one of models and slices, such as `slices:`")
    inner = dict(_parameters(module, "modules.default.parameters", spec))
    for name, setting in parameters:  # the module's scope is within the recipe's
        inner[name] = inner.get(name, ()) + setting
    return forms[0], module[forms[0]], tuple(sorted(inner.items()))


def _models(value: Any, spec: MethodSpec) -> tuple[Slice, ...]:
    sources = []
    for index, entry in enumerate(entries_of(value, "models", MAX_SOURCES)):
        place = f"models[{index}]"
        fields = mapping(entry, place, ("model", "parameters"), required=("model",))
        model = parse_reference(fields["model"], f"{place}.model")
        sources.append(Source(model, None, _parameters(fields, f"{place}.parameters", spec)))
    return (Slice(tuple(sources)),)


def _slices(value: Any, spec: MethodSpec) -> tuple[Slice, ...]:
    entries = entries_of(value, "slices", MAX_SLICES)
    return tuple(_slice(entry, spec, f"slices[{i}]") for i, entry in enumerate(entries))


def _slice(value: Any, spec: MethodSpec, place: str) -> Slice:
    fields = mapping(value, place, SLICE_KEYS, required=("sources",))
    own = mapping(fields.get("evomerge") or {}, f"{place}.evomerge", ("merge_method",)).get("merge_method")
    if own is not None:
        spec = _method(own, f"{place}.evomerge.merge_method")
    entries = entries_of(fields["sources"], f"{place}.sources", MAX_SOURCES)
    return Slice(
        sources=tuple(_source(entry, spec, f"{place}.sources[{i}]") for i, entry in enumerate(entries)),
        parameters=_parameters(fields, f"{place}.parameters", spec),
        base_model=_optional_reference(fields, "base_model", place),
        merge_method=None if own is None else spec.name,
    )


def _method(value: Any, place: str) -> MethodSpec:
    try:
        return method_spec(text_of(value, place))
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from None


def _source(value: Any, spec: MethodSpec, place: str) -> Source:
    fields = mapping(value, place, ("model", "layer_range", "parameters"), required=("model", "layer_range"))
    return Source(
        model=parse_reference(fields["model"], f"{place}.model"),
        layer_range=_layer_range(fields["layer_range"], f"{place}.layer_range"),
        parameters=_parameters(fields, f"{place}.parameters", spec),
    )


def _layer_range(value: Any, place: str) -> tuple[int, int]:
    """Read a range as mergekit does: 4.0 and "4" are layer 4."""
    bounds = value if isinstance(value, list) else []
    numbers = [
        int(float(bound))
        for bound in bounds
        if type(bound) is not bool and re.fullmatch(r"-?\d{1,9}(\.0)?", str(bound))
    ]
    if len(bounds) != 2 or len(numbers) != 2:
        raise RecipeError(f"{place}: {shown(value)} is not a range; write [start, end]")
    return numbers[0], numbers[1]


def _optional_reference(fields: dict[str, Any], key: str, place: str = "") -> str | None:
    value = fields.get(key)
    return None if value is None else parse_reference(value, f"{place}.{key}" if place else key)


def _optional_text(fields: dict[str, Any], key: str) -> str | None:
    return None if fields.get(key) is None else text_of(fields[key], key)


def _dtype(top: dict[str, Any], key: str) -> str | None:
    value = _optional_text(top, key)
    return None if value is None else value.removeprefix("torch.")


def _tokenizer(top: dict[str, Any]) -> tuple[str | None, TokenRules | None]:
    """Return the source of the result's vocabulary, and the rules for single tokens."""
    nested = top.get("tokenizer")
    if nested is None:
        source = top.get("tokenizer_source")
        if isinstance(source, str) and source.startswith("model:"):  # how earlier releases named a model
            return parse_reference(source.removeprefix("model:"), "tokenizer_source"), None
        return _optional_reference(top, "tokenizer_source"), None
    if top.get("tokenizer_source") is not None:
        raise RecipeError("tokenizer and tokenizer_source are both given; remove one")
    fields = mapping(nested, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    return _optional_reference(fields, "source", "tokenizer") or "union", token_rules.from_data(fields, "tokenizer")


def _vocabulary(ours: dict[str, Any], mergekits: str | None) -> str | None:
    """Return our own policy if it is set. mergekit has no such policy and would read its name as a model."""
    own = ours.get("vocabulary")
    if own is None:
        return mergekits
    if own not in ("first", "pad"):
        raise RecipeError(f"evomerge.vocabulary: {shown(own)} is not first or pad; write others as tokenizer_source")
    if mergekits is not None:
        raise RecipeError("evomerge.vocabulary and tokenizer_source are both given; remove one")
    return str(own)


def _extensions(ours: dict[str, Any]) -> dict[str, Any]:
    """Return our own keys as arguments of a recipe."""
    mixture = ours.get("mixture")
    seed, text, adapters = ours.get("seed"), ours.get("calibration_text"), ours.get("adapters")
    if adapters not in (None, "core", "full"):
        raise RecipeError(f"evomerge.adapters: {shown(adapters)} is not core or full; write adapters: core")
    if seed is not None and type(seed) is not int:
        raise RecipeError(f"evomerge.seed: {shown(seed)} is not a whole number; write one such as 0")
    return {
        "seed": seed,
        "calibration_text": _calibration_text(text),
        "adapters": "core" if adapters == "core" else None,
        "mixture": None if mixture is None else mixture_table.from_data(mixture, "evomerge.mixture"),
        "path": _path(ours.get("path")),
    }


def _calibration_text(value: Any) -> CalibrationText | None:
    """Return the text of all models, or each model's."""
    place = "evomerge.calibration_text"
    if not isinstance(value, dict):
        return None if value is None else text_of(value, place)
    pairs = (
        (model if LORA in str(model) else parse_reference(model, place), text_of(file, f"{place}.{model}"))
        for model, file in value.items()
    )
    return tuple(sorted(pairs))


def _path(value: Any) -> tuple[PathLayer, ...] | None:
    if value is None:
        return None
    path = []
    for index, entry in enumerate(entries_of(value, "evomerge.path", MAX_SLICES)):
        place = f"evomerge.path[{index}]"
        fields = mapping(entry, place, ("layer", "model", "scale"), required=("layer",))
        if type(fields["layer"]) is not int:
            raise RecipeError(f"{place}.layer: {shown(fields['layer'])} is not a whole number; write one such as 0")
        scale = _scalar(fields.get("scale", 1.0), float, f"{place}.scale")
        path.append(PathLayer(_optional_reference(fields, "model", place), fields["layer"], float(scale)))
    return tuple(path)


# --- reading: parameters ---


def _parameters(fields: dict[str, Any], place: str, spec: MethodSpec) -> Parameters:
    value = fields.get("parameters")
    if value is None:
        return ()
    names = [parameter.name for parameter in spec.parameters]
    if "weight" not in names and isinstance(value, dict) and "weight" in value and spec.name == "karcher":
        raise RecipeError(
            f"{place}: mergekit's karcher has no 'weight'; remove it, or write evomerge: {{karcher_weights: true}}"
        )
    entries = mapping(value, place, names, owner=f"parameter of {spec.name}")
    kinds = {name: spec.parameter(name).kind for name in sorted(entries)}
    return tuple((name, _setting(entries[name], kind, f"{place}.{name}")) for name, kind in kinds.items())


def _setting(value: Any, kind: type, place: str) -> Setting:
    if isinstance(value, dict):
        return (_condition(value, kind, place),)
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return tuple(_condition(entry, kind, f"{place}[{index}]") for index, entry in enumerate(value))
    return (Condition(_value(value, kind, place)),)


def _condition(value: Any, kind: type, place: str) -> Condition:
    fields = mapping(value, place, ("value", "filter"), required=("value",))
    pattern = fields.get("filter")
    return Condition(
        value=_value(fields["value"], kind, f"{place}.value"),
        filter=None if pattern is None else text_of(pattern, f"{place}.filter"),
    )


def _value(value: Any, kind: type, place: str) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list):
        if not value:
            raise RecipeError(f"{place}: the list is empty; write at least one value")
        return tuple(_scalar(entry, kind, place) for entry in value)
    return _scalar(value, kind, place)


def _scalar(value: Any, kind: type, place: str) -> Scalar:
    """Read a scalar as mergekit does: YAML 1.1 reads 1e-5 as text, and 0, 1 and quoted words are truth values."""
    try:
        if kind is bool:
            if isinstance(value, (bool, int, float)) and value in (0, 1):
                return bool(value)
            if isinstance(value, str) and value.lower() in _TRUTH:
                return _TRUTH[value.lower()]
        elif isinstance(value, (bool, int, float, str)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    expected = "truth value; write true or false" if kind is bool else "number; write one such as 0.5"
    raise RecipeError(f"{place}: {shown(value)} is not a {expected}")


# --- writing ---


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return `recipe` as plain mappings, lists and scalars in mergekit's dialect; the inverse of `build`."""
    own_policy = recipe.tokenizer_source in ("first", "pad")
    fields: dict[str, Any] = {
        "merge_method": recipe.merge_method,
        "base_model": _reference_data(recipe.base_model),
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        "tokenizer_source": None if own_policy or recipe.tokens else _reference_data(recipe.tokenizer_source),
        "tokenizer": _tokenizer_dict(recipe),
        "chat_template": recipe.chat_template,
        "parameters": _parameters_dict(recipe.parameters),
    }
    if recipe.is_sliced:
        fields["slices"] = [_slice_dict(part) for part in recipe.slices]
    else:
        fields["models"] = [_source_dict(source) for source in recipe.slices[0].sources]
    fields["evomerge"] = _without_empty(
        {
            "seed": recipe.seed,
            "calibration_text": _text_data(recipe.calibration_text),
            "adapters": recipe.adapters,
            "vocabulary": recipe.tokenizer_source if own_policy else None,
            "mixture": None if recipe.mixture is None else mixture_table.as_data(recipe.mixture),
            "path": None if recipe.path is None else [_layer_dict(layer) for layer in recipe.path],
            "karcher_weights": True if recipe.merge_method == "karcher" and _sets_weights(recipe) else None,
        }
    )
    return _without_empty(fields)


def _text_data(text: CalibrationText | None) -> str | dict[str, str] | None:
    return text if text is None or isinstance(text, str) else dict(text)


def _tokenizer_dict(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.tokens is None:
        return None
    return {"source": _reference_data(recipe.tokenizer_source)} | token_rules.as_data(recipe.tokens)


def _slice_dict(part: Slice) -> dict[str, Any]:
    return _without_empty(
        {
            "sources": [_source_dict(source) for source in part.sources],
            "base_model": _reference_data(part.base_model),
            "parameters": _parameters_dict(part.parameters),
            "evomerge": None if part.merge_method is None else {"merge_method": part.merge_method},
        }
    )


def _sets_weights(recipe: Recipe) -> bool:
    scopes = [recipe.parameters]
    for part in recipe.slices:
        scopes += [part.parameters, *(source.parameters for source in part.sources)]
    return any(name == "weight" for scope in scopes for name, _ in scope)


def _layer_dict(layer: PathLayer) -> dict[str, Any]:
    scale = None if layer.scale == 1 else layer.scale
    return _without_empty({"model": _reference_data(layer.model), "layer": layer.layer, "scale": scale})


def _source_dict(source: Source) -> dict[str, Any]:
    return _without_empty(
        {
            "model": format_reference(source.model),
            "layer_range": None if source.layer_range is None else list(source.layer_range),
            "parameters": _parameters_dict(source.parameters),
        }
    )


def _reference_data(reference: str | None) -> Any:
    return None if reference is None else format_reference(reference)


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None and value != {}}


def _parameters_dict(parameters: Parameters) -> dict[str, Any]:
    return {name: _setting_data(setting) for name, setting in parameters}


def _setting_data(setting: Setting) -> Any:
    """Return a single catch-all as its value, anything else as a list (earlier releases refuse a bare mapping)."""
    if len(setting) == 1 and setting[0].is_catch_all:
        return _value_data(setting[0])
    return [
        {"value": _value_data(condition)}
        if condition.filter is None
        else {"filter": condition.filter, "value": _value_data(condition)}
        for condition in setting
    ]


def _value_data(condition: Condition) -> Any:
    return list(condition.value) if isinstance(condition.value, tuple) else condition.value


class _Line(dict[str, Any]):
    """A mapping written on one line."""


class _Row(list[Any]):
    """A list written on one line."""


class _Dumper(_SafeDumper):
    """The safe dumper, with `_Line` and `_Row` in flow style and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_line(dumper: Any, line: _Line) -> Any:
    return dumper.represent_mapping("tag:yaml.org,2002:map", line, flow_style=True)


def _represent_row(dumper: Any, row: _Row) -> Any:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", row, flow_style=True)


_Dumper.add_representer(_Line, _represent_line)
_Dumper.add_representer(_Row, _represent_row)


def dump(recipe: Recipe, header: str = "") -> str:
    """Return `recipe` as YAML, one source per line, below `header` as a comment; the inverse of `parse`."""
    fields = as_dict(recipe)
    for part in fields.get("slices", ()):
        part["sources"] = [_Line(source) for source in part["sources"]]
        _put_on_line(part)
    if "models" in fields:
        fields["models"] = [_Line(source) for source in fields["models"]]
    _put_on_line(fields)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text: str = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    if not text.replace("\n", "").isprintable():  # names with characters that a terminal would act on are escaped
        text = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=1_000_000)
    return comment + text


def _put_on_line(fields: dict[str, Any]) -> None:
    ours = fields.get("evomerge", {})
    mixture = ours.get("mixture")
    if mixture is not None:
        mixture["rows"] = [_Row(row) for row in mixture["rows"]]
        mixture["tensors"] = {name: _Row(pieces) for name, pieces in mixture["tensors"].items()}
        if "noises" in mixture:
            mixture["noises"] = _Row(mixture["noises"])
    if "path" in ours:
        ours["path"] = [_Line(layer) for layer in ours["path"]]
    for key in ("parameters", "evomerge"):
        if key in fields and not {"mixture", "path"} & set(fields[key]):
            fields[key] = _Line(fields[key])
