"""Recipes of several documents: order, names, what is refused."""

import re
from pathlib import Path

import pytest

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.documents import needed, parse_stages, to_yaml
from search_spaces.recipes.errors import RecipeError

MODEL = "- {{model: {}, parameters: {{weight: 1}}}}\n"
LINEAR = f"merge_method: linear\nmodels:\n{MODEL}{MODEL}"


def document(name, *models):
    return (f"name: {name}\n" if name else "") + LINEAR.format(*models)


def parse(*documents):
    return parse_stages("---\n".join(documents), "multi.yaml")


def names(stages):
    return [stage.name for stage in stages]


def test_a_document_comes_after_those_it_uses_and_the_one_without_a_name_last():
    stages = parse(document(None, "b", "base"), document("b", "a", "x"), document("a", "x", "y"))
    assert names(stages) == ["a", "b", None]
    assert stages[1].uses(["a", "b", None]) == ("a",)


def test_the_last_is_the_result_where_all_have_names():
    stages = parse(document("a", "x", "y"), document("c", "x", "y"), document("b", "a", "z"))
    assert names(stages)[-1] == "b"
    assert names(needed(stages)) == ["a", "b"]


def test_one_document_may_have_a_name_and_empty_ones_do_not_count():
    (stage,) = parse_stages("---\n" + document("a", "x", "y") + "---\n", "multi.yaml")
    assert stage.name == "a"
    assert stage.recipe == mergekit_yaml.parse(LINEAR.format("x", "y"))


def test_results_stand_for_names_also_below_an_adapter():
    stages = parse(document("a", "x", "y"), document(None, "a+org/lora", "a") + "tokenizer_source: a\n")
    assert stages[1].uses(["a"]) == ("a",)
    recipe = stages[1].with_results({"a": "/tmp/a"})
    assert recipe.models == ("/tmp/a+lora:org/lora", "/tmp/a")
    assert recipe.tokenizer_source == "/tmp/a"


def test_a_document_may_be_called_base_beside_a_vocabulary_policy():
    stages = parse(document("base", "x", "y") + "tokenizer_source: base\n", document(None, "base", "z"))
    assert names(stages) == ["base", None]


def test_written_documents_are_read_back():
    stages = parse(document("a", "x", "y"), document(None, "a", "z"))
    assert parse_stages(to_yaml(stages), "again") == stages
    assert to_yaml(stages[:1]) == mergekit_yaml.dump(stages[0].recipe)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([document(None, "x", "y")] * 2, "two documents have no name; give all but one a name"),
        ([document("a", "x", "y")] * 2, "two documents are called a; rename one"),
        (
            [document("a", "b", "y"), document("b", "a", "y"), document(None, "a", "x")],
            r"use each other in a circle \(.*a.*\); rename one of them",
        ),
        ([document("a", "a", "y"), document(None, "a", "x")], r"in a circle \(a -> a\); rename"),
        ([document("../a", "x", "y"), document(None, "a", "x")], r"document 1: name: '\.\./a' is not a name; use"),
        ([document("a", "x", "y"), "merge_method: lniear"], "document 2: merge_method 'lniear' is unknown; did you"),
        (["name: a"], "merge_method is missing; write one"),
        (["a: [", document(None, "x", "y")], "correct the YAML there"),
    ],
)
def test_what_is_refused(documents, message):
    with pytest.raises(RecipeError, match="^multi.yaml: .*" + message):
        parse(*documents)


def test_what_the_documentation_shows():
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```yaml\n(name: .*?)```", page, flags=re.S)
    assert [stage.recipe.models for stage in parse(first)] == [("chat", "math"), ("code+lora:style", "first")]
    assert [stage.recipe.models for stage in parse(second)][-1] == ("lower", "upper", "base")


def test_one_recipe_is_not_several():
    text = document("a", "x", "y") + "---\n" + document(None, "a", "z")
    with pytest.raises(RecipeError, match="it holds 2 documents and here one is wanted; merge them"):
        mergekit_yaml.parse(text)
