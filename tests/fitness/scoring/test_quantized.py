"""Quantised linear layers against plain ones, sizes that fill no group, and what is not quantised."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, LlamaConfig

from evomerge.merging.sources.architecture import meta_module
from fitness.results import TaskError
from fitness.scoring import quantized
from fitness.scoring.quantized import GROUP, LAYERS, quantizable, quantize, quantizer

CPU = torch.device("cpu")
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def layer_of(kind, weight, bias=None):
    """Return a quantised layer that has taken a weight."""
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.bias = None if bias is None else nn.Parameter(bias)
    layer = LAYERS[kind](plain, CPU)
    layer.take(weight)
    return layer


def by_hand(kind, weight, x):
    """Return x Wᵀ in float64, weights (and inputs for int8) rounded one row or group at a time."""
    if kind == "int8":
        rows = [np.round(row / (abs(row).max() / 127 or 1.0)) * (abs(row).max() / 127) for row in weight]
        tokens = [np.round(row / (abs(row).max() / 127 or 1.0)) * (abs(row).max() / 127) for row in x]
        return np.array(tokens) @ np.array(rows).T
    found = np.empty_like(weight)
    for row, start in np.ndindex(weight.shape[0], -(-weight.shape[1] // GROUP)):
        group = weight[row, start * GROUP : (start + 1) * GROUP]
        low = half(group.min())
        step = half((group.max() - low) / 15)
        codes = np.clip(np.round((group - low) / step), 0, 15) if step else 0 * group
        found[row, start * GROUP : (start + 1) * GROUP] = codes * step + low
    return x @ found.T


def half(value):
    return float(torch.tensor(value, dtype=torch.float32).bfloat16())


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), tokens=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_layer_of_any_size_is_a_product_of_rounded_matrices(kind, rows, columns, tokens, seed):
    torch.manual_seed(seed)
    weight, x, bias = torch.randn(rows, columns), torch.randn(2, tokens, columns), torch.randn(rows)
    with torch.no_grad():
        found = layer_of(kind, weight, bias)(x)
    assert found.shape == (2, tokens, rows)
    if not tokens:
        return
    expected = by_hand(kind, weight.double().numpy(), x.double().view(-1, columns).numpy()) + bias.double().numpy()
    size = float(np.abs(expected).max(initial=1.0))
    # a value halfway between two codes may go either way: one step of one input, of 1/127 or 1/15 of the range
    np.testing.assert_allclose(found.view(-1, rows).numpy(), expected, atol=0.05 * size)
    assert float(np.abs(found.view(-1, rows).numpy() - expected).mean()) < 2e-3 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("int4", 0.11)])
def test_errors_are_those_of_the_bits(kind, error, dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(96, 128, dtype=dtype) * 0.02, torch.randn(50, 128, dtype=dtype)
    found, expected = layer_of(kind, weight)(x), functional.linear(x.float(), weight.float())
    assert found.dtype == dtype
    assert 1e-3 < float((found.float() - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_takes_one_weight_after_another_in_place(kind):
    torch.manual_seed(0)
    first, second, x = torch.randn(24, 40), torch.randn(24, 40), torch.randn(3, 40)
    layer = layer_of(kind, first)
    places = [values.data_ptr() for values in layer.buffers()]
    layer.take(second)
    assert places == [values.data_ptr() for values in layer.buffers()]
    torch.testing.assert_close(layer(x), layer_of(kind, second)(x), atol=0, rtol=0)
    for weight in (torch.zeros(24, 40), torch.full((24, 40), 0.5)):  # no range to divide by
        layer.take(weight)
        torch.testing.assert_close(layer(x), functional.linear(x, weight), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_weights_and_inputs_stay_broken(kind, broken):
    weight, x = torch.randn(8, 40), torch.randn(3, 40)
    weight[2, 3], x[1, 5] = broken, float("nan")
    found = layer_of(kind, weight)(x)
    assert not found[:, 2].isfinite().any() and not found[1].isfinite().any()
    assert found[0, [0, 1, 3]].isfinite().all()


def test_all_linear_layers_but_the_output_are_quantised():
    module = meta_module(LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True))
    before = set(dict(module.named_parameters()))
    names = quantizable(module)
    assert len(names) == 2 * 7 and "lm_head" not in names
    takers = quantize(module, lambda _: CPU, "int8")
    assert set(takers) == {f"{name}.weight" for name in names}
    assert set(dict(module.named_parameters())) == before - set(takers)  # biases, norms and embeddings stay
    assert quantized.is_quantized(module)


def test_a_layer_that_shares_its_weight_is_not_quantised():
    module = meta_module(LlamaConfig(**TINY))
    mlp = module.model.layers[0].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight
    assert not {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"} & set(quantizable(module))


def test_a_model_without_plain_linear_layers_is_refused():
    module = meta_module(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32))
    with pytest.raises(TaskError, match=r"^fitness\.engine: GPT2LMHeadModel has no plain linear layers .* remove"):
        quantize(module, lambda _: CPU, "int4")


def test_a_device_without_integer_products_is_refused_in_one_line(monkeypatch):
    def lacking(*_):
        raise NotImplementedError("The operator 'aten::_int_mm' is not implemented\nfor the MPS device")

    assert quantizer("int8", CPU)
    monkeypatch.setattr(torch, "_int_mm", lacking)
    with pytest.raises(
        TaskError, match=r"^fitness\.engine: quantization int8 .* cpu \(.*implemented\); write int4, or"
    ):
        quantizer("int8", CPU)
    assert quantizer("int4", CPU)


@pytest.mark.parametrize("kind", LAYERS)
def test_sizes_are_those_of_the_layers_that_are_made(kind):
    module = meta_module(LlamaConfig(**TINY))
    sizes = quantized.quantized_sizes(module, kind)
    quantize(module, lambda _: CPU, kind)
    made = [layer for layer in module.modules() if isinstance(layer, quantized.QuantizedLinear)]
    assert sizes.stored == sum(values.nbytes for layer in made for values in layer.buffers())
    assert sizes.weights == 2 * (4 * 32 * 32 + 3 * 32 * 48) and sizes.largest == 32 * 48


def test_a_fine_tune_of_a_model_from_a_file_of_4_bits_is_not_rounded_back_to_it():
    """Groups of 32 find the codes of such a file again, and differences below half a step are lost."""
    torch.manual_seed(0)
    codes, step, low = torch.randint(0, 16, (64, 8, 32)), torch.rand(64, 8, 1) + 0.5, torch.randn(64, 8, 1)
    codes[..., :2] = torch.tensor([0, 15])  # the smallest and the largest weight, as such files have them
    base = (codes * step.bfloat16().float() + low.bfloat16().float()).view(64, 256)
    change = 0.01 * torch.randn_like(base)
    rounded = [layer_of("int4", weight).weight(torch.float32) for weight in (base, base + change)]
    kept = torch.dot((rounded[1] - rounded[0]).flatten(), change.flatten()) / change.square().sum()
    assert 0.6 < float(kept) < 1.4
