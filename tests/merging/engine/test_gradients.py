"""Gradient statistics: what autograd gives, kept on disk, asked for by a method, from a text to merged weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from evomerge.merging.calibration.gradients import fisher
from evomerge.merging.calibration.statistics import statistics
from evomerge.merging.engine import recipe_statistics
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.checkpoints import Checkpoint
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.method_choice import MethodChoiceSpace

ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"
MODELS = {name: str(ZOO / name) for name in ("base", "ops", "ja")}
SHARES = {"base": 0.2, "ops": 0.7, "ja": 0.4}


@pytest.fixture
def recipe(text: Path) -> Recipe:
    models = [{"model": MODELS[name], "parameters": {"weight": share}} for name, share in SHARES.items()]
    data = {"merge_method": "fisher", "models": models, "dtype": "float32", "evomerge": {"calibration_text": str(text)}}
    return mergekit_yaml.build(data)


def merged(zoo: dict[str, Checkpoint], recipe: Recipe) -> dict[str, Tensor]:
    engine = MergeEngine(zoo, base=MODELS["base"])
    engine.prepare(recipe)
    return {name: values.data.clone() for name, values in engine.apply(recipe).named_parameters()}


def by_autograd(checkpoint: Checkpoint, text: Path) -> dict[str, Tensor]:
    """Return √n F / ‖F‖ from the definition: windows of 512 tokens, one after the other."""
    ids = torch.tensor(checkpoint.tokenizer.load()(text.read_text(), add_special_tokens=False)["input_ids"])
    assert len(ids) > 512  # more than one
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    names, weights = zip(*model.named_parameters(), strict=True)
    squares = [torch.zeros_like(weight) for weight in weights]
    for window in ids.split(512):
        logp = torch.log_softmax(model(window[None]).logits[0, :-1], -1)
        likelihood = logp[torch.arange(len(window) - 1), window[1:]].sum()
        for total, gradient in zip(squares, torch.autograd.grad(likelihood, weights), strict=True):
            total.addcmul_(gradient, gradient)
    flat = torch.cat([values.flatten() for values in squares])
    return {name: v * len(flat) ** 0.5 / flat.norm() for name, v in zip(names, squares, strict=True)}


def test_they_are_mean_squared_gradients(zoo: dict[str, Checkpoint], text: Path) -> None:
    checkpoint = zoo[MODELS["ops"]]
    model = MergeEngine(zoo, base=MODELS["base"]).load(MODELS["ops"])
    before = {name: values.data.clone() for name, values in model.named_parameters()}
    with torch.inference_mode():  # as a worker might call it
        measured = statistics("fisher", checkpoint, text, lambda: model)
    expected = by_autograd(checkpoint, text)
    assert measured.keys() == expected.keys()
    for name, values in measured.items():
        assert values.dtype == torch.bfloat16
        torch.testing.assert_close(values.float(), expected[name], rtol=1e-2, atol=1e-4)
    assert all(float(values.max()) > 0 for values in expected.values())
    for name, values in model.named_parameters():
        assert torch.equal(values.data, before[name])
        assert not values.requires_grad
        assert values.grad is None


def test_they_are_measured_once_per_model_and_text(
    zoo: dict[str, Checkpoint], text: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def counted(kind: str, checkpoint: Checkpoint, place: Path, load: Any, *, dtype: str) -> Any:
        return statistics(
            kind, checkpoint, place, lambda: (measured.append(checkpoint.reference), load())[1], dtype=dtype
        )

    monkeypatch.setattr(recipe_statistics, "statistics", counted)
    first = merged(zoo, recipe)
    assert measured == list(MODELS.values())
    again = merged(zoo, recipe)  # another engine, the same cache
    assert len(measured) == 3
    text.write_text("three two one = one two three\n" * 9, encoding="utf-8")
    other = merged(zoo, recipe)
    assert len(measured) == 6
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    assert any(not torch.equal(values, other[name]) for name, values in first.items())


def test_weights_are_averaged_by_them(zoo: dict[str, Checkpoint], text: Path, recipe: Recipe) -> None:
    found = merged(zoo, recipe)
    information = {name: by_autograd(zoo[path], text) for name, path in MODELS.items()}
    for tensor, values in found.items():
        weights = {name: share * information[name][tensor].clamp(min=1e-3) for name, share in SHARES.items()}
        parts = [weights[name] * zoo[MODELS[name]].tensor(tensor).float() for name in weights]
        expected = torch.stack(parts).sum(0) / torch.stack([*weights.values()]).sum(0)
        torch.testing.assert_close(values, expected, rtol=2e-2, atol=1e-3)
    plain = merged(zoo, replace(recipe, merge_method="linear", calibration_text=None))
    assert any(not torch.allclose(values, plain[name], atol=1e-3) for name, values in found.items())


def test_texts_do_not_mix_in_one_engine(zoo: dict[str, Checkpoint], recipe: Recipe, tmp_path: Path) -> None:
    second = tmp_path / "second.txt"
    second.write_text("one two three = three two one\n" * 30, encoding="utf-8")
    other = replace(recipe, calibration_text=str(second))
    engine = MergeEngine(zoo, base=MODELS["base"])
    expected = {one.hash: merged(zoo, one) for one in (recipe, other)}
    for one in (recipe, other, recipe):
        found = dict(engine.apply(one).named_parameters())
        assert all(torch.equal(found[name], values) for name, values in expected[one.hash].items())


def test_the_writer_streams_it(zoo: dict[str, Checkpoint], recipe: Recipe) -> None:
    engine = MergeEngine(zoo, base=MODELS["base"])
    resident = merged(zoo, recipe)
    streamed = dict(engine.stream(recipe, list(resident)))
    assert all(torch.equal(streamed[name], values) for name, values in resident.items())


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gemma2", "gpt_neox"])
def test_every_parameter_has_one(families: Any, name: str) -> None:
    model = families(name).engine().load(families(name).base)
    layout = families(name).checkpoints[families(name).base].layout
    (part,) = fisher(model, layout, torch.tensor([[5, 7, 9, 11, 3, -1], [5, -1, -1, -1, -1, -1]]))
    measured = part.values
    assert measured.keys() == dict(model.named_parameters()).keys()
    squares = torch.cat([values.double().square().flatten() for values in measured.values()])
    assert float(squares.mean()) == pytest.approx(1, rel=1e-2)
    (nothing,) = fisher(model, layout, torch.tensor([[5, -1]]))
    assert all(float(values.abs().max()) == 0 for values in nothing.values.values())


def test_spaces_search_its_weights(zoo: dict[str, Checkpoint], text: Path) -> None:
    layout = zoo[MODELS["base"]].layout
    config = CoefficientConfig(method="fisher", layers_per_group=9, calibration_text=str(text))
    space = CoefficientSpace(config, MODELS, layout)
    assert {gene.name.partition("[")[0] for gene in space.genes} == {f"{name}.weight" for name in MODELS}
    recipe = space.decode(space.start)
    assert recipe.calibration_text == str(text)
    assert all(bool(torch.isfinite(values).all()) for values in merged(zoo, recipe).values())
    both = CoefficientConfig(method=("ties", "fisher"), layers_per_group=9, calibration_text=str(text))
    recipes = MethodChoiceSpace(both, MODELS, layout).structures()
    assert [recipe.calibration_text for recipe in recipes] == [None, str(text)]
