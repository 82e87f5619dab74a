"""Recipes of several documents: order, names, what is refused."""

import re
from pathlib import Path

import pytest

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import dump, needed, parse_documents

MODEL = "- {{model: {}, parameters: {{weight: 1}}}}\n"
LINEAR = f"merge_method: linear\nmodels:\n{MODEL}{MODEL}"


def one(name, *models):
    return (f"name: {name}\n" if name else "") + LINEAR.format(*models)


def parse(*texts):
    return parse_documents("---\n".join(texts), "multi.yaml")


def names(documents):
    return [document.name for document in documents]


def test_a_document_comes_after_those_it_uses_and_the_one_without_a_name_last():
    documents = parse(one(None, "b", "base"), one("b", "a", "x"), one("a", "x", "y"))
    assert names(documents) == ["a", "b", None]
    assert documents[1].uses(["a", "b", None]) == ("a",)


def test_the_last_is_the_result_where_all_have_names():
    documents = parse(one("a", "x", "y"), one("c", "x", "y"), one("b", "a", "z"))
    assert names(documents)[-1] == "b"
    assert names(needed(documents)) == ["a", "b"]


def test_one_document_may_have_a_name_and_empty_ones_do_not_count():
    (document,) = parse_documents("---\n" + one("a", "x", "y") + "---\n", "multi.yaml")
    assert document.name == "a"
    assert document.recipe == mergekit_yaml.parse(LINEAR.format("x", "y"))


def test_results_stand_for_names_also_below_an_adapter():
    documents = parse(one("a", "x", "y"), one(None, "a+org/lora", "a") + "tokenizer_source: a\n")
    assert documents[1].uses(["a"]) == ("a",)
    recipe = documents[1].with_results({"a": "/tmp/a"})
    assert recipe.models == ("/tmp/a+lora:org/lora", "/tmp/a")
    assert recipe.tokenizer_source == "/tmp/a"


def test_a_document_may_be_called_base_beside_a_vocabulary_policy():
    documents = parse(one("base", "x", "y") + "tokenizer_source: base\n", one(None, "base", "z"))
    assert names(documents) == ["base", None]


def test_written_documents_are_read_back():
    documents = parse(one("a", "x", "y"), one(None, "a", "z"))
    assert parse_documents(dump(documents), "again") == documents
    assert dump(documents[:1]) == mergekit_yaml.dump(documents[0].recipe)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([one(None, "x", "y")] * 2, "two documents have no name; give all but one a name"),
        ([one("a", "x", "y")] * 2, "two documents are called a; rename one"),
        (
            [one("a", "b", "y"), one("b", "a", "y"), one(None, "a", "x")],
            r"use each other in a circle \(.*a.*\); rename one of them",
        ),
        ([one("a", "a", "y"), one(None, "a", "x")], r"in a circle \(a -> a\); rename"),
        ([one("../a", "x", "y"), one(None, "a", "x")], r"document 1: name: '\.\./a' is not a name; use"),
        ([one("a", "x", "y"), "merge_method: lniear"], "document 2: merge_method 'lniear' is unknown; did you"),
        (["name: a"], "merge_method is missing; write one"),
        (["a: [", one(None, "x", "y")], "not valid YAML: .*correct it there"),
    ],
)
def test_what_is_refused(documents, message):
    with pytest.raises(RecipeError, match=r"^multi\.yaml(:\d+)?: .*" + message):
        parse(*documents)


def test_what_the_documentation_shows():
    page = (Path(__file__).parents[4] / "docs" / "recipes.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```yaml\n(name: .*?)```", page, flags=re.S)
    assert [document.recipe.models for document in parse(first)] == [("chat", "math"), ("code+lora:style", "first")]
    assert [document.recipe.models for document in parse(second)][-1] == ("lower", "upper", "base")


def test_one_recipe_is_not_several():
    text = one("a", "x", "y") + "---\n" + one(None, "a", "z")
    with pytest.raises(RecipeError, match="it contains 2 documents, and only one can be used here; merge them"):
        mergekit_yaml.parse(text)
