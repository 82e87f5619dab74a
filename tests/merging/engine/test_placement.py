"""Where sources are placed: the choice by free memory, and what the engine does then. No GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.merging.engine import placement
from evomerge.merging.engine.footprint import Footprint
from evomerge.merging.engine.placement import FreeMemory, PlacementError, Share, choose, free_memory, free_together
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

GB = 10**9
CUDA, CPU, MPS = torch.device("cuda", 0), torch.device("cpu"), torch.device("mps")
MODELS = Footprint(source_bytes=6 * GB, prepared_bytes=GB, resident_bytes=2 * GB, touched_bytes=0, parameters=GB)
NEEDED = 9.6  # GB: 6 + 1 + 1.3 * 2


@pytest.mark.parametrize(
    ("on_device", "on_host", "expected"),
    [
        (NEEDED, 1, "device"),
        (NEEDED - 0.1, 12, "pinned"),
        (NEEDED - 0.1, 11.9, "mmap"),
        (None, 100, "mmap"),
    ],
)
def test_auto_takes_the_first_place_with_room(on_device: float | None, on_host: float, expected: str) -> None:
    free = FreeMemory(None if on_device is None else round(on_device * GB), round(on_host * GB))
    choice = choose("auto", CUDA, MODELS, free)
    assert choice.placement == expected
    assert (choice.source_bytes, choice.peak_bytes, choice.device) == (6 * GB, round(NEEDED * GB), "cuda:0")


@pytest.mark.parametrize("asked", ["auto", "device", "pinned", "mmap"])
def test_on_a_cpu_sources_stay_mapped(asked: Any) -> None:
    assert choose(asked, CPU, MODELS, FreeMemory(None, 0)).placement == "mmap"


@pytest.mark.parametrize(("asked", "expected"), [("auto", "mmap"), ("device", "device"), ("pinned", "mmap")])
def test_on_other_devices_only_a_copy_can_be_asked_for(asked: Any, expected: str) -> None:
    assert choose(asked, MPS, MODELS, FreeMemory(None, 0)).placement == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "device",
            r"^workers\.placement: device needs 9\.6 GB on cuda:0, and 9\.0 GB are free; write pinned, mmap or auto$",
        ),
        (
            "pinned",
            r"^workers\.placement: pinned needs 6\.0 GB of host memory, and 5\.0 GB are free; write mmap or auto$",
        ),
    ],
)
def test_what_does_not_fit_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        choose(asked, CUDA, MODELS, FreeMemory(9 * GB, 5 * GB))


def test_a_worker_counts_on_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15 * GB, 16 * GB))
    alone, one_of_four = (free_memory(CUDA, share) for share in (Share(), Share(device=0.25, host=0.25)))
    assert (alone.device, one_of_four.device) == (15 * GB, 4 * GB)
    assert one_of_four.host < alone.host / 2
    assert free_memory(CPU, Share()).device is None


def test_pinned_sources_are_copied_once_and_merge_alike(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def pin(values: torch.Tensor) -> torch.Tensor:
        copied.append(values)
        return values.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    engine, recipe = llama.engine(), _recipe(llama)
    expected = {name: values.clone() for name, values in engine.apply(recipe).named_parameters()}
    assert not copied
    engine.place_sources("pinned")
    footprint = engine.footprint(recipe)
    assert not copied  # costs are known without doing it
    for _ in range(2):
        module = engine.apply(recipe)
        assert all(torch.equal(expected[name], values) for name, values in module.named_parameters())
    assert sum(values.nbytes for values in copied) == footprint.source_bytes


def test_sources_on_the_device_are_there_before_a_candidate(llama: Any) -> None:
    engine = llama.engine(device="meta")
    engine.place_sources("device")
    engine.prepare(_recipe(llama))
    placed = list(engine._sources._tensors.values())
    assert sum(values.nbytes for values in placed) == engine.footprint(_recipe(llama)).source_bytes
    assert {values.device.type for values in placed} == {"meta"}


def _recipe(llama: Any) -> Recipe:
    models = [{"model": path, "parameters": {"weight": 0.4}} for path in llama.references[1:]]
    return mergekit_yaml.build(
        {"merge_method": "task_arithmetic", "base_model": llama.base, "models": models, "dtype": "float32"}
    )


def test_devices_that_share_a_model_have_room_for_what_the_fullest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda:0": FreeMemory(6 * GB, 50), "cuda:1": FreeMemory(3 * GB, 50), "cpu": FreeMemory(None, 50)}
    monkeypatch.setattr(placement, "free_memory", lambda device, _: free[str(device)])
    one = torch.device("cuda:1")
    assert free_together([(CUDA, 0.5), (one, 0.5)], Share()) == FreeMemory(6 * GB, 50)
    assert free_together([(CUDA, 0.75), (one, 0.25)], Share()) == FreeMemory(8 * GB, 50)
    assert free_together([(CUDA, 1.0), (one, 0.0)], Share()) == FreeMemory(6 * GB, 50)
    assert free_together([(CPU, 1.0)], Share()) == FreeMemory(None, 50)
    with pytest.raises(PlacementError, match=r"9\.6 GB on cuda:0 and cuda:1, and 6\.0 GB are free"):
        choose("device", CUDA, MODELS, FreeMemory(6 * GB, 50), name="cuda:0 and cuda:1")
