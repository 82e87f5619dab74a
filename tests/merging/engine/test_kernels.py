"""The compiled kernels and the threads: the same weights as without, for whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.threads import MergeThreads
from evomerge.testing.merge_methods import merge_tensors
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe
from tests.conftest import required

required("numba")

TILE = 1024
"""Entries that compiled code writes at a time."""

METHODS = ("slerp", "dare_ties", "magmax", "iso_c")


def recipe(family: Any, method: str) -> Recipe:
    experts = family.references[1:2] if method == "slerp" else family.references[1:]
    weight = {} if method == "slerp" else {"weight": 0.7}
    own = {"slerp": {"t": 0.3}, "dare_ties": {"density": 0.6}}.get(method, {})
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": path, "parameters": weight} for path in experts],
        "parameters": own,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method != "linear":
        data["base_model"] = family.base
    return mergekit_yaml.build(data)


def filled(engine: MergeEngine, wanted: Recipe) -> dict[str, Tensor]:
    return {name: values.data.clone() for name, values in engine.apply(wanted).named_parameters()}


@pytest.fixture
def merge() -> Callable[..., Tensor]:
    return merge_tensors


@pytest.fixture
def tensors() -> Callable[..., list[Tensor]]:
    def make(count: int, *shape: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(count)
        return [torch.randn(shape or (211,), generator=generator) for _ in range(count)]

    return make


@pytest.fixture
def two_threads() -> Any:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("method", "dtype"), [("dare_ties", "float32"), *((method, "bfloat16") for method in METHODS)])
def test_large_models_are_merged_alike(llama: Any, method: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merging.engine.tensor_merge.UNIT", 700)  # so that tensors are split
    expected = filled(llama.engine(compute_dtype=dtype), recipe(llama, method))
    engine = llama.engine(compute_dtype=dtype, large=0)
    for _ in range(2):
        found = filled(engine, recipe(llama, method))
        assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert engine._threads._pool is not None


def test_small_models_start_no_threads(llama: Any) -> None:
    engine = llama.engine()
    engine.apply(recipe(llama, "linear"))
    assert engine._threads._pool is None


@pytest.mark.parametrize("count", [1, 8])
def test_any_number_of_models(merge: Callable[..., Tensor], tensors: Callable[..., list[Tensor]], count: int) -> None:
    base, *models = (values.bfloat16() for values in tensors(count + 1, 40, 31))
    weight = [0.3 + 0.1 * index for index in range(count)]
    for method, own in (("linear", {}), ("ties", {"density": 0.4})):
        start = None if method == "linear" else base
        expected = merge(method, start, models, weight=weight, **own)
        assert torch.equal(merge(method, start, models, weight=weight, compiled=True, **own), expected)


@pytest.mark.parametrize(
    ("method", "out_dtype"),
    [
        ("task_arithmetic", torch.float32),
        ("dare_linear", torch.float32),
        ("dare_ties", torch.float32),
        ("dare_ties", torch.bfloat16),
    ],
)
def test_whole_tiles_and_what_is_left(
    merge: Callable[..., Tensor], tensors: Callable[..., list[Tensor]], method: str, out_dtype: torch.dtype
) -> None:
    base, *models = (values.to(out_dtype) for values in tensors(3, 3 * TILE + 37))
    options: dict[str, Any] = {"weight": [0.4, 0.7], "normalize": True, "lambda_": 0.9, "out_dtype": out_dtype}
    options |= {} if method == "task_arithmetic" else {"density": [0.5, 0.8]}
    expected = merge(method, base, models, **options)
    assert torch.equal(merge(method, base, models, compiled=True, **options), expected)


def test_rounding_is_torchs(merge: Callable[..., Tensor]) -> None:
    """Ties to even, overflow to infinity, subnormal numbers, NaN."""
    special = torch.tensor([0.0, -0.0, 1e-40, 3.3895e38, -3.4e38, float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8])
    values = torch.cat([special, torch.randn(1000, generator=torch.Generator().manual_seed(0))])
    found = merge("passthrough", None, [values], out_dtype=torch.bfloat16, compiled=True)
    assert torch.equal(found.isnan(), values.isnan())
    numbers = ~values.isnan()  # torch's own NaNs differ by place in the tensor
    assert torch.equal(found[numbers].view(torch.int16), values.bfloat16()[numbers].view(torch.int16))


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_other_dtypes_are_left_to_torch(
    merge: Callable[..., Tensor], tensors: Callable[..., list[Tensor]], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    models = [values.to(dtype) for values, dtype in zip(tensors(2), dtypes, strict=True)]
    for out_dtype in (torch.float16, torch.float32):
        options = {"weight": [0.3, 0.6], "out_dtype": out_dtype}
        found = merge("linear", None, models, compiled=True, **options)
        assert torch.equal(found, merge("linear", None, models, **options))


def test_an_error_in_a_thread_is_raised_after_all_have_ended() -> None:
    class Work:
        is_whole_matrix = uses_all_threads = False

    done: list[int] = []

    def fail(_: Any) -> None:
        raise ValueError("this unit")

    torch.set_num_threads(2)
    try:
        threads = MergeThreads(torch.device("cpu"), None)
        with pytest.raises(ValueError, match="this unit"), threads.queue(parallel=True) as queue:
            queue.add(Work, fail)  # type: ignore[arg-type]
            for index in range(20):
                queue.add(Work, lambda _, index=index: done.append(index))  # type: ignore[arg-type, misc]
        assert sorted(done) == list(range(20))
        with pytest.raises(KeyError), threads.queue(parallel=True) as queue:
            queue.add(Work, fail)  # type: ignore[arg-type]
            raise KeyError
    finally:
        torch.set_num_threads(1)
