"""Merges on the device: against the bandwidth of a copy, and with sources in each place."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.placement import ComputeDtype, Placement
from experiments.gpu.setting import Device, Setting
from experiments.gpu.traffic import Traffic
from experiments.merge_speed.cases import recipe
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties")
AIM = 0.7
"""Share of the device's bandwidth that `apply` is to reach."""


def apply(setting: Setting) -> dict[str, Any]:
    """Time each method with its sources on the device; the limit is a copy from device to device."""
    bandwidth = _bandwidth(setting.device, setting.sizes.copied, setting.device.name)
    return {"bandwidth": bandwidth, "methods": [_method(setting, method, bandwidth) for method in METHODS]}


def _method(setting: Setting, method: str, bandwidth: float) -> dict[str, Any]:
    device = setting.device
    engine = _engine(setting, setting.models, "device")
    recipes = _recipes(method, setting.models, setting.sizes.repeats + 1)
    _, prepare = device.timed(lambda: engine.prepare(recipes[0]))
    (_, first), peak = device.peak(lambda: device.timed(lambda: engine.apply(recipes[0])))
    seconds = min(device.timed(lambda each=each: engine.apply(each))[1] for each in recipes[1:])
    cost = engine.footprint(recipes[0])
    limit = cost.touched_bytes / bandwidth
    return {
        "method": method,
        "parameters": cost.parameters,
        "prepare": prepare,
        "first": first,
        "apply": seconds,
        "touched_bytes": cost.touched_bytes,
        "limit": limit,
        "share": limit / seconds,
        "peak_bytes": peak,
        "planned_bytes": cost.peak_bytes,
        "differs": _differs(setting, method),
        "moved": _moved(setting, method),
    }


def _moved(setting: Setting, method: str) -> float:
    """Return how many times the bytes of the limit the operations of a small merge read and write."""
    engine = _engine(setting, setting.small, "device", "bfloat16")
    first, second = _recipes(method, setting.small, 2)
    engine.apply(first)  # prepares
    with Traffic() as traffic:
        engine.apply(second)
    return traffic.bytes / engine.footprint(second).touched_bytes


def _differs(setting: Setting, method: str) -> float:
    """Return the largest difference of a weight between a small merge on the device and the same on the CPU."""
    candidate = _recipes(method, setting.small, 1)[0]
    here = _engine(setting, setting.small, "device").apply(candidate)
    there = MergeEngine(setting.opened(setting.small), base=setting.small[0]).apply(candidate)
    expected = dict(there.named_parameters())
    return max(
        float((values.float().cpu() - expected[name].float()).abs().max()) for name, values in here.named_parameters()
    )


def placements(setting: Setting) -> dict[str, Any]:
    """Time task arithmetic with sources in each place that the machine has."""
    device, found = setting.device, []
    places: tuple[Placement, ...] = ("device", "pinned", "mmap") if device.is_gpu else ("device", "mmap")
    candidates = _recipes("task_arithmetic", setting.models, 1 + min(4, setting.sizes.repeats))
    for place in places:
        engine = _engine(setting, setting.models, place)
        held = device.allocated()
        _, first = device.timed(lambda engine=engine: engine.apply(candidates[0]))
        times = [device.timed(lambda engine=engine, each=each: engine.apply(each))[1] for each in candidates[1:]]
        cost = engine.footprint(candidates[0])
        found.append(
            {
                "place": place,
                "first": first,
                "apply": min(times),
                "device_bytes": device.allocated() - held,
                "source_bytes": cost.source_bytes,
                "sources_per_second": cost.source_bytes / min(times),
            }
        )
        del engine
    upload = _bandwidth(device, setting.sizes.copied, "cpu") / 2  # a byte is read here and written there
    return {"upload": upload, "places": found}


def _engine(setting: Setting, paths: list[str], place: Placement, compute_dtype: ComputeDtype = "auto") -> MergeEngine:
    device = setting.device.name
    engine = MergeEngine(setting.opened(paths), base=paths[0], device=device, compute_dtype=compute_dtype)
    engine.place_sources(place)
    return engine


def _recipes(method: str, paths: list[str], count: int) -> list[Recipe]:
    return [mergekit_yaml.build(recipe(method, paths, len(paths) - 1, turn)) for turn in range(count)]


def _bandwidth(device: Device, count: int, start: str) -> float:
    """Return the bytes per second, read and written, of the fastest copy to the device; pinned if from the host."""
    source = torch.ones(count, dtype=torch.uint8, device=start, pin_memory=device.is_gpu and start == "cpu")
    target = torch.empty(count, dtype=torch.uint8, device=device.name)
    device.best(lambda: target.copy_(source), 2)  # touches the pages
    return 2 * count / device.best(lambda: target.copy_(source, non_blocking=True), 10)
