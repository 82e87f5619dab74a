import pytest

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe


def recipe(method="task_arithmetic", density=0.5, **fields):
    parameters = {"weight": 0.5, **({"density": density} if method != "linear" else {})}
    return Recipe.from_dict(
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
        assert recipe(method).mergekit_obstacles() == ()
        assert recipe(method).rounded_for_mergekit() == (recipe(method), ())
    assert recipe("linear", dtype="bfloat16").mergekit_obstacles() == ()


def test_random_masks_are_an_obstacle():
    stochastic = recipe("dare_ties", evomerge={"seed": 3})
    (obstacle,) = stochastic.mergekit_obstacles()
    assert obstacle.startswith("dare_ties masks: evomerge draws each from the seed, the model and")
    rounded, (note,) = stochastic.rounded_for_mergekit()
    assert rounded.seed is None
    assert "evomerge" not in rounded.to_dict()
    assert note.startswith("dare_ties masks: the seed is dropped")


def test_without_drops_there_are_no_masks():
    assert recipe("dare_ties", density=1.0).mergekit_obstacles() == ()
    assert recipe("dare_ties", density=[1.0, 0.9]).mergekit_obstacles() != ()


def test_low_precision_is_an_obstacle():
    low = recipe(dtype="bfloat16")
    (obstacle,) = low.mergekit_obstacles()
    assert obstacle.startswith("dtype bfloat16: mergekit rounds to it after every step of task_arithmetic")
    rounded, (note,) = low.rounded_for_mergekit()
    assert (rounded.dtype, rounded.out_dtype) == ("float32", "bfloat16")
    assert note == "dtype: float32 is written for the arithmetic; out_dtype bfloat16 keeps the result's"
    assert rounded.mergekit_obstacles() == ()
    unknown, (note,) = recipe(dtype=None).rounded_for_mergekit()
    assert (unknown.dtype, unknown.out_dtype) == ("float32", None)
    assert note.endswith("the result is saved in it as well")


def test_methods_that_mergekit_lacks():
    magmax = recipe("magmax", parameters={"lambda": 0.5})
    assert magmax.mergekit_obstacles() == ("mergekit 0.1.5 has no merge_method 'magmax'",)
    with pytest.raises(RecipeError, match=r"mergekit 0\.1\.5 has no 'magmax'; build the model with evomerge merge, or"):
        magmax.rounded_for_mergekit()


def test_parameters_that_mergekit_lacks():
    def karcher(weight):
        return recipe("karcher", parameters={"weight": weight})

    assert karcher(1.0).mergekit_obstacles() == ()  # the default: equal weights
    assert karcher(0.5).mergekit_obstacles() == ("weight: mergekit has no such parameter of karcher",)
    rounded, (note,) = karcher(0.5).rounded_for_mergekit()
    assert note == "weight is dropped; mergekit has no such parameter"
    assert rounded == karcher(1.0)


def test_methods_that_deviate():
    models = [{"model": "a"}, {"model": "b"}, {"model": "base"}]
    stock = recipe("model_stock", parameters={}, models=models)
    (obstacle,) = stock.mergekit_obstacles()
    assert obstacle.startswith("model_stock: its ratio is kept within [0, 1]")
    assert stock.rounded_for_mergekit() == (stock, (obstacle,))


def test_masks_of_every_random_method_are_obstacles():
    for method in ("dare_linear", "dare_ties", "della_linear", "della"):
        assert recipe(method).mergekit_obstacles()[0].startswith(f"{method} masks: evomerge draws each")
