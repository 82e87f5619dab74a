import pytest

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.references import (
    adapted,
    format_reference,
    is_dequantized,
    parse_reference,
    parts,
    spelled,
    with_parts,
)


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "/models/a", "./a", "~/a b"])
def test_plain_strings_stay(reference):
    assert format_reference(reference) == reference
    assert parse_reference(reference, "model") == reference


@pytest.mark.parametrize("path", ["/models/a+b", "/home/me@work/a", "./x@1@2", "rel+ative"])
def test_paths_that_mergekit_would_split_are_mappings(path):
    written = format_reference(path)
    assert written == {"model": {"path": path}}
    assert parse_reference(written, "model") == path


def test_revision_survives_both_forms():
    assert parse_reference({"model": {"path": "org/name", "revision": "main"}}, "model") == "org/name@main"
    assert format_reference("org/c++@v1") == {"model": {"path": "org/c++", "revision": "v1"}}
    assert parse_reference({"model": {"path": "org/c++", "revision": "v1"}}, "model") == "org/c++@v1"


@pytest.mark.parametrize(
    ("written", "model", "adapter"),
    [
        ("org/base+org/lora", "org/base", "org/lora"),
        ("org/base@main+./lora", "org/base@main", "./lora"),
        ({"model": {"path": "/m/a+b"}, "lora": {"path": "org/c++", "revision": "v1"}}, "/m/a+b", "org/c++@v1"),
        ({"model": {"path": "a"}, "lora": {"path": "/l@1"}}, "a", "/l@1"),
    ],
)
def test_an_adapter_on_a_model_is_held_apart_from_names_with_a_plus(written, model, adapter):
    reference = parse_reference(written, "model")
    assert reference == adapted(model, adapter)
    assert parts(reference) == (model, adapter)
    assert format_reference(reference) == written
    assert with_parts(reference, str.upper) == adapted(model.upper(), adapter.upper())


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ({"path": "/m/a", "dequantize": True}, "/m/a+dequantize"),
        ({"model": {"path": "org/a", "revision": "v1", "dequantize": True}}, "org/a@v1+dequantize"),
        ("/m/a+dequantize", "/m/a+dequantize"),
        ({"model": {"path": "a", "dequantize": True}, "lora": {"path": "b"}}, "a+dequantize+lora:b"),
        ("a+dequantize+b", "a+dequantize+lora:b"),
        ({"path": "/m/a", "dequantize": False}, "/m/a"),
    ],
)
def test_a_model_that_is_dequantised(written, reference):
    assert parse_reference(written, "m") == reference
    assert is_dequantized(reference) == ("dequantize" in reference)
    assert parts(reference)[0] == reference.partition("+")[0]
    assert parse_reference(format_reference(reference), "m") == reference
    upper = with_parts(reference, str.upper)
    assert upper.replace("+DEQUANTIZE", "+dequantize").lower() == reference.lower()
    assert is_dequantized(upper) == is_dequantized(reference)


def test_what_is_typed_may_ask_for_floats():
    assert spelled("a+dequantize", lambda path: False) == "a+dequantize"
    assert spelled("a+dequantize+b", lambda path: False) == "a+dequantize+lora:b"


def test_forms_of_one_adapted_model_are_equal():
    assert parse_reference({"model": "a", "lora": "b"}, "m") == parse_reference("a+b", "m")
    assert parse_reference({"model": {"path": "a"}, "lora": None}, "m") == "a"
    assert parts("/m/a+b") == ("/m/a+b", None)


@pytest.mark.parametrize("text", ["a", "a+b+c", "a+", "+b", "has+folder", "a+lora:b"])
def test_what_is_typed_stays_unless_it_is_a_model_and_an_adapter(text):
    assert spelled(text, lambda path: path == "has+folder") == text
    assert spelled("a+b", lambda path: False) == "a+lora:b"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a+b+c", r"m: 'a\+b\+c' is not a model with one adapter; write MODEL\+ADAPTER, or \{model"),
        ("a+", r"m: 'a\+' is not a model with one adapter; write MODEL\+ADAPTER"),
        ("+b", "m: the model's name is empty; write a folder"),
        ({"model": "a+b"}, r"m: 'a\+b' has a '\+'; write \{path: ...\} if it belongs to the folder's name"),
        ({"model": {"path": "a+lora:b"}}, r"m: 'a\+lora:b' contains '\+lora:', which marks an adapter here; rename"),
        ({"model": "a", "lora": {"pth": "b"}}, "m.lora: the model has no path"),
        ({"model": "a", "override_architecture": "X"}, "m: override_architecture is not supported, .*; remove it"),
        ("a@b@c", "m: 'a@b@c' has more than one '@'; write org/name@revision"),
        ("", "m: the model's name is empty; write a folder or a hub id"),
        (3, "m: 3 is not a model; write a folder or a hub id"),
        ({"modle": "a"}, "m: unknown key 'modle'; did you mean 'model'"),
        ({"model": {"revision": "x"}}, "m: the model has no path; write {model: {path: FOLDER}}"),
        (
            {"model": {"path": "/a", "revision": "x"}},
            "m: a local folder has no revision; remove 'revision: x'",
        ),
        ({"model": {"path": "a", "rev": "x"}}, "m: unknown key 'rev'; did you mean 'revision'"),
        ({"path": "a", "dequantize": "yes"}, "m.dequantize: 'yes' is not true or false; write dequantize: true"),
        (
            {"path": "/m/a+dequantize"},
            "m: '/m/a.dequantize' ends with '.dequantize'; write dequantize: true, or",
        ),
        ({"model": "a", "lora": {"path": "b", "dequantize": True}}, "m.lora: unknown key 'dequantize'"),
    ],
)
def test_what_is_no_reference(value, message):
    with pytest.raises(RecipeError, match=message):
        parse_reference(value, "m")
