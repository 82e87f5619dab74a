import pytest

from search_spaces.errors import RecipeError
from search_spaces.references import format_reference, parse_reference


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
    ("value", "message"),
    [
        (
            "a+b",
            r"m: LoRA references \('a\+b'\) are not supported yet; merge the adapter into its model first",
        ),
        ({"model": "a", "lora": "b"}, "m: 'lora' is not supported yet; merge the adapter"),
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
    ],
)
def test_what_is_no_reference(value, message):
    with pytest.raises(RecipeError, match=message):
        parse_reference(value, "m")
