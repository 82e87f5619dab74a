"""Core space: without loss, equal to full space for linear methods, and written as an adapter that peft loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.files.atomic import FileError
from evomerge.merging.derivatives.watched import watched
from evomerge.merging.engine.core_space import core_basis
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.methods import trimmed
from evomerge.merging.methods.slopes import STEP
from evomerge.merging.output.adapter_writer import write_adapter
from evomerge.merging.output.writer import OutputError
from evomerge.merging.sources.adapters import Factors
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_sources
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from tests.conftest import required
from tests.merging.conftest import in_float32

peft = required("peft")

ZOO = Path(__file__).parents[3] / "experiments" / "zoo" / "models" / "base"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SETTINGS: tuple[dict[str, Any], ...] = (
    {"r": 4, "target_modules": "all-linear"},
    {"r": 6, "target_modules": ATTENTION, "use_rslora": True, "modules_to_save": ["lm_head"]},
    {"r": 3, "target_modules": [*ATTENTION, "embed_tokens"], "lora_alpha": 5},
)


def open_adapters(make_adapter: Any, base: str, folder: Path) -> MergeEngine:
    models = {"base": base}
    for index, settings in enumerate(SETTINGS):
        path, _ = make_adapter(base, folder / f"adapter{index}", seed=index, **settings)
        models[f"expert{index}"] = str(path)
    sources = open_sources(models, "base")
    return MergeEngine({c.reference: c for c in sources.values()}, base=base)


@pytest.fixture(scope="module")
def adapters(make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> MergeEngine:
    """An engine with the zoo's base in float32, so that nothing is rounded, and three adapters on it."""
    folder = tmp_path_factory.mktemp("adapters")
    return open_adapters(make_adapter, in_float32(ZOO, folder / "base"), folder)


@pytest.fixture(scope="module")
def small(make_adapter: Any, families: Any, tmp_path_factory: pytest.TempPathFactory) -> MergeEngine:
    """The same on a smaller base, for what needs many merges."""
    return open_adapters(make_adapter, families("llama").base, tmp_path_factory.mktemp("small"))


def recipe(engine: MergeEngine, method: str, *weights: float, core: bool, **shared: Any) -> Recipe:
    base, *experts = engine.checkpoints
    span = (0, engine.layout.num_layers)
    spec = METHODS[method]
    weigh = any(parameter.name == "weight" for parameter in spec.parameters)
    sources = [
        Source(expert, span, (("weight", constant(weight)),) if weigh else ())
        for expert, weight in zip(experts, weights, strict=True)
    ]
    if spec.base != "none":
        sources.append(Source(base, span))
    parameters = tuple(sorted((name, constant(value)) for name, value in shared.items()))
    return Recipe(
        method, (Slice(tuple(sources)),), base, parameters, out_dtype="float32", adapters="core" if core else None
    )


def weights(engine: MergeEngine, of: Recipe) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in engine.apply(of).named_parameters()}


def test_the_bases_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors(rank: int, scale: float) -> Factors:
        return Factors(torch.randn(20, rank, generator=generator), torch.randn(rank, 12, generator=generator), scale)

    experts = [factors(2, 0.5), None, factors(3, 2.0), factors(9, 1.0)]  # together more ranks than columns
    basis = core_basis(experts)
    assert basis.left.shape == (20, 14)
    assert basis.right.shape == (12, 12)
    assert torch.allclose(basis.left.T @ basis.left, torch.eye(14), atol=1e-6)
    assert torch.allclose(basis.right @ basis.right.T, torch.eye(12), atol=1e-6)
    for expert, core_PQ in zip(experts, basis.cores, strict=True):
        expected = torch.zeros(20, 12) if expert is None else expert.delta()
        assert torch.allclose(basis.expand(core_PQ), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("linear", {}),
        ("task_arithmetic", {}),
        ("task_arithmetic", {"lambda": 0.7}),
        ("task_arithmetic", {"normalize": True}),
        ("opcm", {"alpha": 0.4}),
    ],
)
def test_exact_methods_equal_the_merge_in_full_space(adapters: MergeEngine, method: str, shared: Any) -> None:
    full = weights(adapters, recipe(adapters, method, 0.9, -0.4, 0.7, core=False, **shared))
    core = weights(adapters, recipe(adapters, method, 0.9, -0.4, 0.7, core=True, **shared))
    origin = adapters.checkpoint(adapters.base)
    moved = 0.0
    for name, values in full.items():
        assert torch.allclose(core[name], values, atol=1e-5, rtol=0), name
        moved = max(moved, float((values - origin.tensor(name).float()).abs().max()))
    assert moved > 0.01


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, spec in METHODS.items()
        if spec.base == "required" and spec.max_models is None and spec.core_space != "unsupported"
    ],
)
def test_every_method_on_task_vectors_runs(small: MergeEngine, method: str) -> None:
    """Its result is the base plus something in the span of the adapters."""
    result = weights(small, recipe(small, method, 0.5, 0.5, 0.5, core=True))
    name = "model.layers.1.mlp.down_proj.weight"  # adapted by the first alone
    delta = result[name] - small.checkpoint(small.base).tensor(name).float()
    expert = small.checkpoint(list(small.checkpoints)[1])
    right = expert.factors(name).right  # type: ignore[attr-defined]
    inside = delta @ torch.linalg.pinv(right) @ right
    assert torch.isfinite(delta).all()
    assert torch.allclose(delta, inside, atol=1e-5)


def test_entry_wise_methods_are_others_there(adapters: MergeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measure = trimmed._counts_from_the_top
    monkeypatch.setattr(trimmed, "_counts_from_the_top", lambda model: measured.append(model) or measure(model))
    options = {"density": 0.3}
    full = weights(adapters, recipe(adapters, "ties", 1.0, 1.0, 1.0, core=False, **options))
    core = weights(adapters, recipe(adapters, "ties", 1.0, 1.0, 1.0, core=True, **options))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(full[name], core[name], atol=1e-3)
    whole = weights(adapters, recipe(adapters, "ties", 1.0, 1.0, 1.0, core=True, whole_model=True, **options))
    assert not torch.equal(whole[name], core[name])
    assert len(measured) == 2 * len(SETTINGS)  # each expert's core matrices once and its weights once, for all tensors


def test_candidates_in_turn_do_not_disturb_each_other(adapters: MergeEngine) -> None:
    first = recipe(adapters, "ties", 0.8, 0.3, 0.5, core=True, density=0.5)
    before = weights(adapters, first)
    weights(adapters, recipe(adapters, "ties", 0.1, 1.3, 0.2, core=True, density=0.9))
    weights(adapters, replace(first, adapters=None))
    after = weights(adapters, first)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_written_adapter_is_loaded_by_peft(adapters: MergeEngine, tmp_path: Path) -> None:
    of = recipe(adapters, "ties", 0.9, 0.6, 0.7, core=True, density=0.4)
    written = write_adapter(adapters, of, tmp_path / "adapter")
    assert written.rank == sum(settings["r"] for settings in SETTINGS)
    assert written.error == 0.0
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml",
    }  # fmt: skip
    assert mergekit_yaml.read(tmp_path / "adapter" / "recipe.yaml") == of
    base = AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        expected = adapters.apply(of)(tokens).logits.clone()
        assert torch.allclose(model(tokens).logits, expected, atol=1e-4)
        base = AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)
        assert not torch.allclose(base(tokens).logits, expected, atol=1e-1)


def test_conv1d_modules_are_written(families: Any, make_adapter: Any, tmp_path: Path) -> None:
    base = in_float32(families("gpt2").base, tmp_path / "base")
    paths = [
        make_adapter(base, tmp_path / f"a{seed}", seed=seed, r=3, target_modules=["c_attn", "c_fc"])[0]
        for seed in (1, 2)
    ]
    sources = open_sources({path: path for path in (base, *map(str, paths))}, base)
    engine = MergeEngine(sources, base=base)
    of = recipe(engine, "task_arithmetic", 0.5, 0.8, core=True)
    write_adapter(engine, of, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    for name, values in engine.apply(replace(of, adapters=None)).named_parameters():
        assert torch.allclose(merged.get_parameter(name), values, atol=1e-5), name


def test_a_smaller_rank_states_its_error(adapters: MergeEngine, tmp_path: Path) -> None:
    of = recipe(adapters, "task_arithmetic", 0.9, 0.6, 0.7, core=True)
    written = write_adapter(adapters, of, tmp_path / "adapter", rank=2)
    assert written.rank == 2
    full = dict(adapters.factors(of))
    base = AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    missing = total = 0.0
    for name, factors in full.items():
        delta = factors.delta()
        kept = merged.get_parameter(name) - adapters.checkpoint(adapters.base).tensor(name).float()
        missing += float((delta - kept).square().sum())
        total += float(delta.square().sum())
    assert written.error == pytest.approx((missing / total) ** 0.5, rel=1e-3)
    assert 0.05 < written.error < 1


def test_shares_that_do_not_sum_to_one_are_refused(adapters: MergeEngine) -> None:
    of = recipe(adapters, "linear", 0.9, 0.6, 0.7, core=True, normalize=False)
    with pytest.raises(
        CheckpointError, match=r"weights sum to 2.2, and in core space they must sum to 1; write normal"
    ):
        adapters.apply(of)


@pytest.mark.parametrize("method", ["slerp", "karcher", "widen", "arcee_fusion"])
def test_methods_on_whole_weights_are_refused(method: str) -> None:
    models = [{"model": "base"}, {"model": "a"}]
    data = {"merge_method": method, "base_model": "base", "models": models, "evomerge": {"adapters": "core"}}
    if method == "slerp":
        data["parameters"] = {"t": 0.5}
    with pytest.raises(RecipeError, match=r"core space has only task vectors; write adapters: full, or use another"):
        mergekit_yaml.build(data)


def test_whole_models_are_refused_in_core_space(adapters: MergeEngine, llama: Any) -> None:
    engine = llama.engine()
    with pytest.raises(CheckpointError, match=r"adapters: core needs adapters of one base, and these have 0; write"):
        engine.apply(recipe(engine, "task_arithmetic", 0.5, 0.5, core=True))


def test_what_no_adapter_can_be(adapters: MergeEngine, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    of = recipe(adapters, "task_arithmetic", 0.9, 0.6, 0.7, core=True)
    with pytest.raises(FileError, match=r"taken: the folder exists and is not empty; name a new one or remove it"):
        write_adapter(adapters, of, tmp_path / "taken")
    ties = recipe(adapters, "ties", 0.9, 0.6, 0.7, core=False)
    with pytest.raises(OutputError, match=r"ties on full weights gives no low-rank merge; write evomerge: {adapters: "):
        write_adapter(adapters, ties, tmp_path / "new")
    (part,) = of.slices
    shorter = replace(of, slices=(Slice(tuple(replace(s, layer_range=(1, 4)) for s in part.sources)),))
    with pytest.raises(OutputError, match=r"moves or drops layers, which an adapter cannot do; merge without"):
        write_adapter(adapters, shorter, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "tsv_m"])
def test_derivatives_equal_finite_differences_of_a_loss(small: MergeEngine, method: str) -> None:
    """By the weight of one expert, through the core matrices, and by each weight of a tensor that nobody adapts."""

    def loss(module: Any) -> torch.Tensor:
        logits = module(torch.arange(3, 19).reshape(2, 8), use_cache=False).logits.double()
        return (torch.tanh(logits) * torch.sin(torch.arange(logits.numel()).reshape(logits.shape))).sum()

    def merge(weight: float) -> Recipe:
        return replace(recipe(small, method, 0.5, weight, 0.6, core=True), dtype="float32")

    with watched(small, merge(0.7)) as model:
        loss(model.module).backward()
    own = [value for key, value in model.derivatives.items() if (key.parameter, key.source) == ("weight", 1)]
    high, low = (float(loss(small.apply(merge(0.7 + step)))) for step in (STEP, -STEP))
    assert sum(own) == pytest.approx((high - low) / (2 * STEP), abs=0.06 * sum(map(abs, own)))
