"""The products by oneDNN: equal to MKL's but for rounding, only without gradients, and nothing stays replaced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fitness.scoring import products
from fitness.scoring.products import fast_products, packed_bytes


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "faster_by_onednn", lambda: True)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 33), nn.SiLU(), nn.Linear(33, 70, bias=False))


@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (2, 3, 48), (2, 0, 48), (0, 48), (48,)])
def test_products_are_equal_but_for_rounding(model: nn.Sequential, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = model(x)
        with fast_products(model):
            assert "forward" in vars(model[0])
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_inputs_and_weights_that_are_parts_of_others(model: nn.Sequential) -> None:
    flat, x = torch.randn(33 * 48 + 3), torch.randn(4, 7, 96)[:, -1, ::2]
    model[0].weight = nn.Parameter(flat[3:].view(33, 48))
    with torch.inference_mode():
        expected = model(x)
        with fast_products(model):
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_packed_for_many_products_of_few_rows(model: nn.Sequential) -> None:
    few, many = torch.randn(3, 2, 48), torch.randn(products.FEW_ROWS + 1, 48)
    with torch.inference_mode():
        expected, of_many = model(few), model(many)
        with fast_products(model):
            for _ in range(products.PACKED_AFTER):
                model(many)
            assert model[0].forward._packed is None
            for _ in range(products.PACKED_AFTER + 1):
                torch.testing.assert_close(model(few), expected, rtol=1e-5, atol=1e-5)
            assert model[0].forward._packed is not None
            torch.testing.assert_close(model(many), of_many, rtol=1e-5, atol=1e-5)


def test_what_packed_weights_take_is_known(model: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_bytes(model.to("meta")) == 4 * (48 * 33 + 33 * 70)
    monkeypatch.setattr(products, "faster_by_onednn", lambda: False)
    assert packed_bytes(model) == 0


def test_weights_that_change_between_blocks_count(model: nn.Sequential) -> None:
    x = torch.randn(4, 48)
    for _ in range(2):
        with torch.inference_mode():
            model[0].weight.copy_(torch.randn(33, 48))
            expected = F.linear(F.silu(F.linear(x, model[0].weight, model[0].bias)), model[2].weight)
            with fast_products(model):
                for _ in range(products.PACKED_AFTER + 1):
                    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_the_model_is_as_before_also_after_an_error(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="stop"), torch.inference_mode(), fast_products(model):
        raise ValueError("stop")
    assert not any("forward" in vars(layer) for layer in model)


def test_gradients_flow(model: nn.Sequential) -> None:
    with fast_products(model):
        model(torch.randn(4, 48)).sum().backward()
    assert model[0].weight.grad is not None


def test_layers_that_compute_otherwise_stay(model: nn.Sequential) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model.append(Doubled(70, 3))
    model[2].forward = lambda x: torch.zeros(len(x), 70)
    model[0].to(torch.bfloat16)
    with torch.inference_mode(), fast_products(model):
        assert model[0](torch.ones(1, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16
        torch.testing.assert_close(model[2:](torch.randn(4, 33)), 2 * model[3].bias.expand(4, -1))
    assert "forward" in vars(model[2])


def test_another_data_type_is_refused_as_before(model: nn.Sequential) -> None:
    with torch.inference_mode(), fast_products(model), pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(4, 48).double())


@pytest.mark.parametrize(
    ("found", "faster"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, False),
        ({"avx512_f": True, "cpu_name": "Intel(R) Xeon(R)"}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_which_processors(monkeypatch: pytest.MonkeyPatch, found: dict[str, object], faster: bool) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.faster_by_onednn.__wrapped__() is faster
