"""Recipes as YAML in mergekit's dialect: reading and writing.

Reading accepts every spelling of mergekit 0.1.5 for one decoder-only model, and refuses unknown keys. (mergekit ignores
them, so that a typing error changes the merge without a message.) Writing uses spellings that both mergekit 0.1.5 and
earlier releases understand. One key is ours, ``evomerge``. In a recipe it has ``seed``, ``calibration_text``,
``adapters: core``, ``vocabulary: first`` or ``pad``, ``mixture`` and ``path``; in a slice ``merge_method``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from search_spaces.recipes import mixture_table, token_rules
from search_spaces.recipes.errors import RecipeError, entries_of, mapping, shown, text_of
from search_spaces.recipes.fields import MAX_SLICES, MAX_SOURCES, PathLayer, Slice, Source
from search_spaces.recipes.methods import MethodSpec, method_spec
from search_spaces.recipes.parameter_values import Condition, Parameters, Scalar, Setting
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import format_reference, parse_reference
from search_spaces.recipes.token_rules import TokenRules
from search_spaces.yaml_lines import line_of

MAX_BYTES = 4_000_000  # a canonical recipe of 128 layers and 8 sources is about 200 kB
MAX_NESTING = 32  # the grammar needs 8; parsers recurse
MAX_VALUES = 200_000  # aliases counted where they are used

_TOP_KEYS = (
    "merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template",
    "parameters", "models", "slices", "modules", "evomerge",
)  # fmt: skip

_OUR_KEYS = ("seed", "calibration_text", "adapters", "vocabulary", "mixture", "path")


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


def read_text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises
    ------
    RecipeError
        If it cannot be read or is not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return data.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name a recipe's YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not text; name a recipe's YAML file in UTF-8") from None


def parse(text: str, origin: str = "recipe") -> Recipe:
    """Return the recipe in a YAML text; errors start with `origin` and name the place in the document.

    Raises
    ------
    RecipeError
        If the text is not YAML, is too large, or is not a valid recipe.
    """
    data, *others = documents(text, origin)
    if others:
        raise RecipeError(
            f"{origin}: it holds {1 + len(others)} documents, and only one can be used here; merge them with "
            "`evomerge merge FILE OUT` and name OUT"
        )
    return build(data, origin, text)


def documents(text: str, origin: str) -> list[Any]:
    """Return the plain data of each YAML document in `text`, at least one; empty documents are left out.

    Raises
    ------
    RecipeError
        If the text is too large or is not YAML.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{origin}: is larger than {MAX_BYTES} bytes; name a recipe's YAML file")
    try:
        loaded = load_yaml_documents(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = origin if mark is None else f"{origin}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{place}: not valid YAML: {problem}; correct it there") from None
    except (ValueError, TypeError) as error:  # dates that do not exist, mappings as keys, nesting
        raise RecipeError(f"{origin}: {error}; write plain mappings, lists and numbers") from None
    return [data for data in loaded if data is not None] or [None]


def build(data: Any, origin: str = "recipe", text: str = "") -> Recipe:
    """Return the recipe in plain mappings, lists and scalars, as `as_dict` gives them.

    Parameters
    ----------
    data
        The mapping.
    origin
        What errors start with.
    text
        The YAML document that `data` was read from: errors then name the line in it.

    Raises
    ------
    RecipeError
        If it is not a valid recipe; the text starts with `origin`.
    """
    try:
        _check_amount(data)
        return _recipe(data)
    except RecipeError as error:
        raise RecipeError(f"{_with_line(origin, text, str(error))}: {error}") from None


def _with_line(origin: str, text: str, message: str) -> str:
    """Return `origin` with the line of the place that a message begins with, if the text is a document that has it."""
    place = re.match(r"[a-z_]+(\[\d+\]|\.\w+)*(?=: )", message)
    line = line_of(text, re.findall(r"\w+", place[0])) if place and text else None
    return origin if line is None else f"{origin}:{line}"


if TYPE_CHECKING:
    from yaml import SafeDumper as _SafeDumper
    from yaml import SafeLoader as _SafeLoader
else:  # the compiled ones, ten times as fast, where PyYAML was built with them
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class StrictLoader(_SafeLoader):
    """The safe loader, except that a key given twice is an error instead of an overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; raise if a key is repeated."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str) -> Any:
    """Return the plain data of a YAML text from an untrusted source.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, names a Python type, or repeats a key.
    ValueError
        If it is nested too deeply, has too many values, or an impossible one (a date that does not exist).
    """
    loaded = load_yaml_documents(text)
    if len(loaded) > 1:
        raise ValueError(f"{len(loaded)} documents; write one, without ---")
    return loaded[0] if loaded else None


def load_yaml_documents(text: str) -> list[Any]:
    """Return the plain data of each document of a YAML text from an untrusted source; see `load_yaml`."""
    _check_events(text)
    loaded = list(yaml.load_all(text, Loader=StrictLoader))
    _check_amount(loaded)
    return loaded


def _check_events(text: str) -> None:
    """Raise on deep nesting or too many values, event by event, before anything is built."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        else:
            values += 1
        if depth > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} levels deep")
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")


def _check_amount(data: Any) -> None:
    count, pending = 0, [data]
    while pending:
        value = pending.pop()
        count += 1
        if count > MAX_VALUES:
            raise RecipeError(f"more than {MAX_VALUES} values; write a smaller file")
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


# --- reading: nouns; `place` is the path in the document ---


def _recipe(data: Any) -> Recipe:
    top = mapping(data, "the document", _TOP_KEYS)
    if top.get("merge_method") is None:
        raise RecipeError("merge_method is missing; write one such as merge_method: linear")
    spec = method_spec(text_of(top["merge_method"], "merge_method"))
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
    valid = (
        "sources",
        "parameters",
        "base_model",
        "evomerge",
        "residual_weight",
    )  # mergekit accepts residual_weight and ignores it
    fields = mapping(value, place, valid, required=("sources",))
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
    bounds = fields["layer_range"]
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(type(bound) is int for bound in bounds):
        raise RecipeError(f"{place}.layer_range: {shown(bounds)} is not a range; write [start, end]")
    return Source(
        model=parse_reference(fields["model"], f"{place}.model"),
        layer_range=(bounds[0], bounds[1]),
        parameters=_parameters(fields, f"{place}.parameters", spec),
    )


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
        "calibration_text": None if text is None else text_of(text, "evomerge.calibration_text"),
        "adapters": "core" if adapters == "core" else None,
        "mixture": None if mixture is None else mixture_table.from_data(mixture, "evomerge.mixture"),
        "path": _path(ours.get("path")),
    }


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
    """Read a scalar as mergekit does: YAML 1.1 reads 1e-5 as text, and 0 and 1 are truth values."""
    try:
        if kind is bool:
            if isinstance(value, (bool, int, float)) and value in (0, 1):
                return bool(value)
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
            "calibration_text": recipe.calibration_text,
            "adapters": recipe.adapters,
            "vocabulary": recipe.tokenizer_source if own_policy else None,
            "mixture": None if recipe.mixture is None else mixture_table.as_data(recipe.mixture),
            "path": None if recipe.path is None else [_layer_dict(layer) for layer in recipe.path],
        }
    )
    return _without_empty(fields)


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
