"""Gram matrices, layer by layer: those of the whole model's inputs, in bounded memory, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evomerge.merging.calibration import inputs
from evomerge.merging.calibration.layer_walk import LayerWalk
from evomerge.merging.calibration.statistics import memory, statistics
from evomerge.merging.calibration.texts import windows_of
from evomerge.merging.engine import recipe_statistics
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.placement import FreeMemory
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe

ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"
BASE, OPS, JA = (str(ZOO / name) for name in ("base", "ops", "ja"))
WINDOWS = torch.tensor([[5, 7, 9, 11, 3, 2, 8, 1, 6, 4], [5, 6, 2, 4, -1, -1, -1, -1, -1, -1]])


def by_hooks(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """Return XᵀX / tokens of every linear map from whole forward passes, float64."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

        return add

    handles = [
        module.register_forward_pre_hook(hook(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(("lm_head", "embed_out"))
    ]
    with torch.inference_mode():
        for window in windows:
            model(input_ids=window[window >= 0][None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: total / int((windows >= 0).sum()) for name, total in sums.items()}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_neox", "qwen3"])
def test_they_are_those_of_whole_forward_passes(families: Any, name: str) -> None:
    family = families(name)
    model = family.engine().load(family.base)
    layout = family.checkpoints[family.base].layout
    parts = list(inputs.grams(model, layout, WINDOWS))
    assert len(parts) == layout.num_layers  # one layer's matrices are held at a time
    found = {key: values for part in parts for key, values in part.values.items()}
    same = {key: first for part in parts for key, first in part.same.items()}
    expected = by_hooks(model, WINDOWS)
    assert found.keys() | same.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[same.get(key, key)].double(), values, rtol=1e-4, atol=1e-6)
    if name == "llama":  # query, key and value read one input; gate and up another
        assert len(found) == 4 * layout.num_layers
    expected_again = by_hooks(model, WINDOWS)  # the model is as it was
    assert all(torch.equal(values, expected_again[key]) for key, values in expected.items())


def test_a_model_whose_layers_share_more_is_refused(families: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the results: a layer run on its own gives something else than within the model."""
    family, run = families("llama"), LayerWalk.run
    model = family.engine().load(family.base)
    monkeypatch.setattr(LayerWalk, "run", lambda *inputs: run(*inputs) + 0.1)
    with pytest.raises(CheckpointError, match="its layers pass on more than hidden states"):
        LayerWalk(model, family.checkpoints[family.base].layout, [WINDOWS[0]])


def test_a_model_without_linear_maps_of_torch(families: Any) -> None:
    family = families("gpt2")
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel: its layers have no linear maps of torch's kind"):
        list(inputs.grams(family.engine().load(family.base), family.checkpoints[family.base].layout, WINDOWS))


class Experts(nn.Module):
    """A mixture that sends every token to its first expert."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.experts[0](hidden)
        return out


def test_an_expert_that_no_token_reaches() -> None:
    layer = Experts()
    with (
        pytest.raises(
            CheckpointError, match=r"layers\.3\.experts\.1\.weight: no token of the calibration text reaches"
        ),
        inputs.watched_grams(layer, "layers.3."),
    ):
        layer(torch.ones(1, 5, 4))


def recipe_of(text: Path, other: Path, **more: Any) -> Recipe:
    data = {
        "merge_method": "regmean",
        "models": [{"model": OPS}, {"model": JA}],
        "dtype": "float32",
        "evomerge": {"calibration_text": {OPS: str(text), JA: str(other)}},
    }
    return mergekit_yaml.build(data | more)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("copy ichi ni san = ichi ni san\nlast ni san = san\n" * 20, encoding="utf-8")
    return path


def merged(engine: MergeEngine, recipe: Recipe) -> dict[str, Tensor]:
    engine.prepare(recipe)
    return {name: values.data.clone() for name, values in engine.apply(recipe).named_parameters()}


def test_each_model_has_its_own_text(zoo: dict[str, Any], text: Path, other: Path) -> None:
    recipe = recipe_of(text, other)
    found = merged(MergeEngine(zoo, base=BASE), recipe)
    grams = {}
    for model, place in ((OPS, text), (JA, other)):
        module = MergeEngine(zoo, base=BASE).load(model)
        ids = torch.tensor(zoo[model].tokenizer.load()(place.read_text(), add_special_tokens=False)["input_ids"])
        padded = torch.cat([ids, ids.new_full((-len(ids) % 512,), -1)]).reshape(-1, 512)
        grams[model] = by_hooks(module, padded)
    name = "model.layers.2.mlp.down_proj.weight"
    left = sum(0.9 * g[name] + 0.1 * g[name].diagonal().diag() for g in grams.values())
    r = 1e-4 * left.trace() / len(left)
    values = {model: zoo[model].tensor(name).double() for model in grams}
    right = sum(values[m] @ (0.9 * g[name] + 0.1 * g[name].diagonal().diag()) for m, g in grams.items())
    mean = (values[OPS] + values[JA]) / 2
    expected = torch.linalg.solve(left + r * torch.eye(len(left)), right + r * mean, left=False)
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[name].double(), mean, atol=1e-2)
    swapped = merged(MergeEngine(zoo, base=BASE), recipe_of(other, text))
    assert not torch.equal(found[name], swapped[name])
    streamed = dict(MergeEngine(zoo, base=BASE).stream(recipe, [name]))
    torch.testing.assert_close(streamed[name], found[name], rtol=1e-6, atol=1e-6)


def test_a_second_run_makes_no_forward_pass(
    zoo: dict[str, Any], text: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merged(MergeEngine(zoo, base=BASE), recipe_of(text, other))

    def never(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(MergeEngine, "load", never)
    again = merged(MergeEngine(zoo, base=BASE), recipe_of(text, other))
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    other.write_text(text.read_text() + "one more\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="a model was loaded"):
        merged(MergeEngine(zoo, base=BASE), recipe_of(text, other))


def test_memory_is_said_and_checked_before_the_work(
    zoo: dict[str, Any], text: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, recipe = MergeEngine(zoo, base=BASE), recipe_of(text, other)
    said = engine.footprint(recipe).calibration_bytes
    assert said == max(memory("gram", zoo[model], place, 4) for model, place in ((OPS, text), (JA, other)))
    config = zoo[OPS].config
    widths = [config.hidden_size] * 6 + [config.intermediate_size]
    tokens = len(text.read_bytes())  # at most
    assert said == 4 * sum(width**2 for width in widths) + 4 * tokens * config.hidden_size
    monkeypatch.setattr(recipe_statistics, "free_memory", lambda *_: FreeMemory(None, said - 1))
    monkeypatch.setattr(engine, "load", lambda _: pytest.fail("the work began"))
    with pytest.raises(CheckpointError, match=r"measuring gram of .* holds 0\.0 GB beside the model, and 0\.0 GB are"):
        engine.prepare(recipe)


def test_no_more_is_held_than_said(zoo: dict[str, Any], text: Path) -> None:
    """Counted: the hidden states of all windows, and the matrices of the layer that is measured."""
    module = MergeEngine(zoo, base=BASE).load(OPS)
    ids = torch.tensor(zoo[OPS].tokenizer.load()(text.read_text(), add_special_tokens=False)["input_ids"])
    walk = LayerWalk(module, zoo[OPS].layout, list(ids.split(512)))
    held = []
    for layer, layer_module in enumerate(walk.layers):
        with inputs.watched_grams(layer_module, zoo[OPS].layout.layer_tensor(layer, "")) as sums:
            walk.advance(layer)
            hidden = sum(values.nbytes for values in walk.hidden)
            held.append(hidden + sum(total.nbytes for total in sums.totals.values()))
    assert max(held) <= memory("gram", zoo[OPS], text, 4) <= 4 * max(held)


def test_the_dtype_is_part_of_the_key(zoo: dict[str, Any], text: Path, tmp_path: Path) -> None:
    loads: list[str] = []
    engine = MergeEngine(zoo, base=BASE)
    for dtype in ("float32", "bfloat16", "float32"):
        statistics("gram", zoo[OPS], text, lambda d=dtype: (loads.append(d), engine.load(OPS))[1], dtype=dtype)  # type: ignore[misc]
    assert loads == ["float32", "bfloat16"]


def test_texts_that_cannot_be_used(zoo: dict[str, Any], text: Path, tmp_path: Path) -> None:
    text.write_text("sort one = one\n" * 1, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"text.txt: the calibration text has \d+ tokens of .*ops, and 16 are the"
    ):
        MergeEngine(zoo, base=BASE).prepare(recipe_of(text, text))
    strange = tmp_path / "strange"
    strange.mkdir()
    for file in Path(OPS).iterdir():
        (strange / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((strange / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] = {word: at + 5000 for word, at in vocabulary["model"]["vocab"].items()}
    (strange / "tokenizer.json").write_text(json.dumps(vocabulary))
    checkpoint = type(zoo[OPS]).open(str(strange))
    text.write_text("sort one two = one two\n" * 40, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"gives the token \d+ and the model has .*another model's tokenizer"):
        statistics("gram", checkpoint, text, lambda: pytest.fail("the work began"))


def test_documents_are_read_apart(zoo: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    lines = '{"text": "sort one two = 1 2", "title": "a\u2028b"}\r\n\n"reverse three two one = 1 2 3"\n'
    text.write_text("\ufeff" + 3 * lines, encoding="utf-8")
    windows = windows_of(zoo[OPS], text.read_bytes(), text)
    tokenizer = zoo[OPS].tokenizer.load()
    assert [window[window >= 0].tolist() for window in windows[:2]] == [
        tokenizer("sort one two = 1 2")["input_ids"],
        tokenizer("reverse three two one = 1 2 3")["input_ids"],
    ]
    assert len(windows) == 6
    text.write_text('{"text": "sort one two = 1 2"}\n{"prompt": "sort"}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"text.jsonl:2: it is not a document; write a line such as"):
        windows_of(zoo[OPS], text.read_bytes(), text)


def test_recipes_with_a_text_for_each_model(text: Path, other: Path) -> None:
    recipe = recipe_of(text, other)
    again = mergekit_yaml.parse(mergekit_yaml.dump(recipe))
    assert again.hash == recipe.hash != recipe_of(other, text).hash
    assert recipe_of(text, text).hash == recipe_of(text, text, evomerge={"calibration_text": str(text)}).hash
    assert recipe.text_of(OPS) == str(text)
    assert recipe.measured == (OPS, JA)
    renamed = recipe.with_models({OPS: "elsewhere/ops"})
    assert renamed.text_of("elsewhere/ops") == str(text)
    with pytest.raises(RecipeError, match=r"calibration_text: .*ja has no text; write .*ja: TEXT_FILE, or one text"):
        recipe_of(text, other, evomerge={"calibration_text": {OPS: str(text)}})
    with pytest.raises(RecipeError, match="calibration_text: x/y is not one of the recipe's models"):
        recipe_of(text, other, evomerge={"calibration_text": {OPS: str(text), JA: str(other), "x/y": str(other)}})
