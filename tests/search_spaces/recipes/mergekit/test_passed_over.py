"""Keys that mergekit passes over: found everywhere in a recipe, named with their line, and taken out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import parse_documents
from search_spaces.recipes.mergekit.passed_over import without_passed_over

RECIPE = """\
merge_method: ties
base_model: {model: {path: base, branch: main}}
defaults: &defaults {density: 0.5}
models:
  - model: a
    layer_range: [0, 32]
    parameters:
      <<: *defaults
      weight: 1
      t: 0.5
  - model: b
    weight: 2
    parameters: {weight: [{filter: mlp, value: 1, note: x}, {value: 0.5}], normalize: true, density: []}
dtype: float16
dtype: bfloat16
parameters: {normalise: true, int8_mask: "true"}
tokenizer:
  source: union
  tokens: {x: {source: {kind: zero, size: 1}, forced: true}}
  padding: 8
"""


def test_every_key_without_effect_is_named_with_its_line() -> None:
    notes: list[str] = []
    parse_documents(RECIPE, "r.yaml", notes)
    assert notes == [
        "r.yaml:2: base_model.model: 'branch' has no effect: there is no such key",
        "r.yaml:3: the document: 'defaults' has no effect: there is no such key",
        "r.yaml:6: models[0]: 'layer_range' has no effect: whole models are merged; write slices to take layers",
        "r.yaml:10: models[0].parameters: 't' has no effect: ties has no such parameter",
        "r.yaml:12: models[1]: 'weight' has no effect: parameters must be under the key parameters",
        "r.yaml:13: models[1].parameters.weight[0]: 'note' has no effect: there is no such key",
        "r.yaml:13: models[1].parameters: 'density' has no effect: the list is empty",
        "r.yaml:13: models[1].parameters: 'normalize' has no effect: it is not per model; write it in the recipe's or "
        "a slice's parameters",
        "r.yaml:14: 'dtype' has no effect: it is given again below",
        "r.yaml:16: parameters: 'normalise' has no effect: ties has no such parameter; did you mean 'normalize'?",
        "r.yaml:19: tokenizer.tokens.x.source: 'size' has no effect: there is no such key",
        "r.yaml:19: tokenizer.tokens.x: 'forced' has no effect: there is no such key; did you mean 'force'?",
        "r.yaml:20: tokenizer: 'padding' has no effect: there is no such key",
    ]


def test_what_is_left_is_the_recipe_without_them() -> None:
    (document,) = parse_documents(RECIPE, "r.yaml", [])
    expected = """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {density: 0.5, weight: 1}}
          - {model: b, parameters: {weight: [{filter: mlp, value: 1}, {value: 0.5}]}}
        dtype: bfloat16
        tokenizer: {source: union, tokens: {x: {source: {kind: zero}}}}
        """
    assert document.recipe == mergekit_yaml.parse(expected)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "slices:\n  - residual_weight: 0.5\n    sources: [{model: a, layer_range: [0, 2]}]\n",
            "r.yaml:3: slices[0]: 'residual_weight' has no effect: mergekit reads it but does not use it",
        ),
        (
            "slices:\n  - sources:\n      - {model: a, layer_range: [0, 2], weigth: 1}\n",
            "r.yaml:4: slices[0].sources[0]: 'weigth' has no effect: there is no such key",
        ),
        (
            "modules:\n  default:\n    base_model: a\n    models: [{model: a}]\n",
            "r.yaml:4: modules.default: 'base_model' has no effect: there is no such key",
        ),
        (
            "models:\n  - model: {model: {path: a}, lora: {path: l, rank: 3}}\n",
            "r.yaml:3: models[0].model.lora: 'rank' has no effect: there is no such key",
        ),
        ("models: [{model: a}]\n1: 2\n", "r.yaml:3: the document: 1 has no effect: there is no such key"),
    ],
)
def test_places(text: str, note: str) -> None:
    notes: list[str] = []
    parse_documents("merge_method: passthrough\n" + text, "r.yaml", notes)
    assert notes == [note]
    with pytest.raises(RecipeError):
        parse_documents("merge_method: passthrough\n" + text, "r.yaml")  # as mergekit_yaml reads it: an error


def test_the_line_in_one_of_several_documents() -> None:
    notes: list[str] = []
    text = "merge_method: passthrough\nname: {}\nmodels: [{{model: {}}}]\n{}"
    parse_documents(
        "---\n" + text.format("x", "a", "") + "---\n" + text.format("y", "x", "extra: 1\n"), "r.yaml", notes
    )
    assert notes == ["r.yaml:9: the document: 'extra' has no effect: there is no such key"]


def test_weights_of_karcher_need_a_key_of_ours() -> None:
    text = "merge_method: karcher\nmodels: [{model: a, parameters: {weight: 2}}, {model: b}]\n"
    notes: list[str] = []
    (document,) = parse_documents(text, "r.yaml", notes)
    assert "evomerge: {karcher_weights: true} enables it" in notes[0]
    assert document.recipe == mergekit_yaml.parse("merge_method: karcher\nmodels: [{model: a}, {model: b}]")
    with pytest.raises(RecipeError, match=r"write evomerge: {karcher_weights: true}"):
        mergekit_yaml.parse(text)
    weighted = mergekit_yaml.parse(text + "evomerge: {karcher_weights: true}")
    assert weighted != document.recipe
    assert mergekit_yaml.parse(mergekit_yaml.dump(weighted)) == weighted
    assert "karcher_weights" not in mergekit_yaml.dump(document.recipe)


def test_what_else_mergekit_reads() -> None:
    """Numbers as text in ranges, truth values as words."""
    text = (
        "merge_method: linear\nparameters: {weight: 1, normalize: %s}\n"
        "slices: [{sources: [{model: a, layer_range: %s}]}]\n"
    )
    plain = mergekit_yaml.parse(text % ("false", "[0, 2]"))
    for spelling in (("'no'", "['0', '2']"), ("'False'", "[0.0, 2.0]"), ("0", "[0, 2]")):
        assert mergekit_yaml.parse(text % spelling) == plain


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(["model"]), inner)
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    ["merge_method", "models", "slices", "modules", "parameters", "tokenizer", "base_model", "evomerge", "x"]
)


@given(st.dictionaries(keys, values) | values)
def test_any_data_is_walked_and_not_changed(data: Any) -> None:
    before = copy.deepcopy(data)
    kept, _ = without_passed_over(data)
    assert data == before
    again, rest = without_passed_over(kept)
    assert again == kept
    assert not rest
