"""What else is measured of models on texts, by its definition; and every method that asks for it, in the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evomerge.merging.calibration import gradients, inputs, joint
from evomerge.merging.calibration.joint import Members
from evomerge.merging.calibration.kinds import JOINT, KINDS
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.methods.regmean import least_squares, reduced
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.methods import METHODS

WINDOWS = torch.tensor([[5, 7, 9, 11, 3, 2, 8], [5, 6, 2, 4, -1, -1, -1], [9, 9, 4, 1, 3, 2, -1]])
ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models"
BASE, OPS, JA = (str(ZOO / name) for name in ("base", "ops", "ja"))


def ids_of(windows: Tensor) -> list[Tensor]:
    return [window[window >= 0] for window in windows]


def loss(model: Any, ids: Tensor) -> Tensor:
    logp = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
    return -logp[torch.arange(len(ids) - 1), ids[1:]].mean()


def products(model: nn.Module) -> dict[str, Tensor]:
    """Return θ ⊙ g of each window, float32[W, ...]."""
    names, weights = zip(*model.named_parameters(), strict=True)
    for weight in weights:
        weight.requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        rows = [torch.autograd.grad(loss(model, ids), weights) for ids in ids_of(WINDOWS)]
    for weight in weights:
        weight.requires_grad_(False)
    return {
        name: torch.stack([row[at] * weight for row in rows])
        for at, (name, weight) in enumerate(zip(names, weights, strict=True))
    }


def found_by(kind: str, family: Any) -> dict[str, Tensor]:
    """Return what a kind measures of the family's base."""
    model, layout = family.engine().load(family.base), family.checkpoints[family.base].layout
    return {name: v for part in KINDS[kind].measure(model, layout, WINDOWS) for name, v in part.values.items()}


@pytest.fixture(scope="module")
def family(families: Any) -> Any:
    return families("llama")


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("sensitivity", lambda rows: rows.abs().mean(0)),
        ("importance", lambda rows: rows.square().mean(0)),
        ("push", lambda rows: rows.sort(dim=0).values[len(rows) // 2]),
    ],
)
def test_gradients_of_windows(family: Any, kind: str, definition: Any) -> None:
    expected = products(family.engine().load(family.base))
    found = found_by(kind, family)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        values = definition(rows)
        torch.testing.assert_close(found[name].float(), values, rtol=1e-2, atol=float(values.abs().max()) * 1e-4)


def test_layers_and_losses(family: Any) -> None:
    model, layout = family.engine().load(family.base), family.checkpoints[family.base].layout
    sums = {name: float(rows.abs().sum() / len(rows)) for name, rows in products(model).items()}
    layers = [layout.embeddings, layout.final]
    layers += [tuple(layout.layer_tensor(at, name) for name in layout.layers[at]) for at in range(layout.num_layers)]
    totals = torch.tensor([sum(sums[name] for name in names) for names in layers]) * 1.0
    found = found_by("layer_sensitivity", family)
    for total, names in zip(totals / totals.norm(), layers, strict=True):
        for name in names:
            assert float(found[name]) == pytest.approx(float(total), rel=1e-4)
    own = [(loss(model, ids) * (len(ids) - 1), len(ids) - 1) for ids in ids_of(WINDOWS)]
    expected = sum(float(value) for value, _ in own) / sum(count for _, count in own)
    assert float(found_by("loss", family)["model"]) == pytest.approx(expected, rel=1e-5)


def test_squares_of_inputs_and_gradients_of_outputs(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family.engine().load(family.base)
    grams: dict[str, Tensor] = {}
    energies: dict[str, Tensor] = {}
    maps = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            energies[name] = energies.get(name, torch.zeros(())) + args[0].detach()[0].square().sum(0)

            def add(gradient: Tensor) -> None:
                grams[name] = grams.get(name, torch.zeros(())) + gradient[0].T @ gradient[0]

            out.register_hook(add)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in maps.items()]
    model.requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        for ids in ids_of(WINDOWS):
            (loss(model, ids) * (len(ids) - 1)).backward()
    model.requires_grad_(False)
    for handle in handles:
        handle.remove()
    tokens = int((WINDOWS >= 0).sum())
    monkeypatch.setattr(gradients, "OUTPUT_BYTES", 10_000)  # several groups, each with its own passes
    found = found_by("output_gram", family)
    assert found.keys() == {name for name in maps if "lm_head" not in name}
    for name, values in found.items():
        torch.testing.assert_close(values, grams[name] / tokens, rtol=1e-3, atol=float(grams[name].abs().max()) * 1e-5)
    for name, values in found_by("energies", family).items():
        if name in energies:
            torch.testing.assert_close(values, energies[name] / tokens, rtol=1e-4, atol=1e-6)


def members_of(family: Any, windows: list[Tensor]) -> Members:
    engine = family.engine()
    experts = list(family.references[1:])
    return Members([family.checkpoints[name] for name in experts], windows, lambda at: engine.load(experts[at]))


def test_distances_between_logits(family: Any) -> None:
    windows = [WINDOWS[:2], WINDOWS[2:]]
    (part,) = joint.disagreement(members_of(family, windows))
    expected = []
    models = [family.engine().load(name) for name in family.references[1:]]
    for texts in windows:
        with torch.no_grad():
            rows = [(models[0](ids[None]).logits - models[1](ids[None]).logits)[0] for ids in ids_of(texts)]
        expected.append(float(torch.cat(rows).norm(dim=-1).mean()))
    # each model is compared on the text of the other
    assert [float(part.values[f"{at}:model"]) for at in range(2)] == pytest.approx(expected[::-1], rel=1e-4)


def test_matrices_behind_merged_layers(family: Any) -> None:
    """Those of a model whose earlier layers are merged by them, with the next layer of one expert."""
    windows = [WINDOWS[:2], WINDOWS[2:]]
    parts = list(joint.merged_grams(members_of(family, windows)))
    layout = family.checkpoints[family.base].layout
    assert len(parts) == layout.num_layers
    sources = [family.checkpoints[name] for name in family.references[1:]]
    mixed = family.engine().load(family.base)
    own = dict(mixed.named_parameters())
    with torch.inference_mode():
        for name in layout.embeddings:
            own[name].data.copy_(torch.stack([source.tensor(name).double() for source in sources]).mean(0))
        for name in (layout.layer_tensor(0, inner) for inner in layout.layers[0]):
            values = [source.tensor(name).double() for source in sources]
            keys = [parts[0].same.get(f"{at}:{name}", f"{at}:{name}") for at in range(2)]
            if keys[0] in parts[0].values:
                grams = [reduced(parts[0].values[key], 0.1) for key in keys]
                own[name].data.copy_(least_squares(values, grams, 1e-4))
            else:
                own[name].data.copy_(torch.stack(values).mean(0))
    for at, (source, texts) in enumerate(zip(sources, windows, strict=True)):
        with torch.inference_mode():
            for name in (layout.layer_tensor(1, inner) for inner in layout.layers[1]):
                own[name].data.copy_(source.tensor(name))
        second = list(inputs.grams(mixed, layout, texts))[1]
        for name, values in second.values.items():
            torch.testing.assert_close(parts[1].values[f"{at}:{name}"], values, rtol=1e-3, atol=1e-5)


LOOKS = [name for name, spec in METHODS.items() if spec.statistics]


@pytest.mark.parametrize("method", LOOKS)
def test_every_method_that_looks_at_data_in_the_engine(
    zoo: dict[str, Any], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each model on its own text; a second run makes no forward pass; the writer gives the same."""
    other = tmp_path / "other.txt"
    other.write_text("copy ichi ni san = ichi ni san\nlast ni san = san\n" * 4, encoding="utf-8")
    needs_base = METHODS[method].base == "required"

    def recipe(first: Path, second: Path) -> Any:
        data = {
            "merge_method": method,
            "models": [{"model": OPS}, {"model": JA}],
            "dtype": "float32",
            "evomerge": {"calibration_text": {OPS: str(first), JA: str(second)}},
        }
        return mergekit_yaml.build(data | ({"base_model": BASE} if needs_base else {}))

    def merged(one: Any) -> dict[str, Tensor]:
        engine = MergeEngine(zoo, base=BASE)
        engine.prepare(one)
        assert engine.footprint(one).calibration_bytes >= 0
        return {name: values.data.clone() for name, values in engine.apply(one).named_parameters()}

    text.write_text(text.read_text()[:600], encoding="utf-8")
    found = merged(recipe(text, other))
    assert all(bool(torch.isfinite(values).all()) for values in found.values())
    assert any(not torch.equal(values, zoo[OPS].tensor(name).float()) for name, values in found.items())
    monkeypatch.setattr(MergeEngine, "load", lambda *_: pytest.fail("a forward pass"))
    again = merged(recipe(text, other))
    assert all(torch.equal(values, again[name]) for name, values in found.items())
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight", "model.norm.weight"]
    for name, values in MergeEngine(zoo, base=BASE).stream(recipe(text, other), names):
        torch.testing.assert_close(values, found[name], rtol=1e-6, atol=1e-6)


def test_every_kind_is_asked_for() -> None:
    asked = {name.rpartition(".")[2] for method in LOOKS for name in METHODS[method].statistics}
    assert asked | {"activations"} == {*KINDS, *JOINT}
