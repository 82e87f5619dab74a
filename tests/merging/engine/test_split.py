"""Models that several devices share: the same numbers on a CPU, and every operation on one of two made-up GPUs."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from evomerge.merging.engine.placement import Split
from fitness.scoring.decoding import Prompt, greedy
from fitness.scoring.prefix_tree import separate, share
from fitness.scoring.quantized import quantizer
from fitness.scoring.shared_prefix import Packed, read_prefix, read_rows
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.layer_path import path_recipe
from search_spaces.recipes.layout import ModelLayout
from tests.merging.engine.test_layer_stack import logits, some_path
from tests.merging.engine.test_quantized import recipes_of

CPU = torch.device("cpu")
GPUS = (torch.device("cuda:0"), torch.device("cuda:1"))
OTHERS = ("qwen2", "gpt2", "gpt_neox")
FAMILIES = ("llama_tied", "qwen2", "gemma2", "gpt2", "gpt_neox")


def layout_of(layers):
    names = tuple(("a", "b") for _ in range(layers))
    return ModelLayout(("model.embed.weight",), names, "model.layers.{}.", ("model.norm.weight", "lm_head.weight"))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 200), st.integers(2, 4))
def test_devices_hold_layers_that_follow_each_other_and_about_as_much(layers, outside, count):
    layout = layout_of(len(layers))
    sizes = {name: outside for name in (*layout.embeddings, *layout.final)}
    sizes |= {layout.layer_tensor(at, name): size for at, size in enumerate(layers) for name in ("a", "b")}
    split = Split.of(layout, sizes, [torch.device("cuda", at) for at in range(count)])
    places = [split.device_of(layout.layer_tensor(at, "a")).index for at in range(len(layers))]
    assert places == sorted(places)
    assert {split.device_of(name).index for name in (*layout.embeddings, *layout.final, "model.rotary")} == {0}
    shares = split.shares(sizes)
    assert sum(shares) == pytest.approx(1)
    most = max(3 * outside / sum(sizes.values()), 1 / count) + 2 * 2 * max(layers) / sum(sizes.values())
    assert max(shares) <= most + 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shared_model_is_the_same_model(families, name):
    family = families(name)
    shared, alone = family.engine(devices=(CPU, CPU)), family.engine()
    for recipe in (*recipes_of(family), source_recipe(family.references[1], family.layers)):
        torch.testing.assert_close(logits(shared.apply(recipe)), logits(alone.apply(recipe)), atol=0, rtol=0)


def test_layers_in_another_order_and_rounded_weights_are_shared_too(families):
    family = families("llama")
    path = path_recipe(some_path(family)[0], family.base, 4, out_dtype="float32")
    for options in ({}, {"quantize": quantizer("int4", CPU)}):
        shared, alone = family.engine(devices=(CPU, CPU), **options), family.engine(**options)
        for recipe in (path, recipes_of(family)[0]):
            torch.testing.assert_close(logits(shared.apply(recipe)), logits(alone.apply(recipe)), atol=0, rtol=0)


def test_a_shared_model_writes_the_same(families):
    family = families("llama_tied")
    recipe, prompts = recipes_of(family)[0], [Prompt(0, (5, 6, 7, 8), 2), Prompt(1, (5, 6, 9), 2), Prompt(2, (11, 12))]
    texts = []
    for devices in ((CPU, CPU), ()):
        written = [[], [], []]

        def done(number, token, written=written):
            written[number].append(token)
            return len(written[number]) > 4

        with torch.inference_mode():
            module = family.engine(devices=devices).apply(recipe)
            greedy(module, prompts, done, rows=2, most_tokens=5, device="cpu")
        texts.append(written)
    assert texts[0] == texts[1]


INSTEAD = {
    torch.Tensor.copy_: torch.ops.aten.copy_,
    torch.Tensor.contiguous: partial(torch.ops.aten.clone, memory_format=torch.contiguous_format),
    torch.Tensor.__invert__: torch.ops.aten.bitwise_not,
}


class OnNoGpu(TorchFunctionMode):
    """Index and copy tensors that pretend to be on a GPU; torch's own methods for this ask the GPU's driver first."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return self.indexed(*args)
        return INSTEAD.get(function, function)(*args, **(kwargs or {}))

    def indexed(self, values, index):
        parts = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
            at = next(at for at, part in enumerate(parts) if part is Ellipsis)
            taken = sum(part is not None and part is not Ellipsis for part in parts)
            parts[at : at + 1] = [slice(None)] * (values.dim() - taken)
        axis, tensors = 0, []
        for part in parts:
            if part is None:
                values = values.unsqueeze(axis)
            elif isinstance(part, torch.Tensor):
                tensors += [None] * (axis - len(tensors)) + [part]
            elif isinstance(part, int):
                values, axis = values.select(axis, part), axis - 1
            elif part != slice(None):
                first, last, _ = part.indices(values.shape[axis])
                values = values.narrow(axis, first, max(0, last - first))
            axis += 1
        return torch.ops.aten.index(values, tensors) if tensors else values


@pytest.mark.parametrize("name", ["llama_tied", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_no_operation_mixes_devices(families, name, monkeypatch):
    """Merging, and both ways of reading, on two GPUs that torch only pretends to have: it refuses what mixes them."""
    family = families(name)
    layout = family.checkpoints[family.base].layout
    read = {(one, each): family.checkpoints[one].tensor(each) for one in family.references for each in layout.tensors()}
    for source in family.checkpoints.values():
        monkeypatch.setattr(type(source), "tensor", lambda one, each: read[one.reference, each])
    with FakeTensorMode(allow_non_fake_inputs=True), OnNoGpu(), torch.no_grad():
        engine = family.engine(device=GPUS[0], devices=GPUS)
        engine.place_sources("device")
        module = engine.apply(recipes_of(family)[0])
        found = {parameter: values.device for parameter, values in module.named_parameters()}
        assert {found[layout.layer_tensor(0, part)] for part in layout.layers[0]} == {GPUS[0]}
        assert {found[layout.layer_tensor(3, part)] for part in layout.layers[3]} == {GPUS[1]}
        for reference in family.references[:2]:
            tensor = layout.layer_tensor(3, layout.layers[3][0])
            assert engine._sources.tensor(reference, tensor).device == GPUS[1]
        texts = [(5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 7, 9, 10)]
        places = torch.zeros(3, dtype=torch.long, device=GPUS[0])
        for groups, prefix in product((separate(texts), share({text: 1 for text in texts})), ((), (3, 4))):
            packed = Packed.of(groups[0].rows, len(prefix), str(GPUS[0]))
            cache = read_prefix(module, prefix, str(GPUS[0])) if prefix else None
            assert read_rows(module, packed, places, places, cache).device == GPUS[0]
        for part in module.modules():
            part._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="same device"):  # what would be refused without the hooks
            read_rows(module, packed, places, places, cache)
