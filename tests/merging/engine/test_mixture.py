"""Recipes with a table of weights, and the Gram matrices behind them, on real models."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.files.cache import cache_folder
from evomerge.merging.engine.gram import gram_matrices, inner_products
from evomerge.merging.methods.noise import NoiseStream
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mixture_table import Noise, Piece
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.mixture import MixtureConfig


@pytest.fixture
def space(llama):
    first = llama.checkpoints[llama.base]
    sizes = {name: int(np.prod(first.shape(name))) for name in first.layout.tensors()}
    context = SpaceContext(
        {f"m{index}": reference for index, reference in enumerate(llama.references)},
        first.layout,
        sizes,
        out_dtype="float32",
        gram=lambda chunks: inner_products(llama.checkpoints, chunks),
    )
    return MixtureConfig(kind="mixture", chunks=23, noise={"terms": 2, "sigma": 0.1}).build(context)


def merged(engine, recipe):
    return {name: value.data.clone() for name, value in engine.apply(recipe).named_parameters()}


def test_the_engine_adds_up_piece_by_piece(space, llama):
    recipe = space.decode(space.sample(np.random.default_rng(0)))
    assert len(recipe.mixture.noises) == 2
    found = merged(llama.engine(), recipe)
    sources = [llama.tensors(index) for index in range(3)]
    for name, pieces in recipe.mixture.pieces():
        values = found[name].view(-1)
        noises = {seed: noise_of(seed, name, len(values)) for seed in recipe.mixture.noises}
        start = 0
        for piece in pieces:
            span = slice(start, piece.end)
            expected = torch.zeros(piece.end - start)
            for weight, tensors in zip(piece.weights, sources, strict=True):
                expected += weight * tensors[name].float().view(-1)[span]
            for noise in piece.noises:
                expected += noise.deviation * noises[noise.seed][span]
            torch.testing.assert_close(values[span], expected, rtol=1e-5, atol=1e-6)
            start = piece.end
        assert start == len(values)


def noise_of(seed, name, size):
    """Draw a tensor's noise in one go."""
    key = hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16]
    stream = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
    return torch.from_numpy(stream.standard_normal(size, np.float32))


def test_blocks_do_not_show(space, llama):
    recipe = space.decode(space.sample(np.random.default_rng(1)))
    whole, cut = merged(llama.engine(), recipe), merged(llama.engine(block=37), recipe)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_founder_is_its_source(space, llama):
    for index, founder in enumerate(space.initial_population()):
        found, source = merged(llama.engine(), space.decode(founder)), llama.tensors(index)
        assert all(torch.equal(found[name], source[name].float()) for name in found)


def test_another_generation_is_rebuilt_from_its_recipe_alone(space, llama):
    """Children of children, with noise: the recipe's YAML gives the same weights in a fresh engine."""
    rng = np.random.default_rng(2)
    points = list(space.initial_population())
    for _ in range(6):
        a, b = rng.choice(len(points), 2, replace=False)
        points.append(space.mutate(space.crossover(points[a], points[b], rng), rng))
    recipe = space.decode(points[-1])
    again = mergekit_yaml.parse(mergekit_yaml.dump(recipe))
    first, second = merged(llama.engine(), recipe), merged(llama.engine(), again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_footprint_counts_every_source(space, llama):
    footprint = llama.engine().footprint(space.decode(space.start))
    assert footprint.source_bytes == 3 * 2 * footprint.parameters


def test_a_table_of_other_models_is_refused(space, llama):
    recipe = space.decode(space.start)
    table = recipe.mixture
    name, pieces = table.tensors[0]
    shorter = type(table)(table.rows, ((name, ((pieces[-1][0] - 1, 0),)), *table.tensors[1:]))
    with pytest.raises(RecipeError, match=f"{name}: it ends at .* and the tensor at"):
        llama.engine().apply(replace(recipe, mixture=shorter))
    missing = type(table)(table.rows, table.tensors[1:])
    with pytest.raises(RecipeError, match=f"{name} is not in the table"):
        llama.engine().apply(replace(recipe, mixture=missing))


def test_gram_matrices_are_inner_products_and_kept(space, llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    chunks = space.chunking.chunks
    found = gram_matrices(llama.checkpoints, chunks)
    for index, chunk in enumerate(chunks):
        rows = torch.stack(
            [
                torch.cat([llama.tensors(model)[name].view(-1)[start:end].double() for name, start, end in chunk])
                for model in range(3)
            ]
        )
        np.testing.assert_allclose(found[index], (rows @ rows.T).numpy(), rtol=1e-12)
    (file,) = cache_folder("gram").iterdir()
    np.save(file, np.zeros_like(found))
    assert not gram_matrices(llama.checkpoints, chunks).any()  # read, not measured
    file.write_bytes(b"cut short")
    assert np.array_equal(gram_matrices(llama.checkpoints, chunks), found)


def test_noise_depends_on_seed_tensor_and_entry_only():
    def drawn(name, seed, cuts):
        piece = Piece(50, (1.0,), (Noise(seed, 2.0),))
        stream, parts = NoiseStream(name, [piece]), [torch.zeros(size) for size in cuts]
        for part in parts:
            stream.add_to(part, piece)
        return torch.cat(parts)

    assert torch.equal(drawn("a", 1, [50]), drawn("a", 1, [7, 13, 30]))
    assert not torch.equal(drawn("a", 1, [50]), drawn("b", 1, [50]))
    assert not torch.equal(drawn("a", 1, [50]), drawn("a", 2, [50]))
    assert 1.4 < float(drawn("a", 1, [4000]).std()) < 2.6
