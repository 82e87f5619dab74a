"""Recipes drawn at random, in the ways that published ones vary: for the comparison with mergekit."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from search_spaces.recipes.methods import METHODS, MethodSpec, Parameter

LAYERS = 4
MODELS = ("chat", "math", "code", "story")
FILTERS = ("self_attn", "mlp", "o_proj", "layernorm", "embed_tokens", "lm_head", "norm", "*", "layers.1.")
RANGES = {
    "weight": (0.1, 1.2),
    "density": (0.1, 1.0),
    "gamma": (0.0, 0.1),
    "t": (0.0, 1.0),
    "lambda": (0.3, 1.5),
    "scale": (0.2, 1.5),
    "select_topk": (0.05, 1.0),
    "epsilon": (1e-4, 1e-3),
    "r": (0.0, 0.5),
    "alpha": (0.0, 0.5),
}
NOISE = ("layer_range", "license", "residual_weight", "weights", "normalise", "comment", "strength")
DRAWN = tuple(name for name, spec in METHODS.items() if spec.in_mergekit)
DTYPES = (None, "float32", "float32", "bfloat16", "float16", "float64")
OUT_DTYPES = (None, None, "bfloat16", "float16", "float32")


ADAPTERS = ("style", "wide", "words", "dora")


def with_adapters(data: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a recipe in which each model has one of the adapters on it, or none; most have none."""
    worn = {name: f"{name}+{chance.choice(ADAPTERS)}" if chance.random() < 0.3 else name for name in MODELS}

    def dressed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: worn.get(inner, inner) if key in _NAMING else dressed(inner) for key, inner in value.items()}
        return [dressed(inner) for inner in value] if isinstance(value, list) else value

    result: dict[str, Any] = dressed(data)
    return result


_NAMING = ("model", "base_model")


class Draw:
    """A recipe as plain data, from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def recipe(self) -> dict[str, Any]:
        """Return a recipe."""
        chance = self._random
        method = chance.choice(DRAWN)
        spec = METHODS[method]
        data: dict[str, Any] = {"merge_method": method}
        for key, dtype in (("dtype", chance.choice(DTYPES)), ("out_dtype", chance.choice(OUT_DTYPES))):
            if dtype is not None:
                data[key] = dtype
        models = self._models(spec)
        if spec.base == "required" or chance.random() < 0.4:
            data["base_model"] = "origin" if spec.base != "none" else models[0]
        sliced = method == "passthrough" or chance.random() < 0.5
        data |= self._slices(data, spec, models) if sliced else self._whole(spec, models)
        shared = {name: value for name, value in self._parameters(spec, per_model=False).items() if name != "int8_mask"}
        common = self._parameters(spec, per_model=True)
        data["parameters"] = common | shared | ({"int8_mask": True} if chance.random() < 0.3 else {})
        if chance.random() < 0.3:
            data[chance.choice(NOISE)] = chance.choice((1, "text", [0, 4]))
        return data

    def _models(self, spec: MethodSpec) -> list[str]:
        most = spec.max_models or len(MODELS)
        return self._random.sample(MODELS, self._random.randint(min(max(1, spec.min_models), most), most))

    def _whole(self, spec: MethodSpec, models: list[str]) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for model in models:
            entry: dict[str, Any] = {"model": model}
            if self._random.random() < 0.6:
                entry["parameters"] = self._parameters(spec, per_model=True)
            if self._random.random() < 0.15:
                entry[self._random.choice(NOISE)] = [0, 4]
            entries.append(entry)
        if spec.base == "required" and self._random.random() < 0.4:
            entries.insert(0, {"model": "origin"})
        return {"models": entries}

    def _slices(self, data: dict[str, Any], spec: MethodSpec, models: list[str]) -> dict[str, Any]:
        cuts = sorted({0, LAYERS, *(self._random.randint(1, LAYERS - 1) for _ in range(self._random.randint(0, 2)))})
        slices = []
        for start, end in pairwise(cuts):
            sources: list[dict[str, Any]] = [{"model": model, "layer_range": [start, end]} for model in models]
            if spec.base != "none" and "base_model" in data:
                sources.append({"model": "origin", "layer_range": [start, end]})
            for source in sources:
                if source["model"] != "origin" and self._random.random() < 0.5:
                    source["parameters"] = self._parameters(spec, per_model=True)
            part: dict[str, Any] = {"sources": sources}
            if self._random.random() < 0.4:
                part["parameters"] = self._parameters(spec, per_model=self._random.random() < 0.5)
            if self._random.random() < 0.15:
                part[self._random.choice(NOISE)] = 0.5
            slices.append(part)
        return {"slices": slices}

    def _parameters(self, spec: MethodSpec, *, per_model: bool) -> dict[str, Any]:
        asked = [p for p in spec.parameters if p.per_model == per_model and not p.extension and not p.after]
        drawn = {p.name: self._setting(p) for p in asked if p.required or self._random.random() < 0.5}
        if self._random.random() < 0.1:
            drawn[self._random.choice(("densty", "temperature", "t", "gamma"))] = 0.5
        return drawn

    def _setting(self, parameter: Parameter) -> Any:
        if parameter.kind is bool:
            return self._random.random() < 0.5
        if parameter.name in ("eps", "max_iter", "tol"):
            return parameter.default
        kind = self._random.random()
        if kind < 0.55:
            return self._number(parameter)
        if kind < 0.75:
            return [self._number(parameter) for _ in range(self._random.randint(1, 5))]
        conditions: list[dict[str, Any]] = [
            {"filter": self._random.choice(FILTERS), "value": self._number(parameter)}
            for _ in range(self._random.randint(1, 2))
        ]
        return [*conditions, {"value": [self._number(parameter), self._number(parameter)]}]

    def _number(self, parameter: Parameter) -> float:
        low, high = RANGES[parameter.name]
        return round(self._random.uniform(low, high), 5)
