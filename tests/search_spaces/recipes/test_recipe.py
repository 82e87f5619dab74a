import time
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import MAX_LAYERS, PathLayer
from search_spaces.recipes.recipe import Condition, Recipe, Slice, Source
from search_spaces.recipes.resolve import resolve

FILTERS = ("self_attn", "mlp", "mlp.up", "norm", "layers.1.", "embed", "lm_head", "*")
numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
gradients = st.lists(numbers, min_size=1, max_size=5)
conditions = st.fixed_dictionaries({"value": numbers | gradients}, optional={"filter": st.sampled_from(FILTERS)})
a_setting = numbers | gradients | st.lists(conditions, min_size=1, max_size=3)


@st.composite
def recipes(draw):
    """Draw a sliced recipe with settings in all scopes; the outermost has a value for every tensor."""
    method = draw(st.sampled_from(["task_arithmetic", "ties", "dare_ties", "linear", "slerp", "passthrough"]))
    name = {"slerp": "t", "passthrough": "scale"}.get(method, "weight")
    count = {"slerp": 2, "passthrough": 1}.get(method, 3)

    def parameters(chance, *, of_source=False):
        if of_source and name == "t":
            return {}
        return {"parameters": {name: draw(a_setting)}} if draw(st.integers(1, 10)) <= chance else {}

    slices = []
    for length in draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(sum)):
        sources = []
        for model in draw(st.permutations(["base", "a", "b"][:count])):
            start = draw(st.integers(0, 4 - length))
            source = {"model": model, "layer_range": [start, start + length]}
            sources.append({**source, **parameters(5, of_source=True)})
        slices.append({"sources": sources, **parameters(3)})
    return mergekit_yaml.build(
        {
            "merge_method": method,
            "base_model": "base",
            "parameters": {name: draw(numbers)},
            "slices": slices,
            "dtype": draw(st.sampled_from([None, "float32"])),
        }
    )


# --- canonical form ---


@given(recipe=recipes())
def test_canonical_form_means_the_same(layout, recipe):
    assert resolve(recipe.canonical(), layout) == resolve(recipe, layout)


@given(recipe=recipes())
def test_canonical_form_survives_all_round_trips(recipe):
    canonical = recipe.canonical()
    rebuilt = mergekit_yaml.parse(mergekit_yaml.dump(canonical, "found\nby chance"))
    assert rebuilt.slices == canonical.slices
    assert rebuilt.canonical().slices == canonical.slices
    assert mergekit_yaml.parse(mergekit_yaml.dump(recipe)) == recipe
    assert mergekit_yaml.build(mergekit_yaml.as_dict(recipe)) == recipe
    assert recipe.hash == canonical.hash == rebuilt.hash
    assert hash(recipe) == hash(rebuilt)


def test_canonical_form_is_the_exact_export():
    recipe = mergekit_yaml.parse("""
        merge_method: task_arithmetic
        base_model: base
        dtype: float32
        out_dtype: bfloat16
        parameters: {normalize: false, lambda: 1, int8_mask: true}
        models:
          - {model: base}
          - model: a
            parameters: {weight: [{filter: q, value: [2, 4]}, {value: 5}], density: 0.3}
    """)
    assert mergekit_yaml.dump(recipe.expanded(2).canonical()) == (
        "merge_method: task_arithmetic\n"
        "base_model: base\n"
        "dtype: float32\n"
        "out_dtype: bfloat16\n"
        "slices:\n"
        "- sources:\n"
        "  - {model: a, layer_range: [0, 0], parameters: {weight: [{filter: q, value: 2.0}, {value: 5.0}]}}\n"
        "  - {model: base, layer_range: [0, 0]}\n"
        "- sources:\n"
        "  - {model: a, layer_range: [0, 1], parameters: {weight: [{filter: q, value: 2.0}, {value: 5.0}]}}\n"
        "  - {model: base, layer_range: [0, 1]}\n"
        "- sources:\n"
        "  - {model: a, layer_range: [1, 2], parameters: {weight: [{filter: q, value: 4.0}, {value: 5.0}]}}\n"
        "  - {model: base, layer_range: [1, 2]}\n"
        "- sources:\n"
        "  - {model: a, layer_range: [2, 2], parameters: {weight: [{filter: q, value: 2.0}, {value: 5.0}]}}\n"
        "  - {model: base, layer_range: [2, 2]}\n"
    )


BASE = {"merge_method": "ties", "base_model": "base", "parameters": {"weight": 0.5}}
MODELS = [{"model": "a"}, {"model": "base"}]
SPELLINGS = {
    "base first": {"models": [{"model": "base"}, {"model": "a"}]},
    "base left out": {"models": [{"model": "a"}]},
    "weight at the source": {"parameters": {}, "models": [{"model": "a", "parameters": {"weight": 0.5}}]},
    "weight as text": {"parameters": {"weight": "5e-1"}, "models": MODELS},
    "a gradient of one": {"parameters": {"weight": [0.5]}, "models": MODELS},
    "a bare condition": {"parameters": {"weight": {"filter": "*", "value": 0.5}}, "models": MODELS},
    "conditions that repeat": {
        "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.5}]}, "models": MODELS
    },
    "defaults": {"parameters": {"weight": 0.5, "density": 1, "normalize": 1, "lambda": 1}, "models": MODELS},
    "without effect": {"parameters": {"weight": 0.5, "int8_mask": True}, "models": MODELS},
    "a module": {"modules": {"default": {"models": MODELS}}},
    "a module's parameters": {
        "parameters": {"weight": 9}, "modules": {"default": {"models": MODELS, "parameters": {"weight": 0.5}}}
    },
    "the mapping form": {"models": [{"model": {"model": {"path": "a"}}}, {"model": "base"}]},
    "a weight for the base": {"models": [{"model": "a"}, {"model": "base", "parameters": {"weight": 3}}]},
    "a seed that decides nothing": {"models": MODELS, "evomerge": {"seed": 3}},
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_two_spellings_are_equal(spelling):
    first, second = mergekit_yaml.build({**BASE, "models": MODELS}), mergekit_yaml.build({**BASE, **spelling})
    assert first == second
    assert first.hash == second.hash
    assert first.expanded(3).hash == second.expanded(3).hash


DIFFERENCES = {
    "weight": {"parameters": {"weight": 0.25}, "models": MODELS},
    "method": {"merge_method": "task_arithmetic", "models": MODELS},
    "dtype": {"models": MODELS, "dtype": "float32"},
    "out_dtype": {"models": MODELS, "out_dtype": "bfloat16"},
    "model": {"models": [{"model": "b"}, {"model": "base"}]},
    "filter": {"parameters": {"weight": [{"filter": "mlp", "value": 0.1}, {"value": 0.5}]}, "models": MODELS},
    "shared parameter": {"parameters": {"weight": 0.5, "normalize": False}, "models": MODELS},
    "tokenizer": {"models": MODELS, "tokenizer_source": "base"},
    "chat template": {"models": MODELS, "chat_template": "auto"},
}


@pytest.mark.parametrize("other", DIFFERENCES.values(), ids=DIFFERENCES)
def test_different_merges_differ(other):
    first, second = mergekit_yaml.build({**BASE, "models": MODELS}), mergekit_yaml.build({**BASE, **other})
    assert first != second
    assert first.hash != second.hash


def test_the_seed_counts_where_something_is_drawn():
    def recipe(**fields):
        return mergekit_yaml.build({**BASE, "merge_method": "dare_ties", "models": MODELS, **fields})

    assert recipe() == recipe(evomerge={"seed": 0})
    assert recipe() != recipe(evomerge={"seed": 1})
    assert mergekit_yaml.as_dict(recipe(evomerge={"seed": 1}))["evomerge"] == {"seed": 1}


def test_slices_that_only_differ_in_their_cut_are_equal():
    def recipe(*ranges):
        slices = [{"sources": [{"model": m, "layer_range": list(r)} for m in ("a", "base")]} for r in ranges]
        return mergekit_yaml.build({**BASE, "slices": slices})

    whole = recipe((0, 4))
    assert whole == recipe((0, 1), (1, 4)) == recipe((0, 0), (0, 4), (9, 9)) == recipe((0, 2), (3, 3), (2, 4))
    assert whole != recipe((0, 1), (2, 4))
    assert whole.num_layers == 4


def test_hash_is_stable():
    """Runs name recipes by it: a change here orphans them."""
    assert mergekit_yaml.build({**BASE, "models": MODELS}).expanded(2).hash == "778a7fa6554e7bb7"


def test_hash_is_fast():
    def condition(i):
        return [{"filter": "self_attn", "value": i / 7}, {"filter": "mlp", "value": 0.1}, {"value": 0.2}]

    sources = [{"model": f"m{i}", "parameters": {"weight": condition(i)}} for i in range(3)]
    slices = [
        {"sources": [{**s, "layer_range": [layer, layer + 1]} for s in (*sources, {"model": "base"})]}
        for layer in range(10)
    ]
    best = 1.0
    for _ in range(20):
        recipe = mergekit_yaml.build({**BASE, "slices": slices})
        start = time.perf_counter()
        recipe.hash  # noqa: B018
        best = min(best, time.perf_counter() - start)
    assert best < 0.006  # measured: 0.9 ms when the machine is idle


# --- other forms ---


def test_models_in_order_of_first_use():
    recipe = mergekit_yaml.build({**BASE, "models": [{"model": "b"}, {"model": "a"}]})
    assert recipe.models == ("b", "a", "base")
    assert recipe.num_layers is None
    assert recipe.expanded(4).num_layers == 4
    assert recipe.donor == "base"
    assert mergekit_yaml.build({"merge_method": "linear", "models": [{"model": "b"}]}).donor == "b"


def test_references_are_replaced_everywhere():
    recipe = mergekit_yaml.build({**BASE, "models": MODELS, "tokenizer_source": "base"})
    moved = recipe.with_models({"a": "/m/a", "base": "/m/base", "c": "/m/c"})
    assert moved.models == ("/m/a", "/m/base")
    assert moved.base_model == "/m/base"
    assert moved.tokenizer_source == "base"  # mergekit's word, not the model's name
    assert moved.with_models({"/m/a": "a", "/m/base": "base"}) == recipe


def test_references_are_replaced_in_a_slices_own_base():
    sources = [{"model": name, "layer_range": [0, 2]} for name in ("a", "b")]
    data = {**BASE, "base_model": "base", "slices": [{"sources": sources, "base_model": "b"}]}
    moved = mergekit_yaml.build(data).with_models({"b": "/m/b"})
    assert (moved.slices[0].base_model, moved.base_model) == ("/m/b", "base")


def test_the_sign_of_a_zero_makes_no_other_recipe():
    def hash_of(zero):
        models = [{"model": "a", "parameters": {"weight": zero}}, {"model": "b", "parameters": {"weight": 1.0}}]
        return mergekit_yaml.build({**BASE, "models": models}).hash

    assert hash_of(-0.0) == hash_of(0.0)


def test_recipes_do_not_change():
    recipe = mergekit_yaml.build({**BASE, "models": MODELS})
    with pytest.raises(FrozenInstanceError):
        recipe.seed = 3
    assert recipe != "a recipe"


# --- validation ---


def slerp(*names):
    return Slice(tuple(Source(name, (0, 4)) for name in names))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slices": ()}, "slices: the recipe has none; write a `models:` or a `slices:` list"),
        ({"slices": (Slice(()),)}, r"slices\[0\]: the slice has no sources; name at least 1"),
        ({"merge_method": "slrp"}, "merge_method 'slrp' is unknown; did you mean 'slerp'"),
        ({"base_model": None}, "base_model: slerp needs a base; write base_model: ONE_OF_THE_MODELS"),
        ({"base_model": "z"}, r"slices\[0\]: the base is not among the sources; add {model: z, layer_range"),
        ({"slices": (slerp("base", "a", "b"),)}, r"slices\[0\]: slerp takes 1 model\(s\) beside the base,"),
        ({"slices": (slerp("base", "base"),)}, r"slices\[0\]: 'base' occurs twice among the sources; use it"),
        ({"dtype": "bf16"}, "dtype: 'bf16' is not a precision; did you mean 'bfloat16'"),
        ({"out_dtype": "int64"}, "out_dtype: 'int64' is not a precision; did you mean"),
        ({"seed": -1}, "evomerge.seed: -1 is not a seed; write a whole number from 0"),
        ({"parameters": (("t", ()),)}, "parameters.t: no value; write a number"),
        ({"parameters": (("t", (Condition(True),)),)}, "parameters.t: True is not a number; write one such"),
        ({"parameters": (("t", (Condition(float("nan")),)),)}, "parameters.t: nan is not finite; write a"),
        ({"parameters": (("t", (Condition(()),)),)}, "parameters.t: a gradient of 0 values; write 1 to"),
        ({"parameters": (("t", (Condition(1.0, 3),)),)}, "parameters.t: the filter 3 is not text; write a"),
        ({"parameters": (("w", (Condition(1.0),)),)}, "parameters: slerp has no parameter 'w'; use one of act"),
    ],
)  # fmt: skip
def test_what_is_no_recipe(fields, message):
    valid = {"merge_method": "slerp", "slices": (slerp("base", "a"),), "base_model": "base"}
    assert Recipe(**valid)
    with pytest.raises(RecipeError, match=message):
        Recipe(**{**valid, **fields})


def test_sources_that_mergekit_would_drop_are_refused():
    """It takes the last slice's sources only up to the first slice's number, for final norm and head."""
    one, two = Slice((Source("a", (0, 2)),)), Slice((Source("a", (2, 4)), Source("b", (2, 4))))
    weight = (("weight", (Condition(1.0),)),)
    assert Recipe("linear", (two, one), parameters=weight)
    message = r"slices\[1\]: the last slice has 2 sources, the first 1, and mergekit drops the rest"
    with pytest.raises(RecipeError, match=message):
        Recipe("linear", (one, two), parameters=weight)


def test_parameters_are_sorted_and_unique():
    weight, normalize = ("weight", (Condition(1.0),)), ("normalize", (Condition(True),))
    part = (Slice((Source("a", (0, 4)),)),)
    assert Recipe("linear", part, parameters=(normalize, weight))
    for parameters in ((weight, normalize), (weight, weight)):
        with pytest.raises(RecipeError, match="parameters must be sorted and unique; put"):
            Recipe("linear", part, parameters=parameters)


# --- a base that may be left out ---


def optional(base=True, models=("a", "b"), **parameters):
    data = {
        "merge_method": "nuslerp",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in models],
        "parameters": parameters,
    }
    return mergekit_yaml.build(data | ({"base_model": "base"} if base else {}))


def test_optional_base_is_treated_apart_when_there_is_one(layout):
    with_base, without = optional().expanded(4), optional(base=False).expanded(4)
    assert {plan.base.model for plan in resolve(with_base, layout)} == {"base"}
    assert {plan.base for plan in resolve(without, layout)} == {None}
    for recipe in (with_base, without):
        for plan in resolve(recipe, layout):
            assert [c.model for c in plan.contributions] == ["a", "b"]
        again = mergekit_yaml.parse(mergekit_yaml.dump(recipe.canonical()))
        assert again.hash == recipe.hash
        assert [plan.base for plan in resolve(again, layout)] == [plan.base for plan in resolve(recipe, layout)]
    assert with_base.hash != without.hash


def test_optional_base_does_not_count_as_a_model():
    with pytest.raises(RecipeError, match=r"nuslerp takes 2 model\(s\) beside the base, not 1"):
        optional(models=("a", "base"))


@pytest.mark.parametrize(("layers", "fits"), [(1, True), (MAX_LAYERS, True), (0, False), (MAX_LAYERS + 1, False)])
def test_a_path_has_a_layer_and_no_more_than_the_limit(layers, fits):
    merge = mergekit_yaml.parse("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n")
    path = tuple(PathLayer(None, 0) for _ in range(layers))
    if fits:
        assert replace(merge, path=path).path == path
    else:
        with pytest.raises(RecipeError, match=rf"evomerge\.path: {layers} layers; write 1 to {MAX_LAYERS}"):
            replace(merge, path=path)


def test_a_slice_of_models_without_layers_has_no_method_of_its_own():
    merge = mergekit_yaml.parse("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n")
    (part,) = merge.slices
    with pytest.raises(RecipeError, match="only slices of full weights can have their own"):
        replace(merge, slices=(replace(part, merge_method="ties"),))


def test_core_space_and_calibration_exclude_each_other():
    ties = "merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 1, density: 0.5}}\n"
    assert mergekit_yaml.parse(f"{ties}evomerge: {{adapters: core}}\n").adapters == "core"
    with pytest.raises(RecipeError, match="core space has no input channels to weigh; remove calibration_text"):
        mergekit_yaml.parse(f"{ties}evomerge: {{adapters: core, calibration_text: text.txt}}\n")
