"""vLLM itself, on a CPU, in an environment of its own: a search by it is a search by the models themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evomerge.runs.run import Run, RunError, Told
from fitness.scoring.engine_config import VllmEngine
from fitness.scoring.loglikelihood import LoglikelihoodPlan, Pair
from fitness.vllm.answers import EnginePlace, VllmAnswers
from tests import vllm_environment

ZOO = Path(__file__).parents[3] / "experiments" / "zoo"
COMMAND = Path(sys.executable).parent / "evomerge"
PYTHON = vllm_environment.python()
PAIRS: list[Pair] = [((5, 6, 7, 8), (9,)), (tuple(range(5, 40)), (3, 4, 5)), (tuple(range(5, 132)), (8,))]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="there is no vLLM: python tests/vllm_environment.py makes it"),
]


def model(seed: int, **settings: Any) -> LlamaForCausalLM:
    """A random Llama with heads of a size that vLLM knows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(ZOO / "models" / "base")),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an expert near it, and one search file for each engine."""
    place = tmp_path_factory.mktemp("search")
    base, expert = model(0, tie_word_embeddings=True), model(1, tie_word_embeddings=True)
    for name, weights in expert.state_dict().items():
        weights.mul_(0.4).add_(base.state_dict()[name])
    for name, one in (("base", base), ("one", expert)):
        one.save_pretrained(place / name)
        AutoTokenizer.from_pretrained(ZOO / "models" / "base").save_pretrained(place / name)
    tasks = [{"task": "zoo_target_gen", "metric": "answer_length"}, {"task": "zoo_target_mc", "metric": "answer_loss"}]
    for engine in ({"kind": "transformers"}, {"kind": "vllm", "python": str(PYTHON)}):
        config = {
            "models": {"base": "base", "one": "one"},
            "space": {"layers_per_group": 3},
            "strategy": {"kind": "cma_es", "population": 4},
            "fitness": {
                "tasks": tasks,
                "include_path": [str(ZOO / "tasks")],
                "subset": {"items": 8, "estimator": "mean"},
                "held_out": 0.95,
                "finalists": 2,
                "engine": engine,
            },
            "budget": {"evaluations": 8},
            "out_dtype": "float32",
            "workers": {"threads": 1},
        }
        (place / f"{engine['kind']}.yaml").write_text(yaml.safe_dump(config))
    return place


def recorded(run: Path) -> dict[Any, Any]:
    """Return all evaluations of a run, by what they are of."""
    with Run.read(run) as reader:
        found = [event for event in reader.events() if hasattr(event, "evaluation")]
    return {
        (type(one).__name__, getattr(one, "id", None), getattr(one, "recipe", None)): one.evaluation for one in found
    }


def told(run: Path) -> int:
    """Return how many candidates a run has scored; 0 if it has not begun."""
    try:
        with Run.read(run) as reader:
            return sum(isinstance(event, Told) for event in reader.events())
    except (RunError, OSError):
        return 0


def test_a_killed_and_resumed_search_by_vllm_is_a_search_by_the_models_themselves(folder: Path) -> None:
    started = [COMMAND, "search", "vllm.yaml", "--run", "by-vllm"]
    search = subprocess.Popen(started, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while told(folder / "by-vllm") < 3 and search.poll() is None:
        time.sleep(0.2)
    engines = psutil.Process(search.pid).children(recursive=True)
    search.send_signal(signal.SIGKILL)
    search.wait()
    assert 3 <= told(folder / "by-vllm") < 8
    assert engines
    assert not psutil.wait_procs(engines, timeout=30)[1], "a killed search leaves an engine"
    subprocess.run([COMMAND, "resume", "by-vllm"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    arguments = [COMMAND, "search", "transformers.yaml", "--run", "own"]
    subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    theirs, own = recorded(folder / "by-vllm"), recorded(folder / "own")
    assert theirs.keys() == own.keys()
    for key, evaluation in own.items():
        assert theirs[key].status == evaluation.status == "ok"
        assert theirs[key].items == evaluation.items
        assert theirs[key].scores == pytest.approx(evaluation.scores, abs=1e-3)
        assert theirs[key].flaws == evaluation.flaws
    environment = json.loads((folder / "by-vllm" / "environment.json").read_text())
    assert environment["config"]["fitness"]["engine"] == {"kind": "vllm", "compiled": True}
    assert environment["packages"]["vllm"] == vllm_environment.VERSION
    assert environment["compute_dtype"] == "float32"


def test_weights_in_bfloat16_give_the_scores_of_the_models_themselves(folder: Path) -> None:
    """Both compute in float32 on a CPU: log-likelihoods agree to 1e-2, and texts have equal lengths."""
    found = []
    for engine in ("vllm", "transformers"):
        run = f"half-{engine}"
        changes = ["--out_dtype=bfloat16", "--budget.evaluations=4", "--fitness.finalists=1"]
        arguments = [COMMAND, "search", f"{engine}.yaml", "--run", run, *changes]
        subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        assert json.loads((folder / run / "environment.json").read_text())["compute_dtype"] == "float32"
        found.append(recorded(folder / run))
    theirs, own = found
    assert theirs.keys() == own.keys()
    farthest = 0.0
    for key, evaluation in own.items():
        assert theirs[key].items == evaluation.items
        for item, one, other in zip(evaluation.items, theirs[key].scores, evaluation.scores, strict=True):
            if item.startswith("zoo_target_gen"):
                assert one == other
            farthest = max(farthest, abs(one - other))
    assert farthest < 1e-2


def test_a_worker_of_ray_has_an_engine_of_its_own(folder: Path) -> None:
    pytest.importorskip("ray")
    (folder / "ray.yaml").write_text((folder / "vllm.yaml").read_text().replace("threads: 1", "{kind: ray, count: 1}"))
    arguments = [COMMAND, "search", "ray.yaml", "--run", "by-ray", "--budget.evaluations=4", "--fitness.finalists=1"]
    subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert told(folder / "by-ray") >= 4


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[VllmAnswers]:
    """Answers from vLLM; the parameter is the number of processes among which it splits a model."""
    place = EnginePlace("cpu", getattr(request, "param", 1), 1, lambda: psutil.virtual_memory().available)
    answering = VllmAnswers(VllmEngine(python=str(PYTHON)), place)
    yield answering
    answering.close()


def differences(engine: VllmAnswers, one: LlamaForCausalLM) -> Any:
    """Return how far log-likelihoods are from the model's own."""
    common: dict[str, Any] = {"max_length": 128, "batch_size": 4, "device": "cpu"}
    plan = engine.loglikelihoods(PAIRS, **common)
    return abs(plan.run(engine.taken(one))[0] - LoglikelihoodPlan(PAIRS, **common).run(one)[0])


def test_ten_models_one_after_the_other_leave_nothing_behind(engine: VllmAnswers) -> None:
    assert differences(engine, model(0)).max() < 1e-3
    process = psutil.Process(engine._process.pid if engine._process else 0)
    used = []
    for seed in range(1, 11):
        assert differences(engine, model(seed)).max() < 1e-3
        used.append((process.memory_info().rss, process.num_fds()))
    assert psutil.Process(engine._process.pid if engine._process else 0) == process
    assert used[-1][0] - used[1][0] < 30e6
    assert used[-1][1] == used[1][1]


@pytest.mark.parametrize("engine", [2], indirect=True)
def test_weights_are_split_among_processes_on_the_way_in(engine: VllmAnswers) -> None:
    for seed in (0, 1):
        assert differences(engine, model(seed)).max() < 1e-3
