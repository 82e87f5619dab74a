from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe, uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mixture_table import Mixture
from search_spaces.recipes.resolve import difference, resolve
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.mixture import MixtureConfig
from search_spaces.spaces.wrappers import FoundedSpace


@pytest.fixture
def make(context):
    return lambda **config: MixtureConfig(kind="mixture", **config).build(context)


def flat(space, recipe, vectors, chromosome):
    """Return the merged weights of a chromosome in the order of its chunks, without noise."""
    plans = {plan.name: plan for plan in resolve(recipe, space.context.layout)}
    names = {reference: name for name, reference in space.models.items()}
    merged = {}
    for name, plan in plans.items():
        merged[name] = np.zeros(space.context.sizes[name])
        start = 0
        for piece in plan.pieces:
            for part, weight in zip(plan.contributions, piece.weights, strict=True):
                span = slice(start, piece.end)
                merged[name][span] += weight * vectors[names[part.model]][name][span]
            start = piece.end
    chunks = (
        space.chunking.chunks
        if chromosome is None
        else [space.chunking.chunks[i] for i in space.chunking.chromosomes[chromosome]]
    )
    return np.concatenate([merged[name][start:end] for chunk in chunks for name, start, end in chunk])


def slerp(a, b, t):
    omega = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    if np.sin(omega) <= 1e-6:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def drawn(space, seed):
    """Return the ratio and the split point of each chromosome that a crossover draws."""
    rng = np.random.default_rng(seed)
    return [(rng.random(), int(rng.integers(len(members)))) for members in space.chunking.chromosomes]


@pytest.mark.parametrize("crossover", ["slerp", "slerp_per_segment", "linear"])
@pytest.mark.parametrize("chromosomes", [(), ("attention",)])
def test_children_have_the_weights_that_interpolation_of_the_weights_gives(make, vectors, crossover, chromosomes):
    """Interpolating tables equals interpolating merged models, over three generations."""
    space = make(crossover=crossover, chromosomes=chromosomes, chunks=11, weight={"low": -3, "high": 3})
    base, a, b, c = space.initial_population()
    for seed in range(3):
        child = space.crossover(a, b, np.random.default_rng(seed))
        for index, (ratio, split) in enumerate(drawn(space, seed)):
            x, y, found = (flat(space, space.decode(point), vectors, index) for point in (a, b, child))
            entries = space.chunking.entries[space.chunking.chromosomes[index]]
            cut = int(entries[:split].sum())
            if crossover == "slerp":
                # one angle of the whole vectors, as in the authors' code
                expected = np.concatenate([slerp(x, y, ratio)[:cut], slerp(x, y, 1 - ratio)[cut:]])
            elif crossover == "slerp_per_segment":
                parts = [
                    slerp(x[s], y[s], t) for s, t in ((slice(cut), ratio), (slice(cut, None), 1 - ratio)) if x[s].size
                ]
                expected = np.concatenate(parts)
            else:
                t = np.where(np.arange(x.size) < cut, ratio, 1 - ratio)
                expected = (1 - t) * x + t * y
            np.testing.assert_allclose(found, expected, atol=1e-12)
        a, b = child, (c, base)[seed % 2]


def test_parallel_parents_are_mixed_linearly(make):
    space = make(chunks=3, weight={"low": 0, "high": 4})
    a = space.initial_population()[1]
    child = space.crossover(a, 2 * a, np.random.default_rng(0))
    ratio, _ = drawn(space, 0)[0]
    assert set(np.round(space.weights(child)[:, 1], 9)) <= {round(1 + ratio, 9), round(2 - ratio, 9)}


def test_without_split_one_ratio_holds_everywhere(make):
    space = make(split=False, crossover="linear")
    a, b = space.initial_population()[1:3]
    weights = space.weights(space.crossover(a, b, np.random.default_rng(1)))
    assert (weights == weights[0]).all()
    assert weights[0].sum() == pytest.approx(1)


def test_split_points_fall_within_tensors(make):
    space = make(chunks=40)
    cut = [name for name, pieces in space.chunking.tensors if len(pieces) > 1]
    assert cut
    obstacles = mergekit_export.obstacles(space.decode(space.sample(np.random.default_rng(0))))
    assert "mergekit has one per tensor" in obstacles[0]


def test_chunks_cover_every_entry_once(make, context):
    for config in (
        {"chunks": 7},
        {"chunks": 200, "chromosomes": ("mlp",)},
        {"chunks": "tensors"},
        {"chunks": "layers"},
    ):
        seen = {name: np.zeros(size) for name, size in context.sizes.items()}
        for chunk in make(**config).chunking.chunks:
            for name, start, end in chunk:
                seen[name][start:end] += 1
        assert all((count == 1).all() for count in seen.values())


def test_founders_are_the_sources(make, models, layout):
    for weights in ("direct", "simplex", "signed"):
        space = make(weights=weights)
        for founder, reference in zip(space.initial_population(), models.values(), strict=True):
            source = source_recipe(reference, layout)
            assert space.decode(founder) == space.decode(space.encode(source))
            rows = space.weights(founder)
            assert (rows.max(axis=1) == 1).all()


def test_known_merges_are_points(make, models, layout):
    space = make(weights="signed")
    arithmetic = space.weights(space.encode(task_arithmetic_recipe(models, layout, 0.3)))
    np.testing.assert_allclose(arithmetic, np.tile([0.1, 0.3, 0.3, 0.3], (len(arithmetic), 1)))
    uniform = space.weights(space.encode(uniform_recipe(models, layout)))
    np.testing.assert_allclose(uniform, np.tile([0, 1 / 3, 1 / 3, 1 / 3], (len(uniform), 1)), atol=1e-12)


def test_noise_is_added_and_the_weakest_gives_way(make):
    space = make(noise={"terms": 2, "sigma": 0.5}, chunks=4, crossover="linear", split=False)
    rng = np.random.default_rng(3)
    one = space.mutate(space.initial_population()[0], rng)
    (seed,) = space.decode(one).mixture.noises
    two = space.mutate(one, rng)
    assert len(space.decode(two).mixture.noises) == 2
    faded = space.crossover(two, space.initial_population()[1], rng)
    three = space.decode(space.mutate(faded, rng)).mixture
    assert len(three.noises) == 2
    assert seed in space.decode(one).mixture.noises
    assert np.array_equal(space.weights(one), space.weights(space.initial_population()[0]))


def test_shared_noise_counts_for_the_angle(make):
    """Two mutants of zero weights with one noise in common are parallel: their children keep its deviation."""
    space = make(noise={"terms": 1, "sigma": 1.0}, chunks=2)
    nothing = np.zeros(space.dimension)
    noisy = space.mutate(nothing, np.random.default_rng(0))
    weaker = noisy.copy()
    weaker[4], weaker[9] = 0.5, 0.5
    child = space.decode(space.crossover(noisy, weaker, np.random.default_rng(1))).mixture
    assert all(0.5 <= row[-1] <= 1 for row in child.rows)


def test_angles_need_weights(context, models, layout):
    blind = SpaceContext(models, layout, context.sizes)
    space = MixtureConfig(kind="mixture").build(blind)
    a, b = space.initial_population()[:2]
    with pytest.raises(RecipeError, match="write crossover: linear"):
        space.crossover(a, b, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": "simplex", "crossover": "slerp"}, "write crossover: linear"),
        ({"chunks": 0}, "chunks: 0 is outside 1 to 4096"),
        ({"chromosomes": ("mlp", "mlp")}, "name each once"),
        ({"weights": "simplex", "weight": {"low": -1, "high": 1}}, "write low: 0"),
        ({"weight": {"low": 1, "high": 1}}, "write low < high"),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ValidationError, match=message):
        MixtureConfig(kind="mixture", **config)


# --- recipes with a table ---

TABLE = Mixture(((0.5, 0.5), (1.0, 0.0)), (("a", ((4, 0), (9, 1))), ("b", ((3, 1),))))


def recipe(**changes):
    data = {
        "merge_method": "linear",
        "base_model": "m/a",
        "slices": [{"sources": [{"model": name, "layer_range": [0, 1]} for name in ("m/a", "m/b")]}],
        "evomerge": {"mixture": {"rows": [[0.5, 0.5]], "tensors": {"a": [[4, 0]]}}},
    }
    return data | changes


def test_spellings_of_one_table_are_equal():
    other = Mixture(
        ((9.0, 9.0, 0.0), (1.0, -0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.5, 0.0)),
        (("a", ((2, 2), (4, 3), (9, 1))), ("b", ((3, 1),))),
        noises=(7,),
    )
    assert other.canonical() == TABLE.canonical()
    assert TABLE.canonical() == TABLE


def test_equal_noises_are_one():
    twice = Mixture(((1.0, 0.25, 0.25),), (("a", ((4, 0),)),), (3, 3))
    once = Mixture(((1.0, 0.5),), (("a", ((4, 0),)),), (3,))
    assert twice.canonical() == once


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"rows": [[1.0]], "tensors": {"a": [[4, 0]]}}, "1 weights for 2 sources; write one per source"),
        ({"rows": [[1.0, "x"]], "tensors": {}}, "rows: contains something that is not a number"),
        ({"rows": [[1.0, 0.0]], "tensors": {"a": [[4, 1]]}}, "there is no row 1; name one of 0 to 0"),
        ({"rows": [[1.0, 0.0]], "tensors": {"a": [[4, 0], [4, 0]]}}, "ends at 4, not after 4; sort the pieces"),
        ({"rows": [[1.0, 0.0], [1.0]], "tensors": {"a": [[4, 0]]}}, "they have different lengths"),
        ({"rows": [[1.0, float("nan")]], "tensors": {"a": [[4, 0]]}}, "not finite"),
        ({"rows": [[1.0, 0.0]], "tensors": {"a": [[4]]}}, "tensors.a: is not a list of pieces"),
        ({"rows": [[1.0, 0.0, 0.1]], "tensors": {"a": [[4, 0]]}, "noises": [-1]}, "a seed is out of range"),
        ({"rows": [[1.0, 0.0]]}, "is not a table of weights"),
    ],
)
def test_wrong_tables(mixture, message):
    with pytest.raises(RecipeError, match=message) as caught:
        mergekit_yaml.build(recipe(evomerge={"mixture": mixture}))
    assert str(caught.value).startswith("recipe: evomerge.mixture")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "task_arithmetic", "parameters": {"weight": 1}}, "write merge_method: linear"),
        ({"parameters": {"weight": 1}}, "remove all parameters"),
        ({"base_model": "m/c"}, "the base is not among the sources"),
        (
            {"slices": [{"sources": [{"model": n, "layer_range": [1, 2]} for n in ("m/a", "m/b")]}]},
            "one slice from layer 0",
        ),
    ],
)
def test_tables_in_the_wrong_recipe(changes, message):
    with pytest.raises(RecipeError, match=message):
        mergekit_yaml.build(recipe(**changes))


def test_rounding_takes_the_mean_of_each_tensor(make, layout):
    space = make(chunks=40, noise={"terms": 1, "sigma": 0.1})
    found = space.decode(space.mutate(space.sample(np.random.default_rng(5)), np.random.default_rng(6)))
    rounded, notes = mergekit_export.rounded(found)
    assert len(notes) == 2
    assert mergekit_export.obstacles(rounded) == ()
    pieces = dict(found.mixture.pieces())
    for plan in resolve(rounded, layout):
        ends = [0, *(piece.end for piece in pieces[plan.name])]
        sizes = np.diff(ends) / ends[-1]
        expected = sizes @ np.array([piece.weights for piece in pieces[plan.name]])
        weights = [part.parameters["weight"] for part in plan.contributions]
        np.testing.assert_allclose(weights, expected)
        assert plan.parameters["normalize"] is False


@pytest.mark.parametrize("parts", [2, 1])
def test_a_table_is_for_whole_models(make, parts):
    recipe = make(chunks=3).decode(make(chunks=3).start)
    (part,) = recipe.slices
    later = replace(part, sources=tuple(replace(source, layer_range=(1, 4)) for source in part.sources))
    with pytest.raises(RecipeError, match="it is for whole models; write one slice from layer 0"):
        replace(recipe, slices=(part, part) if parts == 2 else (later,))


# --- relative to the base ---


def task_vectors(vectors):
    base = vectors["base"]
    moved = {name: {t: v - base[t] for t, v in own.items()} for name, own in vectors.items() if name != "base"}
    return {"base": {t: np.zeros_like(v) for t, v in base.items()}, **moved}


@pytest.mark.parametrize("crossover", ["slerp", "slerp_per_segment"])
def test_children_relative_to_the_base_turn_task_vectors(make, vectors, crossover):
    """The child's task vector is the interpolation of its parents' task vectors, by the angle between these."""
    space = make(relative_to="base", crossover=crossover, chunks=11, weight={"low": -3, "high": 3}, split=False)
    _, a, b, _, average, _ = space.initial_population()
    deltas = task_vectors(vectors)
    for x, y in ((a, b), (a, average)):
        child = space.crossover(x, y, np.random.default_rng(5))
        ratio = drawn(make(split=False, chunks=11), 5)[0][0]
        left, right, found = (flat(space, space.decode(point), deltas, None) for point in (x, y, child))
        np.testing.assert_allclose(found, slerp(left, right, ratio), atol=1e-12)


def test_founders_relative_to_the_base(make, models):
    space = make(relative_to="base", chunks=3)
    rows = [space.weights(point)[0].tolist() for point in space.initial_population()]
    third = 1 / 3
    single = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert rows == [*single, [pytest.approx(0), third, third, third], [-2, 1, 1, 1]]
    assert space.weights(space.start)[0].tolist() == pytest.approx([0, third, third, third])
    assert [gene.name for gene in space.genes[:3]] == ["ops[0]", "x[0]", "y[0]"]


def test_weights_of_task_vectors_add_up_to_more_than_one(make, layout, models):
    """Task arithmetic at full strength is a point of the space, exactly."""
    space = make(relative_to="base", chunks="layers")
    strong = mergekit_yaml.parse(
        "merge_method: task_arithmetic\nbase_model: /m/base\nmodels:\n"
        + "".join(f"  - {{model: {model}, parameters: {{weight: 0.9}}}}\n" for model in list(models.values())[1:])
    )
    assert space.weights(space.encode(strong))[0].tolist() == pytest.approx([-1.7, 0.9, 0.9, 0.9])
    assert difference(strong, space.decode(space.encode(strong)), layout) is None


def test_shares_are_not_weights_of_task_vectors():
    with pytest.raises(ValidationError, match="simplex weights are not factors of task vectors; write weights: direct"):
        MixtureConfig(relative_to="base", weights="simplex")


@pytest.mark.parametrize("relative_to", ["base", None])
def test_similarity_is_the_cosine_of_task_vectors(make, vectors, relative_to):
    """Also where genes weigh whole models, and in a space around it; the base has no task vector."""
    space = make(relative_to=relative_to, chunks=7, weight={"low": -3, "high": 3})
    base, a, b = space.initial_population()[:3]
    mixed = (a + b) / 2
    deltas = task_vectors(vectors)
    for x, y in ((a, b), (a, mixed), (b, b)):
        left, right = (flat(space, space.decode(point), deltas, None) for point in (x, y))
        expected = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
        assert space.similarity(x, y) == pytest.approx(expected, abs=1e-12)
    assert space.similarity(base, a) == 0.0
    assert FoundedSpace(space, [a]).similarity(a, mixed) == space.similarity(a, mixed)
    blind = MixtureConfig(kind="mixture", chunks=7).build(replace(space.context, gram=None))
    first, second = (point for point in blind.initial_population()[1:3])
    assert blind.similarity(first, second) == 0.0 and blind.similarity(first, first) == pytest.approx(1.0)
