"""Parity with mergekit 0.1.5, method by method: its own functions, run in this process on the same tensors.

`tests/merging/output` merges whole models with both; here each method that both have is compared to the bit, in each
dtype, with several coefficients and shapes, and the known differences are tested as such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.dropped import LEVELS, keep_probability, levels_kept, places
from evomerge.testing.merge_methods import Merge as PreparedMerge
from search_spaces.recipes.methods import METHODS
from tests.conftest import required
from tests.merging.output.ulps import ulps_apart

required("mergekit")
pytestmark = pytest.mark.slow


Merge = Callable[..., Tensor]
SHAPES = [(12, 20), (31, 7), (37,), (257, 300)]  # the last is merged in two stretches
WEIGHT = {"weight": [0.4, 0.9, 0.2]}
DENSITY = {"density": [0.3, 0.7, 0.55]}
COMPARED: list[tuple[str, dict[str, Any]]] = [
    ("linear", WEIGHT),
    ("linear", WEIGHT | {"normalize": False}),
    ("slerp", {"t": 0.3}),
    ("nuslerp", {"weight": [0.4, 0.9]}),
    ("nuslerp", {"weight": [0.4, 0.9], "nuslerp_flatten": False}),
    ("nuslerp", {"weight": [0.4, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", WEIGHT),
    ("multislerp", WEIGHT | {"normalize_weights": False, "eps": 1e-6}),
    ("karcher", {}),
    ("karcher", {"max_iter": 2.0}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("task_arithmetic", WEIGHT | {"lambda": 0.7}),
    ("task_arithmetic", WEIGHT | {"normalize": True}),
    ("ties", WEIGHT | DENSITY),
    ("ties", WEIGHT | DENSITY | {"rescale": True, "normalize": False, "lambda": 0.7}),
    ("dare_linear", WEIGHT),
    ("dare_ties", WEIGHT),
    ("della_linear", WEIGHT),
    ("della", WEIGHT),
    ("breadcrumbs", WEIGHT | DENSITY | {"gamma": [0.0, 0.1, 0.05]}),
    ("breadcrumbs", WEIGHT | DENSITY | {"rescale": True, "normalize": True}),
    ("breadcrumbs_ties", WEIGHT | DENSITY | {"gamma": [0.0, 0.1, 0.05]}),
    ("sce", {}),
    ("sce", {"select_topk": 0.6}),
    ("nearswap", {"t": 0.9}),
    ("arcee_fusion", {}),
    ("ram", {"epsilon": 0.7}),
    ("ramplus_tl", {"epsilon": 2.0, "r": 0.3, "alpha": 0.5}),
    ("passthrough", {"scale": [0.7]}),
]


LEFT_IN_FLOAT32 = ("arcee_fusion", "ramplus_tl")
"""Whose factors mergekit has in float32: it leaves their result so, and we round it to `dtype` at the end."""


def mergekit(
    name: str,
    base: Tensor | None,
    models: list[Tensor],
    parameters: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    from mergekit.merge_methods.api import merge_tensors

    ids = [*(["base"] if base is not None else []), *(f"model{index}" for index in range(len(models)))]
    values: dict[str, Any] = {
        key: dict(zip(ids[-len(models) :], value, strict=True)) if isinstance(value, list) else value
        for key, value in parameters.items()
    }
    if "max_iter" in values:
        values["max_iter"] = int(values["max_iter"])
    tensors = [*([base] if base is not None else []), *models]
    return merge_tensors(tensors, name, parameters=values, ids=ids, base_index=None if base is None else 0, dtype=dtype)


def sources(name: str, shape: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor | None, list[Tensor]]:
    generator = torch.Generator().manual_seed(len(name) + len(shape))
    base = torch.randn(shape, generator=generator)
    common = 3 * torch.randn(shape, generator=generator) * scale  # so that no row's task vectors disagree
    spec = METHODS[name]
    deltas = [common + torch.randn(shape, generator=generator) * scale for _ in range(spec.max_models or 3)]
    return None if spec.base == "none" else base, [base + delta for delta in deltas]


def ours(
    name: str, base: Tensor | None, models: list[Tensor], parameters: dict[str, Any], dtype: torch.dtype
) -> Tensor:
    """Return what `evomerge merge` makes of the tensors in a recipe of that `dtype`."""
    prepared = PreparedMerge(name, base, models)
    if dtype == torch.float32 and not prepared.method.stepwise_in_float32:
        return prepared.run(**parameters)
    return prepared.steps(dtype, **parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "parameters"), COMPARED)
def test_same_result(name: str, parameters: dict[str, Any], dtype: torch.dtype) -> None:
    for shape in SHAPES:
        base, models = sources(name, shape)
        theirs = mergekit(name, base, models, parameters, dtype)
        assert theirs.dtype == (torch.float32 if name in LEFT_IN_FLOAT32 and dtype.itemsize == 2 else dtype)
        assert ulps_apart(ours(name, base, models, parameters, dtype), theirs.to(dtype)) == 0, shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_same_result_without_a_base(name: str, dtype: torch.dtype) -> None:
    _, models = sources(name, (12, 20))
    weight = {"weight": [0.4, 0.9, 0.2][: len(models)]}
    assert ulps_apart(ours(name, None, models, weight, dtype), mergekit(name, None, models, weight, dtype)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_same_result_with_our_masks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random masks are the only difference where nothing is rescaled: mergekit is handed ours."""
    parameters: dict[str, Any] = WEIGHT | DENSITY | {"rescale": False, "lambda": 0.7}
    if "della" in name:
        parameters["epsilon"] = [0.1, 0.2, 0.05]
    for shape in SHAPES:
        base, models = sources(name, shape)
        masks = [_mask(name, base, model, index, parameters) for index, model in enumerate(models)]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "bernoulli", lambda chances, left=masks: left.pop(0).to(chances).view(chances.shape))
            theirs = mergekit(name, base, models, parameters, dtype)
        assert not masks
        assert ulps_apart(ours(name, base, models, parameters, dtype), theirs) == 0, shape


def _mask(name: str, base: Tensor | None, model: Tensor, index: int, parameters: dict[str, Any]) -> Tensor:
    """Return which entries of a task vector our draws keep."""
    density = parameters["density"][index]
    (drawn,), _ = PreparedMerge(name, base, [model]).state
    if "della" in name:
        levels = keep_probability(drawn.place, density, parameters["epsilon"][index]) * LEVELS - LEVELS // 2
        return drawn.draw < levels
    return drawn.draw < levels_kept(density) - LEVELS // 2


def test_all_methods_of_both_are_compared() -> None:
    from mergekit.merge_methods import registry

    theirs = {method.spec.name for method in registry.registered_methods()}
    assert {name for name, spec in METHODS.items() if spec.in_mergekit} == set(METHODS) & theirs
    assert set(METHODS) & theirs == {name for name, _ in COMPARED}


def test_parameters_and_defaults_are_theirs() -> None:
    from mergekit import merge_methods

    for name, spec in METHODS.items():
        if spec.in_mergekit:
            theirs = {p.name: (None if p.required else p.default) for p in merge_methods.get(name).spec.parameters}
            assert {p.name: p.default for p in spec.parameters if not p.extension} == theirs, name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ties", WEIGHT | DENSITY),
        ("breadcrumbs", WEIGHT | DENSITY | {"gamma": [0.02, 0.1, 0.05]}),
        ("breadcrumbs_ties", WEIGHT | DENSITY | {"gamma": [0.02, 0.1, 0.05]}),
        ("sce", {"select_topk": 0.1}),
        ("sce", {"select_topk": 0.45}),
    ],
)
def test_equal_entries_at_a_threshold_fall_alike(merge: Merge, name: str, parameters: dict[str, Any]) -> None:
    """Models stored in bfloat16 have task vectors with many equal entries: which are kept is up to the sort."""
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(64, 96, generator=generator) * 0.05).bfloat16()
    models = [(base + torch.randn(64, 96, generator=generator) * 2e-3).bfloat16().float() for _ in range(3)]
    deltas = torch.stack(models) - base.float()
    assert len(deltas[0].abs().unique()) < deltas[0].numel() / 10
    theirs = mergekit(name, base.float(), models, parameters)
    torch.testing.assert_close(merge(name, base.float(), models, **parameters), theirs, rtol=1e-6, atol=1e-8)


# --- known differences ---


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_rescaling_by_probability_and_by_norm(merge: Merge, name: str) -> None:
    """On a norm weight of 64 entries mergekit's factor is a random number; ours is what the papers say."""
    torch.manual_seed(0)
    base, model = torch.zeros(64), torch.randn(64)
    parameters: dict[str, Any] = {"density": [0.2], "weight": [1.0]} | ({"epsilon": [0.1]} if "della" in name else {})
    factors = []
    for _ in range(50):
        theirs = mergekit(name, base, [model], parameters)
        factors.append(float((theirs / model).max()))
    assert max(factors) > 1.5 * min(factors)
    found = merge(name, base, [model], **parameters)
    kept = found != 0
    form = PreparedMerge(name, base, [model])
    place = places(form._source("tensor", model, 0))
    expected = keep_probability(place, 0.2, 0.1) if "della" in name else torch.full((64,), 0.2)
    torch.testing.assert_close(found[kept], (model / expected)[kept], rtol=1e-4, atol=1e-5)


def test_model_stock_of_models_that_disagree(merge: Merge) -> None:
    generator = torch.Generator().manual_seed(0)
    base, a, noise = (torch.randn(40, generator=generator) for _ in range(3))
    models = [base + a, base - 0.5 * a + 0.1 * noise]
    theirs = mergekit("model_stock", base, models, {})
    mean = sum(models) / 2
    assert float((theirs - base) @ (mean - base)) < 0  # away from the models
    assert torch.equal(merge("model_stock", base, models), base)


def test_sce_falls_back_to_equal_weights_alike(merge: Merge) -> None:
    base, models = sources("sce", (12, 20), scale=1e-4)
    torch.testing.assert_close(merge("sce", base, models), mergekit("sce", base, models, {}), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [50, 99, 100])
def test_breadcrumbs_of_short_tensors_keep_their_density_in_both(merge: Merge, size: int) -> None:
    """mergekit 0.1.4 kept nothing where γ·n < 1; 0.1.5 keeps what was asked, as we do."""
    model = torch.linspace(1, 2, size)
    parameters = {"weight": [1.0], "density": [0.5], "gamma": [0.01]}
    theirs = mergekit("breadcrumbs", torch.zeros(size), [model], parameters)
    assert int((theirs != 0).sum()) == size // 2
    assert torch.equal(merge("breadcrumbs", torch.zeros(size), [model], **parameters), theirs)
