"""Prepared state: kept by `prepare` and `apply`, not by `stream`, which other calls may interrupt."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe


def recipe(llama: Any, density: float) -> Recipe:
    models = [{"model": path, "parameters": {"weight": 0.7, "density": density}} for path in llama.references[1:]]
    return mergekit_yaml.build({"merge_method": "ties", "base_model": llama.base, "models": models, "dtype": "float32"})


def test_streams_may_run_side_by_side(llama: Any) -> None:
    names = llama.checkpoints[llama.base].names
    engine, wanted = llama.engine(), [recipe(llama, 0.3), recipe(llama, 0.6)]
    expected = [dict(llama.engine().materialize(each).named_parameters()) for each in wanted]
    streams = [engine.stream(each, names) for each in wanted]
    for pair in zip_longest(*streams):
        for (name, values), whole in zip(pair, expected, strict=True):
            assert torch.equal(values, whole[name]), name
    assert len(engine._prepared) == 0


def test_what_is_prepared_while_streaming_stays(llama: Any) -> None:
    engine = llama.engine()
    stream = engine.stream(recipe(llama, 0.3), llama.checkpoints[llama.base].names)
    next(stream)
    engine.prepare(recipe(llama, 0.6))
    held = len(engine._prepared)
    assert held > 0
    for _ in stream:
        pass
    assert len(engine._prepared) == held
