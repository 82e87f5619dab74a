"""Activation-informed merging: the formula, on top of any method, from a recipe's text to the merged weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.merging.calibration.statistics import statistics
from evomerge.merging.engine import recipe_statistics
from evomerge.merging.engine.activation_informed import shares
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients, merge_tensors
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import task_arithmetic_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit_export import obstacles, rounded
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig

ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"
MODELS = {name: str(ZOO / name) for name in ("base", "ops", "ja")}


class TestActivationInformedTaskArithmetic(MergeMethodSuite):
    """On task arithmetic, whose blocks are plain sums."""

    method = "task_arithmetic"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], activation_informed=0.4)
    others = coefficients(weight=1.0, activation_informed=0.9)
    one_model = coefficients(weight=1.0, activation_informed=1.0)


class TestActivationInformedTies(MergeMethodSuite):
    """On a method with prepared state."""

    method = "ties"
    needs_more_tensors = frozenset({"whole_model"})
    parameters = coefficients(weight=[0.4, 0.7, 0.2], density=0.5, activation_informed=0.0)
    others = coefficients(weight=1.0, density=0.7)
    one_model = coefficients(weight=1.0, density=1.0, activation_informed=1.0)


@pytest.fixture
def recipe(zoo: dict[str, Checkpoint], text: Path) -> Recipe:
    plain = task_arithmetic_recipe(MODELS, zoo[MODELS["base"]].layout, out_dtype="float32")
    return replace(plain, parameters=(("activation_informed", constant(0.4)),), calibration_text=str(text))


def merged(zoo: dict[str, Checkpoint], recipe: Recipe) -> dict[str, torch.Tensor]:
    engine = MergeEngine(zoo, base=MODELS["base"])
    engine.prepare(recipe)
    return {name: values.data.clone() for name, values in engine.apply(recipe).named_parameters()}


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.base == "required"])
def test_formula_on_every_method_with_a_base(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn((12, 20), generator=generator)
    models = [base + 0.1 * torch.randn((12, 20), generator=generator) for _ in range(METHODS[method].max_models or 2)]
    needed = {p.name: 0.6 for p in METHODS[method].parameters if p.name in ("weight", "density", "t")}
    plain = merge_tensors(method, base, models, **needed)
    informed = merge_tensors(method, base, models, **needed, activation_informed=0.3)
    expected = base + (plain - base) * (1 - 0.7 * torch.linspace(0, 1, 20))
    torch.testing.assert_close(informed, expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(merge_tensors(method, base, models, **needed), plain)


def test_linear_maps_and_norms_are_damped_and_embeddings_are_not(zoo: dict[str, Checkpoint], recipe: Recipe) -> None:
    base = MODELS["base"]
    measured = statistics(
        "activations",
        zoo[base],
        Path(recipe.calibration_text or ""),
        lambda: MergeEngine(zoo, base=base).load(base),
    )
    found, plain = merged(zoo, recipe), merged(zoo, replace(recipe, parameters=()))
    damped = 0
    for name, values in found.items():
        origin = zoo[base].tensor(name).float().reshape(values.shape)
        if "embed_tokens" in name or name not in measured:
            assert torch.equal(values, plain[name]), name
            continue
        expected = origin + (plain[name] - origin) * (1 - 0.6 * shares(measured[name]))
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        damped += 1
    assert damped > 9 * 2  # the linear maps and norms of the layers, and the final norm


def test_activations_are_the_mean_sizes_of_inputs(zoo: dict[str, Checkpoint], text: Path) -> None:
    checkpoint = zoo[MODELS["base"]]
    model = MergeEngine(zoo, base=MODELS["base"]).load(MODELS["base"])
    measured = statistics("activations", checkpoint, text, lambda: model)
    ids = torch.tensor(checkpoint.tokenizer.load()(text.read_text(), add_special_tokens=False)["input_ids"])
    assert len(ids) > 512  # more than one window
    seen = []
    with torch.inference_mode():
        for window in ids.split(512):
            seen.append(model(input_ids=window[None], output_hidden_states=True).hidden_states[0][0])
    expected = torch.cat(seen).abs().mean(0)  # what enters the first layer enters its first norm
    torch.testing.assert_close(measured["model.layers.0.input_layernorm.weight"], expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_measured_once_for_a_model_and_a_text(
    zoo: dict[str, Checkpoint], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = zoo[MODELS["base"]]
    calls = []

    def load() -> Any:
        calls.append(1)
        return MergeEngine(zoo, base=MODELS["base"]).load(MODELS["base"])

    first = statistics("activations", base, text, load)
    again = statistics("activations", base, text, load)
    assert len(calls) == 1
    assert all(torch.equal(first[name], again[name]) for name in first)
    (file,) = (tmp_path / "cache" / "statistics").rglob("*.safetensors")
    file.write_bytes(b"torn")  # a damaged file is measured again
    assert statistics("activations", base, text, load).keys() == first.keys()
    text.write_text("sort nul unu du = nul unu du\n" * 3, encoding="utf-8")
    statistics("activations", base, text, load)
    statistics("activations", zoo[MODELS["ja"]], text, load)
    assert len(calls) == 4
    assert len(list((tmp_path / "cache" / "statistics").rglob("*.safetensors"))) == 3


def test_a_search_measures_before_the_first_candidate(zoo: dict[str, Checkpoint], text: Path, monkeypatch: Any) -> None:
    config = CoefficientConfig(
        method="ties",
        layers_per_group=9,
        calibration_text=str(text),
        ranges={"activation_informed": {"low": 0.0, "high": 1.0}},
    )
    space = CoefficientSpace(config, MODELS, zoo[MODELS["base"]].layout)
    assert [gene.name for gene in space.genes[:5]][-1] == "activation_informed[embeddings]"
    engine = MergeEngine(zoo, base=MODELS["base"])
    engine.prepare(space.decode(space.start))

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(recipe_statistics, "statistics", never)
    low, high = (engine.apply(space.decode(p)).lm_head.weight.sum().item() for p in (space.low, space.high))
    assert low != high
    recipe = space.decode(space.start)
    assert mergekit_yaml.parse(mergekit_yaml.dump(recipe)).hash == recipe.hash
    assert space.decode(space.encode(recipe)).hash == recipe.hash


def test_recipes_say_what_they_rest_on(recipe: Recipe) -> None:
    text = mergekit_yaml.dump(recipe)
    assert f"calibration_text: {recipe.calibration_text}" in text
    again = mergekit_yaml.parse(text)
    assert again.hash == recipe.hash
    assert replace(recipe, calibration_text="other.txt").hash != recipe.hash
    plain = replace(recipe, parameters=())
    assert plain.hash == replace(plain, calibration_text=None).hash  # a text that nothing needs
    assert obstacles(recipe) == ("activation_informed: mergekit has no such parameter of task_arithmetic",)
    exchanged, notes = rounded(recipe)
    assert exchanged.calibration_text is None
    assert notes == ("activation_informed is dropped; mergekit has no such parameter",)


def test_a_missing_text(recipe: Recipe, zoo: dict[str, Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"activation_informed: it needs a text .*; write evomerge: \{calibration_text: TEXT_FILE\}"
    ):
        replace(recipe, calibration_text=None)
    with pytest.raises(ValueError, match="activation_informed: it needs a text; write calibration_text: TEXT_FILE"):
        CoefficientConfig(fixed={"activation_informed": 0.4})
    with pytest.raises(CheckpointError, match=r"absent.txt: the calibration text cannot be read .*; name a text file"):
        merged(zoo, replace(recipe, calibration_text=str(tmp_path / "absent.txt")))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "the calibration text is empty; write some"), (b"\xff\xfe", "is not UTF-8; save it as such")],
)
def test_texts_that_are_none(
    recipe: Recipe, zoo: dict[str, Checkpoint], text: Path, content: bytes, message: str
) -> None:
    text.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        merged(zoo, recipe)
