"""What a model computes on the device: a gradient step, and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evomerge.merging.derivatives.activations import measure
from evomerge.merging.derivatives.watched import watched
from evomerge.merging.engine.engine import MergeEngine
from experiments.gpu.merging import METHODS
from experiments.gpu.setting import Setting
from experiments.merge_speed.cases import recipe
from fitness.scoring.decoding import greedy
from fitness.scoring.reading import Prompt
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

PAGE = 256
"""Tokens of a page of the cache of `generate_batch`."""


def gradient_step(setting: Setting) -> dict[str, Any]:
    """Take derivatives of a loss by all coefficients: time, and memory against what `evomerge plan` would say."""
    device, sizes = setting.device, setting.sizes
    engine, candidate = _engine(setting, setting.models, device.name)
    rows = max(1, sizes.rows // 4)
    batch = torch.tensor(setting.tokens(rows, sizes.width), device=device.name)
    engine.prepare(candidate)
    engine.apply(candidate)
    _, merge = device.timed(lambda: engine.apply(candidate))
    expected = measure(engine.apply(candidate), engine.layout).bytes(
        rows=rows, width=sizes.width, kept=sizes.width, scored=rows * (sizes.width - 1), recomputed=False
    )
    _step(engine, candidate, batch)
    held = device.allocated()
    (derivatives, seconds), peak = device.peak(lambda: device.timed(lambda: _step(engine, candidate, batch)))
    return {
        "rows": rows,
        "coefficients": len(derivatives),
        "merge": merge,
        "seconds": seconds,
        "held_bytes": held,
        "peak_bytes": peak,
        "expected_activation_bytes": expected,
        "differs": _derivatives_differ(setting),
    }


def _derivatives_differ(setting: Setting) -> float:
    """Return the largest difference of a derivative between the device and the CPU, over the largest derivative."""
    batch = torch.tensor([[token % 1_000 for token in row] for row in setting.tokens(2, setting.sizes.width)])
    found = []
    for name in (setting.device.name, "cpu"):
        engine, candidate = _engine(setting, setting.small, name, "float32")
        found.append(list(_step(engine, candidate, batch.to(name)).values()))
    here, there = (torch.tensor(values) for values in found)
    return float((here - there).abs().max() / there.abs().max())


def _engine(setting: Setting, paths: list[str], device: str, dtype: str = "bfloat16") -> tuple[MergeEngine, Recipe]:
    engine = MergeEngine(setting.opened(paths), base=paths[0], device=device)
    engine.place_sources("device")
    candidate = mergekit_yaml.build({**recipe(METHODS[1], paths, 2, 0), "out_dtype": dtype})
    return engine, candidate


def _step(engine: MergeEngine, candidate: Recipe, batch_NS: torch.Tensor) -> dict[Any, float]:
    with watched(engine, candidate) as model:
        logits_NSV = model.module(input_ids=batch_NS, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits_NSV.flatten(0, 1), batch_NS[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return dict(model.derivatives)


def generation(setting: Setting) -> dict[str, Any]:
    """Generate answers of equal and of unequal lengths: ours, `model.generate`, and `generate_batch` where it runs."""
    sizes, device = setting.sizes, setting.device
    module = setting.module()
    prompts = setting.tokens(sizes.prompts, sizes.width)
    unequal = [1 + (7 * index) % sizes.new_tokens for index in range(sizes.prompts)]
    ways: dict[str, Callable[[Sequence[int]], list[list[int]]]] = {
        "ours": lambda lengths: _ours(setting, module, prompts, lengths),
        "generate": lambda lengths: _generate(setting, module, prompts, lengths),
        "generate_batch": lambda lengths: _generate_batch(module, prompts, lengths),
    }
    found: dict[str, Any] = {}
    for kind, lengths in (("equal", [sizes.new_tokens] * sizes.prompts), ("unequal", unequal)):
        found[kind] = {"tokens": sum(lengths)}
        answers: dict[str, list[list[int]]] = {}
        for way, run in ways.items():
            try:
                run(lengths)  # compiles and allocates
                answers[way], seconds = device.timed(lambda run=run, lengths=lengths: run(lengths))
            except Exception as error:  # transformers' own batching does not run everywhere
                found[kind][way] = {"error": f"{type(error).__name__}: {error}"[:300]}
                continue
            same = sum(a == b for a, b in zip(answers[way], answers["ours"], strict=True))
            found[kind][way] = {"tokens_per_second": sum(lengths) / seconds, "same_answers": same}
    return found


def _ours(setting: Setting, module: Any, prompts: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]

    def done(number: int, token: int) -> bool:
        answers[number].append(token)
        return len(answers[number]) >= lengths[number]

    asked = [Prompt(number, tuple(prompt)) for number, prompt in enumerate(prompts)]
    with torch.inference_mode():
        greedy(module, asked, done, rows=setting.sizes.rows, most_tokens=max(lengths), device=setting.device.name)
    return answers


def _generate(setting: Setting, module: Any, prompts: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Batches in order; a batch continues until its longest answer is done, which is all that `generate` can do."""
    answers, rows = [], setting.sizes.rows
    for start in range(0, len(prompts), rows):
        batch = torch.tensor(prompts[start : start + rows], device=setting.device.name)
        own = lengths[start : start + rows]
        mask = torch.ones_like(batch)
        texts = module.generate(batch, attention_mask=mask, max_new_tokens=max(own), do_sample=False)
        new = texts[:, batch.shape[1] :].tolist()
        answers += [answer[:length] for answer, length in zip(new, own, strict=True)]
    return answers


def _generate_batch(module: Any, prompts: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Transformers' continuous batching; it knows one length for all, so the answers are cut."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    if not hasattr(module, "generate_batch"):
        raise RuntimeError("this transformers has none")
    settings = GenerationConfig(max_new_tokens=max(lengths), do_sample=False, eos_token_id=-1, pad_token_id=0)
    pages = -(
        -(len(prompts[0]) + max(lengths)) // PAGE
    )  # of a prompt; unasked, it takes nearly all memory that is free
    room = ContinuousBatchingConfig(page_size=PAGE, num_blocks=len(prompts) * pages + 8)
    found = module.generate_batch(prompts, generation_config=settings, continuous_batching_config=room)
    if len(found) != len(prompts):
        raise RuntimeError(f"{len(found)} of {len(prompts)} prompts were answered")
    by_prompt = {tuple(each.prompt_ids): list(each.generated_tokens) for each in found.values()}
    return [by_prompt[tuple(prompt)][:length] for prompt, length in zip(prompts, lengths, strict=True)]
