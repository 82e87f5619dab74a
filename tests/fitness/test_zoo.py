"""The zoo's tasks and models through lm-eval and through the evaluator: equal, item for item."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fitness.config import FitnessConfig
from fitness.scoring.evaluator import Evaluator
from fitness.tasks.suite import TaskSuite

ZOO = Path(__file__).parents[2] / "experiments" / "zoo"
ITEMS = 48


@pytest.fixture(scope="module")
def candidate() -> tuple[Any, Any]:
    """A merge that gets some items right: task arithmetic with 0.8 for every expert."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, *experts = (
        AutoModelForCausalLM.from_pretrained(ZOO / "models" / name, dtype=torch.float32)
        for name in ("base", "ops", "ja", "eo")
    )
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with torch.no_grad():
        for expert in experts:
            for name, tensor in expert.state_dict().items():
                base.state_dict()[name].add_(0.8 * (tensor - start[name]))
    return base.eval(), AutoTokenizer.from_pretrained(ZOO / "models" / "base")


@pytest.mark.parametrize("task", ["zoo_target_gen", "zoo_target_mc", "zoo_ops_en"])
def test_scores_equal_lm_eval_item_for_item(task: str, candidate: tuple[Any, Any]) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = candidate
    config = FitnessConfig.model_validate(
        {"tasks": [{"task": task}], "include_path": [str(ZOO / "tasks")], "held_out": "test"}
    )
    suite = TaskSuite.load(config, seed=0)
    asked = suite.pool.held_out[task][:ITEMS]
    scores = Evaluator(suite, tokenizer).score(model, [item.id for item in asked])
    with mock.patch("lm_eval.evaluator.add_env_info"):  # starts processes for two seconds
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
            tasks=[task],
            task_manager=TaskManager(include_path=str(ZOO / "tasks"), include_defaults=False),
            samples={task: [item.index for item in asked]},
            bootstrap_iters=0,
        )
    metric = suite.metrics[task].split(",")[0]
    expected = {sample["doc_id"]: float(sample[metric]) for sample in results["samples"][task]}
    assert [expected[item.index] for item in asked] == scores.scores.tolist()
    assert scores.scores.std() > 0
