import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.layer_coefficients import CoefficientConfig, metagpt_weights
from search_spaces.spaces.method_choice import MethodChoiceSpace
from search_spaces.spaces.registry import build_space

METHODS = ("task_arithmetic", "ties", "dare_ties", "slerp", "breadcrumbs")
PAIRS = ("slerp(ops, x)", "slerp(ops, y)", "slerp(x, y)")


def make(layout, models, methods=METHODS, **config):
    return MethodChoiceSpace(CoefficientConfig(method=methods, **config), models, layout, seed=5)


@pytest.fixture(scope="module")
def space(layout, models):
    return make(layout, models, layers_per_group=2)


def chosen(space, option, point=None):
    """Return the start, or `point`, with another method."""
    point = np.array(space.start if point is None else point)
    point[0] = space.genes[0].coordinate(option)
    return point


def test_one_gene_for_the_method_and_shared_genes_for_the_rest(space):
    method, *rest = space.genes
    assert isinstance(method, Choice)
    assert method.options == ("task_arithmetic", "ties", "dare_ties", *PAIRS, "breadcrumbs")
    assert method.prior == pytest.approx((0.2, 0.2, 0.2, 0.2 / 3, 0.2 / 3, 0.2 / 3, 0.2))
    groups = ("embeddings", "layers 0-1", "layers 2-3", "final")
    expected = {f"{m}.{p}[{g}]" for g in groups for m in ("ops", "x", "y") for p in ("weight", "density")}
    assert {gene.name for gene in rest} == expected | {f"slerp.t[{g}]" for g in groups}
    weight = next(gene for gene in rest if gene.name == "x.weight[final]")
    assert (weight.low, weight.high) == (-0.5, 1.5)  # the widest: that of ties begins at 0


@given(data=st.data())
def test_inactive_genes_do_not_matter_and_active_ones_do(space, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    a, b = space.sample(np.random.default_rng(seed)), space.sample(np.random.default_rng(seed + 1))
    active = space.active(a)
    assert space.decode(np.where(active, a, b)).hash == space.decode(a).hash
    index = data.draw(st.sampled_from(np.flatnonzero(active).tolist()))
    gene = space.genes[index]
    moved = np.array(a)
    moved[index] = gene.another(a[index], np.random.default_rng(0)) if index == 0 else gene.low + 0.99 * (
        gene.high - gene.low
    )  # fmt: skip
    assert space.decode(moved).hash != space.decode(a).hash


@given(seed=st.integers(0, 2**32 - 1))
def test_encode_inverts_decode(space, seed):
    point = space.sample(np.random.default_rng(seed))
    recipe = space.decode(point)
    again = space.encode(mergekit_yaml.parse(mergekit_yaml.dump(recipe)))
    assert space.decode(again).hash == recipe.hash
    assert space.genes[0].value(again[0]) == space.genes[0].value(point[0])


def test_recipes_are_those_of_the_single_methods(space, layout, models):
    point = space.sample(np.random.default_rng(3))
    for method in ("task_arithmetic", "ties", "dare_ties", "breadcrumbs"):
        single = CoefficientSpace(CoefficientConfig(method=method, layers_per_group=2), models, layout, seed=5)
        values = dict(zip((gene.name for gene in space.genes), point, strict=True))
        same = np.clip([values[gene.name] for gene in single.genes], single.low, single.high)
        assert space.decode(chosen(space, method, point)).hash == single.decode(same).hash


def test_slerp_goes_from_one_expert_to_another(space, layout, models):
    plan = resolve(space.decode(chosen(space, "slerp(x, y)")), layout)[0]
    assert (plan.base.model, [c.model for c in plan.contributions]) == (models["x"], [models["y"]])
    assert space.active(chosen(space, "slerp(x, y)")).sum() == 1 + 4


def test_slerp_with_a_single_expert_starts_at_the_base(layout, models):
    two = {name: models[name] for name in ("base", "x")}
    space = make(layout, two, ("linear", "slerp"))
    assert space.genes[0].options == ("linear", "slerp")
    assert resolve(space.decode(chosen(space, "slerp")), layout)[0].base.model == models["base"]
    assert "linear.x.weight[final]" in [gene.name for gene in space.genes]  # a share, no factor of a task vector


def test_parameters_of_some_methods_only(layout, models):
    space = make(
        layout,
        models,
        ("ties", "breadcrumbs"),
        ranges={"gamma": {"low": 0.0, "high": 0.1}},
        fixed={"lambda": 0.8},
        method_prior={"ties": 0.25, "breadcrumbs": 0.75},
    )
    assert space.genes[0].prior == (0.25, 0.75)
    gammas = np.array([".gamma[" in gene.name for gene in space.genes])
    assert gammas.sum() == 3 * 6
    assert not space.active(chosen(space, "ties"))[gammas].any()
    assert space.active(chosen(space, "breadcrumbs"))[gammas].all()
    for method in ("ties", "breadcrumbs"):
        assert resolve(space.decode(chosen(space, method)), layout)[0].parameters["lambda"] == 0.8


def test_structures_cover_every_method(space):
    recipes = space.structures()
    assert [recipe.merge_method for recipe in recipes] == [*METHODS[:3], "slerp", "slerp", "slerp", "breadcrumbs"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": ["ties", "tie"]}, "'tie' is not a merge method; did you mean 'ties'"),
        ({"method": ["ties", "ties"]}, "ties is in the list twice; name each method once"),
        ({"method": []}, "the list is empty; name one method, or several"),
        ({"method": ["ties", "passthrough"]}, "passthrough has no coefficients to search; use one of"),
        ({"method": ["ties", "slerp"], "ranges": {"gamma": {"low": 0, "high": 1}}}, "gamma: none of ties, slerp has"),
        ({"method": ["ties", "slerp"], "t": {"low": 0, "high": 2}}, "slerp: t: it is a position between two"),
        (
            {"method": ["ties", "slerp"], "method_prior": {"sler": 1.0}},
            "'sler' is not one of the methods; did you mean",
        ),
        ({"method": ["ties", "slerp"], "method_prior": {"slerp": 0.5}}, "probabilities sum to 0.5; write ones that"),
        ({"method": ["ties", "slerp"], "method_prior": {"slerp": 2.0, "ties": -1.0}}, "a probability is negative"),
        ({"method": "ties", "method_prior": {"ties": 1.0}}, "method_prior: there is one method; write a list"),
    ],
)
def test_what_no_config_says(config, message):
    with pytest.raises(ValidationError, match=message):
        CoefficientConfig(**config)


def test_one_method_in_a_list_is_that_method():
    assert CoefficientConfig(method=["ties"]).method == "ties"


def test_a_bound_left_out_is_the_widest_of_the_methods():
    config = CoefficientConfig(method=["ties", "task_arithmetic"], weight={"high": 2.0})
    assert (config.weight.low, config.weight.high) == (-0.5, 2.0)


def test_recipes_of_no_variant(space, layout, models):
    with pytest.raises(RecipeError, match=r"merge_method is linear, the space's are task_arithmetic, ties, .*give a"):
        space.encode(uniform_recipe(models, layout))
    foreign = {"merge_method": "slerp", "base_model": "/m/x", "models": [{"model": "/m/z"}], "parameters": {"t": 0.5}}
    with pytest.raises(RecipeError, match="the recipe's model '/m/z' is not in the space"):
        space.encode(mergekit_yaml.build(foreign))


# --- starts and what is held ---


def build(layout, models, **config):
    norms = {"ops": 1.0, "x": 3.0, "y": 4.0}
    context = SpaceContext(models, layout, {}, seed=5, squared_norms=lambda: norms)
    return build_space(CoefficientConfig(**config), context)


def starts(space, parameter="weight"):
    return {gene.name: gene.start for gene in space.genes if f".{parameter}[" in gene.name}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", ["slerp", "ties", "task_arithmetic"]])
@pytest.mark.parametrize(
    ("start", "expected"),
    [("uniform", [1 / 3] * 3), ("task_arithmetic", [0.3] * 3), ("metagpt", [0.125, 0.375, 0.5])],
)
def test_starts_by_name(layout, models, method, start, expected):
    space = build(layout, models, method=method, start=start, layers_per_group=4)
    weights = starts(space)
    for name, weight in zip(("ops", "x", "y"), expected, strict=True):
        assert [weights[f"{name}.weight[{group}]"] for group in ("embeddings", "layers 0-3", "final")] == [weight] * 3
    assert set(starts(space, "density").values()) <= {0.5}
    assert np.array_equal(space.start, [gene.start for gene in space.genes])
    if isinstance(method, list):
        assert space.decode(space.start).merge_method == "task_arithmetic"


def test_the_base_has_what_the_experts_leave_of_a_linear_merge(layout, models):
    space = build(layout, models, method="linear", start="task_arithmetic")
    plan = resolve(space.decode(space.start), layout)[0]
    assert [c.parameters["weight"] for c in plan.contributions] == pytest.approx([0.1, 0.3, 0.3, 0.3])


def test_metagpt_weights_of_equal_models():
    assert metagpt_weights({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_a_recipe_as_the_start(layout, models, tmp_path):
    space = make(layout, models)
    point = chosen(space, "dare_ties", space.sample(np.random.default_rng(1)))
    file = tmp_path / "best.yaml"
    file.write_text(mergekit_yaml.dump(space.decode(point)))
    begun = build(layout, models, method=METHODS, start=str(file))
    assert begun.decode(begun.start).hash == space.decode(point).hash


def test_samples_lie_around_the_start(layout, models):
    space = build(layout, models, start="metagpt", weight={"low": 0.0, "high": 1.0, "std": 0.02})
    rng = np.random.default_rng(0)
    drawn = np.array([space.sample(rng) for _ in range(50)])
    assert np.abs(drawn.mean(axis=0) - space.start).max() < 0.02


def test_held_genes_are_no_genes(layout, models):
    held = {"ops.weight[embeddings]": 0.0, "*[final]": 0.25, "lambda": 0.5}
    space = build(layout, models, fixed=held)
    assert space.dimension == 18 - 4
    assert not [gene.name for gene in space.genes if "final" in gene.name]
    recipe = space.decode(space.high)
    plans = {plan.name: plan for plan in resolve(recipe, layout)}
    assert [c.parameters["weight"] for c in plans["lm_head.weight"].contributions] == [0.25] * 3
    assert [c.parameters["weight"] for c in plans["model.embed_tokens.weight"].contributions] == [0.0, 1.5, 1.5]
    assert plans["lm_head.weight"].parameters["lambda"] == 0.5
    assert np.array_equal(space.encode(recipe), space.high)


def test_held_genes_of_several_methods(layout, models):
    space = build(layout, models, method=METHODS, fixed={"*.density[*": 1.0})
    assert not starts(space, "density")
    assert space.active(space.start).shape == (space.dimension,)
    assert len(space.structures()) == 7
    for option in space.genes[0].options:
        space.decode(chosen(space, option))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"start": "metagtp"},
            "space.start: there is no file metagtp; write one, or uniform, task_ar",
        ),
        ({"method": "sce", "start": "uniform"}, "space.start: no weight of sce is searched; give a recipe's file"),
        ({"method": ["sce", "widen"], "start": "uniform"}, "space.start: no weight is searched; give a recipe's file"),
        ({"fixed": {"z.weight[final]": 1}}, r"no gene is called 'z.weight\[final\]'; write a name such as ops.weight"),
        ({"fixed": {"x.weight[final]": 9}}, r"9.0 is not in x.weight\[final\]'s range; write one from -0.5 to 1.5"),
        ({"fixed": {"*": 1}}, "space.fixed: every gene has a fixed value; remove an entry"),
    ],
)
def test_starts_and_values_that_do_not_fit(layout, models, config, message):
    with pytest.raises(RecipeError, match=message):
        build(layout, models, **config)


def test_metagpt_needs_the_weights(layout, models):
    with pytest.raises(RecipeError, match="metagpt needs the models' weights; write uniform or task_arithmetic"):
        build_space(CoefficientConfig(start="metagpt"), SpaceContext(models, layout, {}))


def test_starts_that_are_no_recipe(layout, models, tmp_path):
    file = tmp_path / "best.yaml"
    file.write_text("merge_method: tie")
    with pytest.raises(RecipeError, match=r"space.start: .*best.yaml: .*did you mean 'ties'"):
        build(layout, models, start=str(file))
