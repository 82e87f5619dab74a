"""Runs that were never searched: their events are written here."""

import numpy as np
import pytest
import yaml

from evomerge.runs.report import drawings, figures
from evomerge.runs.result import Result, Row, rows_text
from evomerge.runs.run import Asked, ReferenceScore, Run, Told
from evomerge.runs.verdict import Comparison, Verdict
from evomerge.strategies.base import Candidate
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml

SECONDS = {"merge": 1.25, "score": 2.5, "wait": 0.25}
LAYOUT = {
    "embeddings": ["model.embed_tokens.weight"],
    "layers": [["self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"]] * 3,
    "layer_prefix": "model.layers.{}.",
    "final": ["model.norm.weight"],
    "attention": "self_attn",
    "mlp": "mlp",
}
RECIPE = """
merge_method: task_arithmetic
base_model: /models/base
models:
- model: /models/base
- model: /models/ops
  parameters: {weight: [{filter: self_attn, value: 0.25}, {value: [0.5, 1.5]}]}
- model: /models/ja
  parameters: {weight: -0.5}
parameters: {lambda: 0.9}
dtype: float32
"""


def items(count, task="t", split="test"):
    return tuple(f"{task}/{split}/{number}" for number in range(count))


def scored(value, asked, **changes):
    """Return an evaluation in which so large a part of the items is right."""
    right = round(value * len(asked))
    scores = np.array([1.0] * right + [0.0] * (len(asked) - right), np.float32)
    given = {"status": "ok", "objectives": (float(scores.mean()),), "standard_errors": (0.125,)} | changes
    return Evaluation(items=asked, scores=scores, seconds=SECONDS, **given)


class Writer:
    """Writes a run directory event by event."""

    def __init__(self, path, **config):
        self.path = path
        models = {name: f"/models/{name}" for name in ("base", "ops", "ja")}
        tasks = [{"task": "t", "weight": 1.0}]
        values = {"models": models, "strategy": {"kind": "random"}, "fitness": {"tasks": tasks}, "seed": 7} | config
        environment = {"evomerge": "9.9", "packages": {"torch": "9.9"}, "layout": LAYOUT, "references": models}
        self.run = Run.create(path, yaml.safe_dump(values, sort_keys=False), environment)
        self.count, self.elapsed = 0, 0.0

    def candidate(self, evaluation, kind="sample", generation=None, parents=(), recipe=None, cached=False):
        """Record a candidate with its evaluation; return its id."""
        identity = self.count
        genotype = np.random.default_rng(identity).random(2)
        generation = identity if generation is None else generation
        asked = Asked(Candidate(identity, genotype, kind, generation, tuple(parents)), recipe or f"recipe{identity}")
        self.count, self.elapsed = identity + 1, self.elapsed + 5.0
        self.run.record(asked)
        self.run.record(Told(identity, evaluation, cached, self.elapsed))
        return identity

    def reference(self, purpose, recipe, evaluation):
        """Record a score beside the candidates."""
        self.run.record(ReferenceScore(purpose, recipe, evaluation))

    def finish(self, rows=None, verdict=None):
        """Write a result, and the recipes of two of its rows."""
        rows = rows or [
            Row("found", "found", "t", 0.75, 0.5, 0.9, 40, 0.012),
            Row("base", "source", "t", 0.25, 0.1, 0.4, 40, 0.012),
        ]
        verdict = verdict or Verdict("better", rows[0].name, "It is better.", (Comparison("base", 0.5, 0.024),))
        result = Result(rows, "recipe1", self.count, 9, {}, 0.8, 0.05, verdict=verdict)
        (self.path / "result.json").write_text(result.to_json())
        recipe = mergekit_yaml.parse(RECIPE)
        (self.path / "best.yaml").write_text(mergekit_yaml.dump(recipe, "found"))
        (self.path / "rows.json").write_text(rows_text({"found": recipe}))
        return self

    def close(self):
        self.run.close()
        return self.path


@pytest.fixture(autouse=True)
def valid_figures(monkeypatch):
    """Check each figure against Vega-Lite's schema, which a report does not."""

    def spec_of(chart, height=None):
        chart.to_dict(validate=True)
        return figures.spec_of(chart, height)

    monkeypatch.setattr(drawings, "spec_of", spec_of)


@pytest.fixture
def writer(tmp_path):
    """Return a function that begins a run directory, with changes of its search file."""
    made = []

    def begin(name="run", **config):
        made.append(Writer(tmp_path / name, **config))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def small(writer):
    """Return the directory of an unfinished run with two scored candidates and a failed one."""
    run = writer()
    for value in (0.25, 0.5):
        run.candidate(scored(value, items(4)))
    run.candidate(Evaluation.failed("out of <memory>", SECONDS))
    return run.close()
