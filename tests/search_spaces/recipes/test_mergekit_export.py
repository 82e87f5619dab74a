from dataclasses import replace
from typing import Any

import pytest

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import resolve


def recipe(method="task_arithmetic", density=0.5, **fields):
    parameters = {"weight": 0.5, **({"density": density} if method != "linear" else {})}
    return mergekit_yaml.build(
        {
            "merge_method": method,
            "base_model": "base",
            "dtype": "float32",
            "parameters": parameters,
            "models": [{"model": "a"}, {"model": "base"}],
            **fields,
        }
    )


def test_mergekit_rebuilds_what_it_can():
    for method in ("linear", "task_arithmetic", "ties"):
        assert mergekit_export.obstacles(recipe(method)) == ()
        assert mergekit_export.rounded(recipe(method)) == (recipe(method), ())
    assert mergekit_export.obstacles(recipe("linear", dtype="bfloat16")) == ()


def test_random_masks_are_an_obstacle():
    stochastic = recipe("dare_ties", evomerge={"seed": 3})
    (obstacle,) = mergekit_export.obstacles(stochastic)
    assert obstacle.startswith("dare_ties masks: evomerge draws each from the seed, the model and")
    rounded, (note,) = mergekit_export.rounded(stochastic)
    assert rounded.seed is None
    assert "evomerge" not in mergekit_yaml.as_dict(rounded)
    assert note.startswith("dare_ties masks: the seed is dropped")


def test_without_drops_there_are_no_masks():
    assert mergekit_export.obstacles(recipe("dare_ties", density=1.0)) == ()
    assert mergekit_export.obstacles(recipe("dare_ties", density=[1.0, 0.9])) != ()


def test_models_that_are_dequantised_are_an_obstacle():
    floats = recipe(models=[{"model": {"path": "a", "dequantize": True}}])
    assert mergekit_export.obstacles(floats) == ("a: mergekit does not dequantise",)
    with pytest.raises(RecipeError, match=r"a: mergekit does not dequantise; build the model with evomerge merge, or"):
        mergekit_export.rounded(floats)


def test_gguf_files_are_an_obstacle():
    gguf = recipe(models=[{"model": "folder/a.gguf"}])
    assert mergekit_export.obstacles(gguf) == ("folder/a.gguf: mergekit reads no GGUF",)
    with pytest.raises(
        RecipeError, match=r"a.gguf: mergekit reads no GGUF; build the model with evomerge merge, or save"
    ):
        mergekit_export.rounded(gguf)


def test_precision_means_the_same_in_both():
    for dtype in ("bfloat16", "float16", "float32", "float64", None):
        plain = recipe(dtype=dtype)
        assert mergekit_export.obstacles(plain) == ()
        assert mergekit_export.rounded(plain) == (plain, ())


def test_methods_that_mergekit_lacks():
    magmax = recipe("magmax", parameters={"lambda": 0.5})
    assert mergekit_export.obstacles(magmax) == ("mergekit 0.1.5 has no merge_method 'magmax'",)
    with pytest.raises(RecipeError, match=r"mergekit 0\.1\.5 has no 'magmax'; build the model with evomerge merge, or"):
        mergekit_export.rounded(magmax)


def test_parameters_that_mergekit_lacks():
    def karcher(weight):
        return recipe("karcher", parameters={"weight": weight}, evomerge={"karcher_weights": True})

    assert mergekit_export.obstacles(karcher(1.0)) == ()  # the default: equal weights
    assert mergekit_export.obstacles(karcher(0.5)) == ("weight: mergekit has no such parameter of karcher",)
    rounded, (note,) = mergekit_export.rounded(karcher(0.5))
    assert note == "weight is dropped; mergekit has no such parameter"
    assert rounded == karcher(1.0)


def test_methods_that_deviate():
    models = [{"model": "a"}, {"model": "b"}, {"model": "base"}]
    stock = recipe("model_stock", parameters={}, models=models)
    (obstacle,) = mergekit_export.obstacles(stock)
    assert obstacle.startswith("model_stock: its ratio is kept within [0, 1]")
    assert mergekit_export.rounded(stock) == (stock, (obstacle,))


def test_masks_of_every_random_method_are_obstacles():
    for method in ("dare_linear", "dare_ties", "della_linear", "della"):
        assert mergekit_export.obstacles(recipe(method))[0].startswith(f"{method} masks: evomerge draws each")


def della(density: Any, **parameters: Any) -> Recipe:
    models = [{"model": "a", "parameters": {"weight": 1.0, "density": density, **parameters}}, {"model": "base"}]
    return mergekit_yaml.build({"merge_method": "della", "base_model": "base", "models": models, "dtype": "float32"})


@pytest.mark.parametrize(
    ("density", "parameters", "refused"),
    [
        (0.5, {}, 0),
        (1.0, {"epsilon": 0.2}, 0),  # nothing is dropped
        (0.9, {}, 1),
        (0.1, {}, 1),
        (0.5, {"epsilon": 0.5}, 1),
        ([0.2, 0.9], {"epsilon": 0.2}, 1),
        ([{"filter": "mlp", "value": 0.95}, {"value": 0.5}], {"epsilon": 0.1}, 1),
        ([{"filter": "mlp", "value": 0.95}, {"value": 0.5}], {"epsilon": [{"filter": "attn", "value": 0.3}]}, 2),
    ],
)
def test_spreads_that_mergekit_refuses(density: Any, parameters: Any, refused: int) -> None:
    recipe = della(density, **parameters)
    found = mergekit_export.refused_by_mergekit(recipe)
    assert (len(found) > 0) == (refused > 0)
    assert set(found) <= set(mergekit_export.obstacles(recipe))
    written, notes = mergekit_export.rounded(recipe)
    assert set(found) <= set(notes)
    assert not mergekit_export.refused_by_mergekit(written)
    assert (written == recipe) == (not refused)


def test_differences_are_those_of_mergekits_recipes() -> None:
    assert "masks" in mergekit_export.differences(della(0.5))[0]
    assert not mergekit_export.differences(replace(della(0.5), seed=1))  # of evomerge's own
    assert not mergekit_export.differences(della(1.0))


@pytest.mark.parametrize(
    ("density", "parameters", "refused"),
    [
        (0.5, {}, None),
        (1.0, {"epsilon": 0.2}, None),
        (0.9, {}, "epsilon below 0.1,"),
        (0.1, {}, "epsilon below 0.1,"),
        ([0.2, 0.9], {"epsilon": 0.2}, "epsilon below 0.2,"),
        # the filter keeps apart what would not fit
        ([{"filter": "mlp", "value": 0.95}, {"value": 0.5}], {"epsilon": [{"filter": "attn", "value": 0.3}]}, "0.05,"),
        (
            [{"filter": "mlp", "value": 0.95}, {"value": 0.5}],
            {"epsilon": [{"filter": "mlp", "value": 0.04}, {"value": 0.3}]},
            None,
        ),
    ],
)
def test_spreads_are_checked_tensor_by_tensor(layout, density: Any, parameters: Any, refused: str | None) -> None:
    plans = resolve(della(density, **parameters).expanded(layout.num_layers), layout)
    if refused is None:
        mergekit_export.check_spreads(plans)
        return
    with pytest.raises(RecipeError, match=refused):
        mergekit_export.check_spreads(plans)


def model(architecture: str, *names: str, keys: tuple[str, ...] = ()) -> Model:
    return Model(architecture, "any", names, frozenset(keys))


def test_of_other_architectures_mergekit_merges_the_final_norm_as_the_embeddings():
    parts = [{"sources": [{"model": model, "layer_range": span}]} for model, span in (("a", [0, 2]), ("b", [2, 4]))]
    stacked = mergekit_yaml.build({"merge_method": "passthrough", "slices": parts, "dtype": "float32"})
    assert mergekit_export.model_obstacles(stacked, None) == ()
    (obstacle,) = mergekit_export.model_obstacles(stacked, model("OPTForCausalLM", "model.decoder.final.weight"))
    assert "where the tensors of OPTForCausalLM belong" in obstacle
    # the embeddings and the norm are alike
    assert mergekit_export.model_obstacles(recipe(), model("OPTForCausalLM", "model.decoder.final.weight")) == ()


def test_tensors_that_mergekits_definition_lacks_or_requires_are_obstacles():
    names = tuple(name.replace("{}", "11") for name in model("Phi3ForCausalLM").definition.required)
    assert mergekit_export.model_obstacles(recipe(), model("Phi3ForCausalLM", *names)) == ()
    tied = tuple(name for name in names if name != "lm_head.weight")
    assert mergekit_export.model_obstacles(recipe(), model("Phi3ForCausalLM", *tied)) == (
        "mergekit 0.1.5 refuses the models: its definition of Phi3ForCausalLM requires lm_head.weight, and the "
        "models do not have it",
    )
    assert mergekit_export.model_obstacles(recipe(), model("Phi3ForCausalLM", *tied, keys=("lm_head.weight",))) == ()
    biases = ("model.layers.0.mlp.down_proj.bias", "model.layers.1.mlp.down_proj.bias")
    assert mergekit_export.model_obstacles(recipe(), model("Phi3ForCausalLM", *names, *biases)) == (
        "mergekit 0.1.5 drops 2 tensors, such as model.layers.0.mlp.down_proj.bias: its definition of Phi3ForCausalLM "
        "does not contain them",
    )
