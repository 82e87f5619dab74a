from search_spaces.recipe import Recipe


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
