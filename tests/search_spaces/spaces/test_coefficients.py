import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe, uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit_export import check_spreads
from search_spaces.recipes.methods import METHODS as METHOD_TABLE
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig, Range

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "nuslerp", "sce", "tsv_m")
PARTS = ("attention", "mlp", "other")


def make(layout, models, method="task_arithmetic", **config):
    used = dict(list(models.items())[: {"slerp": 2, "nearswap": 2, "nuslerp": 3}.get(method)])
    if METHOD_TABLE[method].statistics:
        config = {"calibration_text": "text.txt"} | config
    return CoefficientSpace(CoefficientConfig(method=method, **config), used, layout, seed=5)


@pytest.fixture(scope="module")
def spaces(layout, models):
    """Return spaces of every method, coarse and fine."""
    return {
        (method, modules): make(layout, models, method, modules=modules, layers_per_group=size)
        for method in METHODS
        for modules, size in (("all", 3), (PARTS, 1), (("mlp", "other"), 4))
    }


@st.composite
def spaces_and_points(draw, spaces, count=1):
    """Draw a space and points of it; coordinates on the bounds are as likely as others."""
    space = spaces[draw(st.sampled_from(sorted(spaces, key=str)))]
    unit = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=space.dimension, max_size=space.dimension)
    points = [space.low + np.array(draw(unit)) * (space.high - space.low) for _ in range(count)]
    return space, [np.clip(point, space.low, space.high) for point in points]


seeds = st.integers(0, 2**32 - 1)


# --- decode and encode ---


@given(data=st.data())
def test_decode_is_total_and_canonical(spaces, layout, data):
    space, (point,) = data.draw(spaces_and_points(spaces))
    before = point.copy()
    recipe = space.decode(point)
    assert recipe.canonical().slices == recipe.slices
    assert [part.num_layers for part in recipe.slices] == [0, 1, 1, 1, 1, 0]
    assert len(resolve(recipe, layout)) == len(layout.tensors())
    assert mergekit_yaml.parse(mergekit_yaml.dump(recipe)).hash == recipe.hash
    assert np.array_equal(point, before)


@given(data=st.data())
def test_encode_inverts_decode(spaces, data):
    space, (point,) = data.draw(spaces_and_points(spaces))
    recipe = space.decode(point)
    again = space.encode(mergekit_yaml.parse(mergekit_yaml.dump(recipe)))
    assert space.decode(again).hash == recipe.hash
    if space.spec.name != "linear":  # whose scale means nothing
        assert np.array_equal(again, point)


def test_every_gene_reaches_the_recipe(spaces):
    for (method, _), space in spaces.items():
        middle = (space.low + space.high) / 2
        seen = {space.decode(middle).hash}
        for gene in range(space.dimension):
            moved = middle.copy()
            moved[gene] = space.low[gene] + 0.9 * (space.high[gene] - space.low[gene])
            seen.add(space.decode(moved).hash)
        assert len(seen) == space.dimension + 1, method


def test_genes_and_what_they_set(layout, models):
    space = make(layout, models, "ties", modules=PARTS, layers_per_group=3)
    names = [gene.name for gene in space.genes]
    per_group = [f"{m}.{p}" for m in ("ops", "x", "y") for p in ("weight", "density")]
    groups = [
        "embeddings",
        *(f"layers 0-2, {part}" for part in PARTS),
        *(f"layers 3, {part}" for part in PARTS),
        "final",
    ]
    assert names == [f"{gene}[{group}]" for group in groups for gene in per_group]
    point = np.array(space.start)
    point[names.index("x.weight[layers 3, attention]")] = 1.25
    point[names.index("y.density[final]")] = 0.125
    plans = {plan.name: plan for plan in resolve(space.decode(point), layout)}

    def values(tensor, model, parameter):
        return next(c.parameters[parameter] for c in plans[tensor].contributions if c.model == models[model])

    assert values("model.layers.3.self_attn.q_proj.weight", "x", "weight") == 1.25
    assert values("model.layers.3.mlp.up_proj.weight", "x", "weight") == 0.5
    assert values("model.layers.2.self_attn.q_proj.weight", "x", "weight") == 0.5
    assert [values(t, "y", "density") for t in layout.final] == [0.125, 0.125]
    assert values("model.embed_tokens.weight", "y", "density") == 0.5


def test_shared_genes_have_no_model(layout, models):
    space = make(layout, models, "slerp")
    assert [gene.name for gene in space.genes] == [
        "t[embeddings]", "t[layers 0]", "t[layers 1]", "t[layers 2]", "t[layers 3]", "t[final]",
    ]  # fmt: skip
    plans = resolve(space.decode(np.linspace(0, 1, 6)), layout)
    assert (plans[0].parameters["t"], plans[-1].parameters["t"]) == (0.0, 1.0)
    assert plans[0].base.model == models["base"]


def test_shares_are_written_at_the_scale_of_the_start_and_stay_in_the_box(layout, models):
    space = make(layout, models, "linear")
    high = space.high[0]
    assert space._scaled_shares(np.array([0.2, 0.6]), np.array([0.5, 0.5]) * high) == pytest.approx(
        [high / 4, 0.75 * high]
    )
    assert space._scaled_shares(np.array([0.3, 0.1]), np.array([2.0, 2.0]) * high) == pytest.approx([high, high / 3])
    assert space._scaled_shares(np.zeros(2), np.array([0.5, 0.5])).tolist() == [0.5, 0.5]


def test_linear_weights_are_shares_of_every_model(layout, models):
    space = make(layout, models, "linear")
    assert space.genes[0].name == "base.weight[embeddings]"
    zeros = resolve(space.decode(space.low), layout)
    for plan in (*zeros, *resolve(space.decode(space.sample(np.random.default_rng(0))), layout)):
        assert plan.parameters["normalize"] is False
        assert sum(c.parameters["weight"] for c in plan.contributions) == pytest.approx(1, abs=1e-15)
    assert {c.parameters["weight"] for plan in zeros for c in plan.contributions} == {0.25}


@given(scale=st.floats(1e-3, 1.0), seed=seeds)
def test_linear_recipes_do_not_know_the_scale(spaces, scale, seed):
    space = spaces["linear", "all"]
    point = space.sample(np.random.default_rng(seed))
    shares = [
        [s.parameters[0][1][0].value for part in space.decode(p).slices for s in part.sources]
        for p in (point, point * scale)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=1e-11)


def test_recipe_carries_what_was_asked(layout, models):
    config = CoefficientConfig(method="dare_ties", fixed={"lambda": 0.8, "normalize": True, "density": 0.25})
    space = CoefficientSpace(config, models, layout, dtype="bfloat16", out_dtype="float16", seed=9)
    assert space.dimension == 3 * 6
    recipe = space.decode(space.start)
    assert (recipe.seed, recipe.dtype, recipe.out_dtype, recipe.base_model) == (
        9,
        "bfloat16",
        "float16",
        "/m/base",
    )
    plan = resolve(recipe, layout)[0]
    assert plan.parameters == {"lambda": 0.8, "normalize": True, "rescale": True}
    assert [c.parameters for c in plan.contributions] == [{"weight": 0.5, "density": 0.25}] * 3
    assert np.array_equal(space.encode(recipe), space.start)
    assert make(layout, models, "ties").decode(make(layout, models, "ties").start).seed is None


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (np.zeros(3), r"genotype: its shape is \(3,\); pass an array of shape \(18,\)"),
        (
            np.full(18, np.nan),
            r"genotype\[0\]: nan is outside ops.weight\[embeddings\]'s range; pass a number",
        ),
        (np.full(18, 1.6), r"genotype\[0\]: 1.6 is outside .* pass a number from -0.5 to 1.5"),
    ],
)
def test_points_outside_of_the_box(layout, models, point, message):
    with pytest.raises(RecipeError, match=message):
        make(layout, models).decode(point)


def test_dust_outside_of_the_box_is_put_inside(layout, models):
    space = make(layout, models)
    assert space.decode(space.high + 1e-12) == space.decode(space.high)


# --- encode of foreign recipes ---


def test_baselines_can_be_encoded(layout, models):
    space = make(layout, models)
    assert space.encode(task_arithmetic_recipe(models, layout)) == pytest.approx(np.full(18, 0.3))
    uniform = uniform_recipe(models, layout)
    linear = make(layout, models, "linear")
    decoded = resolve(linear.decode(linear.encode(uniform)), layout)
    assert [c.parameters["weight"] for c in decoded[0].contributions] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_a_group_takes_the_mean_of_shares_where_a_linear_recipe_divides_by_the_sum(layout, models):
    """Layer 0 is x alone, written as a weight of 8, and layer 1 is y alone: half of each, not 8 to 1."""
    weights = {"x": ([8.0, "layers.0."], [0.0, "*"]), "y": ([0.0, "layers.0."], [1.0, "*"])}
    recipe = mergekit_yaml.build(
        {
            "merge_method": "linear",
            "models": [
                {"model": models[name], "parameters": {"weight": [{"value": v, "filter": f} for v, f in conditions]}}
                for name, conditions in weights.items()
            ],
        }
    )
    space = make(layout, models, "linear", layers_per_group=2)
    point = dict(zip((gene.name for gene in space.genes), space.encode(recipe), strict=True))
    assert point["x.weight[layers 0-1]"] == pytest.approx(point["y.weight[layers 0-1]"])
    assert point["x.weight[layers 0-1]"] > 0 == point["ops.weight[layers 0-1]"]


def test_models_that_are_absent_have_weight_zero(layout, models):
    two = {name: models[name] for name in ("base", "x")}
    space = make(layout, models)
    point = dict(zip((g.name for g in space.genes), space.encode(task_arithmetic_recipe(two, layout)), strict=True))
    assert point["x.weight[layers 2]"] == 0.3
    assert point["ops.weight[layers 2]"] == 0.0


def test_finer_recipes_are_approximated_by_group_means(layout, models):
    fine = make(layout, models, layers_per_group=1)
    coarse = make(layout, models, layers_per_group=2)
    point = np.array(fine.start)
    point[[g.name for g in fine.genes].index("x.weight[layers 0]")] = 0.0
    point[[g.name for g in fine.genes].index("x.weight[layers 1]")] = 1.0
    point[[g.name for g in fine.genes].index("y.weight[final]")] = 1.5
    found = dict(zip((g.name for g in coarse.genes), coarse.encode(fine.decode(point)), strict=True))
    assert found["x.weight[layers 0-1]"] == pytest.approx(0.5)
    assert found["y.weight[final]"] == 1.5


def test_values_outside_of_the_box_go_to_its_boundary(layout, models):
    space = make(layout, models)
    assert np.array_equal(space.encode(task_arithmetic_recipe(models, layout, 3.0)), space.high)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "ties"}, "merge_method is ties, the space's task_arithmetic; give a recipe with"),
        ({"base_model": "/m/x"}, "the recipe's base is /m/x; write base_model: /m/base"),
        (
            {"parameters": {"lambda": 0.5}},
            "the recipe has lambda 0.5 at model.embed_tokens.weight, the space 1.0",
        ),
        (
            {"slices": [(0, 3)]},
            "another depth than the space's 4 layers; give one that keeps the number of layers",
        ),
        (
            {"slices": [(3, 4), (0, 3)]},
            "puts model.layers.3.* at model.layers.0.*; give one that keeps layers in",
        ),
        ({"model": "/m/z"}, "the recipe's model '/m/z' is not in the space; use only /m/base, /m/ops"),
    ],
)
def test_recipes_of_another_kind(layout, models, change, message):
    change = dict(change)
    model = change.pop("model", "/m/x")
    ranges = change.pop("slices", [(0, 4)])
    slices = [
        {
            "sources": [
                {"model": model, "layer_range": list(r), "parameters": {"weight": 1.0}},
                {"model": "/m/base", "layer_range": list(r), "parameters": {"weight": 1.0}},
            ]
        }
        for r in ranges
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": "/m/base", "slices": slices, **change}
    with pytest.raises(RecipeError, match=message):
        make(layout, models).encode(mergekit_yaml.build(recipe))


# --- variation operators ---


@given(data=st.data(), seed=seeds)
def test_operators_stay_in_the_box_and_leave_parents_alone(spaces, data, seed):
    space, (a, b) = data.draw(spaces_and_points(spaces, count=2))
    parents = a.copy(), b.copy()
    rng = np.random.default_rng(seed)
    for child in (space.sample(rng), space.crossover(a, b, rng), space.mutate(a, rng)):
        assert child.shape == (space.dimension,)
        assert child.dtype == np.float64
        assert np.all((child >= space.low) & (child <= space.high))
        assert not np.shares_memory(child, a)
        space.decode(child)
    assert np.array_equal(a, parents[0])
    assert np.array_equal(b, parents[1])


@given(seed=seeds)
def test_operators_are_decided_by_the_generator(spaces, seed):
    space = spaces["ties", PARTS]

    def family():
        rng = np.random.default_rng(seed)
        a, b = space.sample(rng), space.sample(rng)
        return np.concatenate([a, b, space.crossover(a, b, rng), space.mutate(a, rng)])

    assert np.array_equal(family(), family())


def test_mutation_always_moves_and_moves_little(layout, models):
    space, rng = make(layout, models), np.random.default_rng(0)
    steps = np.array([space.mutate(space.start, rng) - space.start for _ in range(300)])
    assert np.all(np.count_nonzero(steps, axis=1) >= 1)
    assert 1.5 < np.count_nonzero(steps, axis=1).mean() < 2.5  # one always, and each with probability 1/G
    moved = steps[steps != 0]
    assert np.abs(moved).mean() == pytest.approx(0.2 * np.sqrt(2 / np.pi), rel=0.15)  # half-normal, range 2


def test_crossover_of_equal_parents_is_the_parent(layout, models):
    space, rng = make(layout, models), np.random.default_rng(0)
    a = space.sample(rng)
    assert np.array_equal(space.crossover(a, a, rng), a)


def test_crossover_reaches_beyond_its_parents(layout, models):
    space, rng = make(layout, models), np.random.default_rng(0)
    a, b = np.zeros(18), np.ones(18)
    children = np.array([space.crossover(a, b, rng) for _ in range(200)])
    assert -0.5 <= children.min() < -0.4
    assert 1.4 < children.max() <= 1.5


def test_bounds_cannot_be_written(layout, models):
    space = make(layout, models)
    for array in (space.low, space.high, space.start):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


# --- config ---


def test_ranges_of_the_config_and_of_the_method(layout, models):
    config = {"weight": {"low": 0, "high": 2, "start": 0.25}, "density": {"low": 0.6, "high": 1}}
    space = make(layout, models, "ties", **config)
    weight, density = space.genes[:2]
    assert (weight.low, weight.high, weight.start) == (0.0, 2.0, 0.25)
    assert (density.low, density.high, density.start) == (0.6, 1.0, 0.8)  # the method's 0.5 is outside
    weight = make(layout, models).genes[0]
    assert (weight.low, weight.high, weight.start) == (-0.5, 1.5, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "task_aritmetic"}, "'task_aritmetic' is not a merge method; did you mean"),
        ({"method": "passthrough"}, "passthrough has no coefficients to search; use one of breadcrumbs, "),
        ({"density": {"low": 0.1, "high": 1}}, "density: task_arithmetic has no parameter 'density'; remove"),
        ({"t": {"low": 0.1, "high": 1}}, "t: task_arithmetic has no parameter 't'; remove it"),
        ({"fixed": {"int8_mask": True}}, "fixed: task_arithmetic has no parameter 'int8_mask'; remove it"),
        ({"fixed": {"lambda": True}}, "fixed.lambda: True does not fit; write a number such as 0.5"),
        ({"fixed": {"normalize": 0.5}}, "fixed.normalize: 0.5 does not fit; write true or false"),
        ({"fixed": {"lambda": "much"}}, "lambda: 'much' does not fit; write a number, or true or false"),
        ({"fixed": {"lambda": float("nan")}}, "lambda: nan is not finite; write a number such as 0.5"),
        ({"fixed": {"weight": 1.0}, "weight": {"low": 0, "high": 1}}, "weight is both searched and fixed;"),
        ({"method": "linear", "fixed": {"normalize": True}}, "linear weights are searched and divided by"),
        ({"method": "linear", "weight": {"low": -1, "high": 1}}, "divided by their sum and begin at zero;"),
        ({"method": "ties", "density": {"low": 0, "high": 1}}, "density: it is a fraction; write numbers"),
        ({"method": "ties", "fixed": {"density": 2.0}}, "density: it is a fraction; write numbers above 0"),
        ({"method": "slerp", "t": {"low": 0, "high": 2}}, "t: it is a position between two models; write"),
        ({"modules": ["attention", "mlp"]}, "leaves out the rest of a layer; add other"),
        ({"modules": ["other", "other"]}, "names other twice; name each module once"),
        ({"modules": ["atention"]}, "atention"),
        ({"layers_per_group": 0}, "greater than or equal to 1"),
        ({"layer_per_group": 2}, "Extra inputs are not permitted"),
        ({"weight": {"low": 1, "high": 1}}, "low 1.0 is not below high 1.0; write low < high"),
        ({"weight": {"low": 0, "high": 1, "start": 2}}, "start 2.0 is not in"),
        ({"weight": {"low": 0, "high": float("inf")}}, "finite"),
    ],
)  # fmt: skip
def test_what_no_config_says(config, message):
    with pytest.raises(ValidationError, match=message):
        CoefficientConfig(**config)


def test_configs_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        CoefficientConfig().method = "ties"
    with pytest.raises(ValidationError, match="frozen"):
        Range(low=0, high=1).low = 3
    assert CoefficientConfig(fixed={"lambda": 1}).fixed == {"lambda": 1.0}
    assert CoefficientConfig(fixed={"lambda": "1e-3"}).fixed == {"lambda": 0.001}  # as YAML reads 1e-3


@pytest.mark.parametrize(
    ("config", "count", "message"),
    [
        ({"method": "ties"}, 1, "models: ties needs a base and at least 1 more; add models"),
        ({"method": "slerp"}, 3, "models: slerp takes 1 beside the base, not 2; remove models"),
        (
            {"method": "slerp", "fixed": {"t": 0.5}},
            2,
            "space.fixed: nothing of slerp is left to search; remove an entry",
        ),
    ],
)
def test_models_that_do_not_fit(layout, models, config, count, message):
    some = dict(list(models.items())[:count])
    with pytest.raises(RecipeError, match=message):
        CoefficientSpace(CoefficientConfig(**config), some, layout)


def test_two_names_for_one_model(layout):
    with pytest.raises(RecipeError, match="models: two names stand for '/m/a'; keep one"):
        CoefficientSpace(CoefficientConfig(), {"base": "/m/b", "a": "/m/a", "c": "/m/a"}, layout)


def test_passthrough_source_is_no_point_of_the_space(layout, models):
    with pytest.raises(RecipeError, match="merge_method is passthrough"):
        make(layout, models).encode(source_recipe("/m/x", layout))


# --- every method ---


def test_all_methods_with_a_coefficient_can_be_searched(layout, models):
    without = ("passthrough", "model_stock", "ram", "arcee_fusion")
    for name in set(METHOD_TABLE) - set(without):
        space = make(layout, models, name)
        recipe = space.decode((space.low + space.high) / 2)
        assert resolve(recipe, layout)
        assert np.array_equal(space.encode(recipe), (space.low + space.high) / 2) or name == "linear"
    for name in without:
        with pytest.raises(ValidationError, match=f"{name} has no coefficients to search; use one of breadcrumbs, "):
            CoefficientConfig(method=name)


def test_what_is_searched_by_default(layout, models):
    searched = {
        name: {p.name for p in CoefficientConfig(method=name).searched()}
        for name in ("ties", "breadcrumbs", "sce", "metagpt", "widen", "nuslerp")
    }
    assert searched == {
        "ties": {"weight", "density"},
        "breadcrumbs": {"weight", "density"},
        "sce": {"select_topk"},
        "metagpt": {"lambda"},
        "widen": {"ratio", "factor"},
        "nuslerp": {"weight"},
    }


def test_optional_base_is_the_first_model(layout, models):
    space = make(layout, models, "nuslerp")
    plan = resolve(space.decode(space.start), layout)[0]
    assert plan.base.model == models["base"]
    assert [c.model for c in plan.contributions] == [models["ops"], models["x"]]


def test_ranges_add_parameters(layout, models):
    config = {"gamma": {"low": 0.0, "high": 0.1}, "lambda": {"low": 0.5, "high": 1.5, "start": 0.75}}
    space = make(layout, models, "breadcrumbs", ranges=config)
    names = [gene.name for gene in space.genes[:10]]
    assert names[:3] == ["ops.weight[embeddings]", "ops.density[embeddings]", "ops.gamma[embeddings]"]
    assert names[9] == "lambda[embeddings]"
    assert (space.low[9], space.high[9], space.start[9]) == (0.5, 1.5, 0.75)
    point = space.sample(np.random.default_rng(0))
    assert np.array_equal(space.encode(space.decode(point)), point)
    plan = resolve(space.decode(point), layout)[0]
    assert plan.contributions[0].parameters["gamma"] == point[2]
    assert plan.parameters["lambda"] == point[9]


@pytest.mark.parametrize(
    ("ranges", "fixed", "message"),
    [
        ({"weight": {"low": 0, "high": 1}}, {}, r"ranges.weight: it has its own key; write weight: \{low"),
        ({"gama": {"low": 0, "high": 1}}, {}, r"ranges.gama: breadcrumbs has no parameter 'gama'"),
        ({"rescale": {"low": 0, "high": 1}}, {}, r"ranges.rescale: it cannot be searched; use .*gamma"),
        ({"gamma": {"low": 0, "high": 1}}, {"gamma": 0.5}, "gamma is both searched and fixed; remove one"),
    ],
)
def test_ranges_are_checked(ranges, fixed, message):
    with pytest.raises(ValidationError, match=message):
        CoefficientConfig(method="breadcrumbs", ranges=ranges, fixed=fixed)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"fixed": {"epsilon": 0.3}},
        {"groups": [["embeddings", 0, 1], [2], [3, "final"]], "smooth": True},
        {"modules": PARTS, "ranges": {"epsilon": Range(low=0.1, high=0.6, start=0.3)}},
    ],
)
def test_no_recipe_has_a_spread_that_mergekit_refuses(layout, models, config):
    """Whether epsilon is a gene, fixed, or beside densities between knots."""
    space = make(layout, models, "della", **config)
    rng = np.random.default_rng(0)
    epsilons = set()
    for _ in range(10):
        point = np.where(rng.random(space.dimension) < 0.3, space.high, space.sample(rng))
        recipe = space.decode(point)
        check_spreads(resolve(recipe, layout))
        if not config:
            assert np.array_equal(space.encode(recipe), point)
        epsilons |= {part.parameters["epsilon"] for plan in resolve(recipe, layout) for part in plan.contributions}
    assert len(epsilons) > 1
