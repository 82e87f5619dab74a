"""``python -m experiments.fitness_accuracy.validation --responses DIR``: the default on merges it did not learn from.

The learnt prior is learnt again without the merges that it is tested on: from one half of the merges (by a hash of the
parents' names) for the other, both ways, and from two benchmarks for the third. Then candidates that are unlike their
parents are made from the same merges, with priors learnt from the other half: on items that no parent solves, an answer
becomes right with some probability (emergent); any answer becomes wrong with some probability (collapse); answers are
guesses; or the parents are those of another merge. Scores that are not 0 or 1 are made of the answers of merge and
parents: right answers have a quality between 0 and 1 and wrong ones are 0 (spiked), or each has a loss.

The floor of the error at a size is what is left if a merge's coefficients are known, fitted to all its answers: the
unasked items' own noise √(Σ p(1 − p)) / I, after asking those with the largest p(1 − p).
"""

from __future__ import annotations

import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.fitness_accuracy.calibration import calibrate
from experiments.fitness_accuracy.data import Benchmark, load, simulate
from experiments.fitness_accuracy.learn import CALIBRATION, SEED, Learnt, all_merges, learn_from
from experiments.harness import Experiment, Results
from fitness.estimation import EstimatorInputs, parent_prior
from fitness.estimation.estimators import inherited
from fitness.estimation.irt import sigmoid
from fitness.estimation.laplace import Answers, laplace
from fitness.estimation.parent_prior import Prior, prior
from fitness.estimation.posterior import posterior
from fitness.estimation.subset import default_subset
from fitness.results import Estimate

SIZES = (20, 30, 50, 100)
MEAN_DRAWS = 20  # random subsets for the error of their mean
KNOWN_SCALE = 4.0  # width of the prior that coefficients known from all answers have, in those of the learnt one

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""(answers [items], parents' answers [parents, items], rng) -> other answers."""
Grade = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(0/1 answers [models, items], rng) -> their scores, of any size."""


def emergent(share: float) -> Change:
    """Answers become right with this probability where no parent is right."""
    return lambda answers, parents, rng: np.where(
        (parents.sum(0) == 0) & (rng.random(answers.size) < share), 1.0, answers
    )


def collapse(share: float) -> Change:
    """Answers become wrong with this probability."""
    return lambda answers, parents, rng: np.where(rng.random(answers.size) < share, 0.0, answers)


def guesses(rate: float) -> Change:
    """Answers are right with this probability, whatever the item."""
    return lambda answers, parents, rng: (rng.random(answers.size) < rate).astype(float)


CHANGES: Mapping[str, Change] = {
    "as published": lambda answers, parents, rng: answers,
    **{f"emergent {share:.0%}": emergent(share) for share in (0.2, 0.5, 0.8)},
    **{f"collapse {share:.0%}": collapse(share) for share in (0.1, 0.3, 0.7, 1.0)},
    "guesses, 25 % right": guesses(0.25),
    "guesses, 50 % right": guesses(0.5),
}
WRONG_PARENTS = "wrong parents"


def spiked(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Right answers have a quality, mostly the item's; wrong ones are 0, as with ROUGE."""
    quality = rng.beta(4, 2, scores.shape[1]) + 0.1 * rng.normal(size=scores.shape)
    return np.asarray(scores * np.clip(quality, 0.05, 1))


def losses(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Negative losses of a log-normal size, mostly the item's, larger where the answer is wrong."""
    size = np.exp(rng.normal(0, 0.5, scores.shape[1]) + 0.3 * rng.normal(size=scores.shape))
    return np.asarray(-size * np.where(scores == 1, 0.3, 1.5))


GRADES: Mapping[str, Grade] = {"scores with a spike at 0": spiked, "losses": losses}


@dataclass(frozen=True, eq=False)
class Case:
    """A merge of a benchmark: its answers, its parents', and the banks of one calibration."""

    benchmark: Benchmark
    row: int
    parents: tuple[int, ...]
    draw: int
    listed: bool

    @property
    def answers(self) -> np.ndarray:
        """float64[I]."""
        return self.benchmark.scores[self.row]

    @property
    def parent_scores(self) -> np.ndarray:
        """float64[T, I]."""
        return self.benchmark.scores[list(self.parents)]

    def prior(self, parents: np.ndarray | None = None) -> Prior:
        """Return its prior, with its own parents or others."""
        banks = calibrate("merges", self.benchmark, CALIBRATION, SEED, self.draw).banks
        return prior(self.answers.size, self.parent_scores if parents is None else parents, banks)


@dataclass(frozen=True)
class Record:
    """One estimate of a case."""

    benchmark: str
    row: int
    listed: bool
    items: int
    error: float
    standard_error: float
    mean_error: float


@dataclass(frozen=True)
class Cell:
    """Figures of a table's row at one size; pp. `spread`: standard error of `error` over merges."""

    error: float
    spread: float
    coverage: float
    mean_error: float
    by_benchmark: Mapping[str, float]


@contextmanager
def using(learnt: Learnt) -> Iterator[None]:
    """Let the default use this prior."""
    before = parent_prior.WITH_BANK, parent_prior.WITHOUT_BANK, parent_prior.SHARES
    parent_prior.WITH_BANK, parent_prior.WITHOUT_BANK = learnt.with_bank, learnt.without_bank
    parent_prior.SHARES = learnt.shares
    try:
        yield
    finally:
        parent_prior.WITH_BANK, parent_prior.WITHOUT_BANK, parent_prior.SHARES = before


def cases(benchmarks: Sequence[Benchmark], draws: int) -> list[Case]:
    """Return every merge once per draw of a calibration."""
    return [
        Case(benchmark, row, parents, draw, (row, parents) in benchmark.merges)
        for benchmark in benchmarks
        for row, parents in all_merges(benchmark)
        for draw in range(draws)
    ]


def half(benchmark: Benchmark, parents: Sequence[int]) -> int:
    """Return which half of the merges one with these parents belongs to, on every benchmark."""
    names = [benchmark.models[row] if benchmark.models else str(row) for row in parents]
    return zlib.crc32(" ".join(sorted(names)).encode()) % 2


def measure(
    found: Sequence[Case], sizes: Sequence[int], changes: Mapping[str, Change], wrong: bool = False
) -> dict[str, list[Record]]:
    """Return the estimates of each kind of change; with `wrong`, each case has another merge's parents."""
    records: dict[str, list[Record]] = {name: [] for name in changes}
    for number, case in enumerate(found):
        parents = _other_parents(found, number) if wrong else case.parent_scores
        given = case.prior(parents)
        for size in (size for size in sizes if size < case.answers.size):
            asked = default_subset(given, size, seed=SEED, generation=number)
            for name, change in changes.items():
                rng = np.random.default_rng([SEED, number, size])
                answers = change(case.answers, parents, rng)
                records[name].append(record_of(case, answers, posterior(given, answers[asked], asked), size, rng))
    return records


def record_of(case: Case, answers: np.ndarray, estimate: Estimate, size: int, rng: np.random.Generator) -> Record:
    """Return an estimate's record; `rng` draws the random answers whose mean it is compared with."""
    truth = float(answers.mean())
    random = [answers[rng.choice(answers.size, size, replace=False)].mean() for _ in range(MEAN_DRAWS)]
    return Record(
        case.benchmark.name,
        case.row,
        case.listed,
        size,
        estimate.value - truth,
        estimate.standard_error,
        float(np.abs(np.array(random) - truth).mean()),
    )


def measure_graded(found: Sequence[Case], sizes: Sequence[int]) -> dict[str, list[Record]]:
    """Return the estimates of scores that are not 0 or 1; nothing is learnt for them."""
    records: dict[str, list[Record]] = {name: [] for name in GRADES}
    for number, case in enumerate(found):
        for size in (size for size in sizes if size < case.answers.size):
            for name, grade in GRADES.items():
                rng = np.random.default_rng([SEED, number, size])
                scores, *parents = grade(np.stack((case.answers, *case.parent_scores)), rng)
                known = EstimatorInputs(scores.size, parents=np.stack(parents))
                asked = default_subset(known.prior, size, seed=SEED, generation=number)
                records[name].append(record_of(case, scores, inherited(scores[asked], asked, known), size, rng))
    return records


def floors(found: Sequence[Case], sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return the error at each size if coefficients were known, in pp: benchmark to size to its average."""
    by_name: dict[str, dict[int, list[float]]] = {}
    for case in found:
        given, items = case.prior(), case.answers.size
        every = Answers.of(given.design, given.offset, [(case.answers, np.arange(items))])
        u_F = laplace(given.mean, KNOWN_SCALE * given.covariance, [1.0], every).mean[0, 0]
        p_I = sigmoid(given.offset + given.design @ u_F)
        noise_I = np.sort(p_I * (1 - p_I))[::-1]
        of_case = by_name.setdefault(case.benchmark.name, {size: [] for size in sizes})
        for size in sizes:
            of_case[size].append(100 * (2 / np.pi) ** 0.5 * float(noise_I[size:].sum()) ** 0.5 / items)
    return {
        name: {size: float(np.mean(errors)) for size, errors in by_size.items()} for name, by_size in by_name.items()
    }


def _other_parents(found: Sequence[Case], number: int) -> np.ndarray:
    case = found[number]
    others = [each for each in found if each.benchmark is case.benchmark and not set(each.parents) & set(case.parents)]
    return others[int(np.random.default_rng([SEED, number]).integers(len(others)))].parent_scores


def summarise(records: Sequence[Record]) -> Cell:
    """Return the average over benchmarks; the standard error is that of merges, which draws share."""
    names = sorted({record.benchmark for record in records})
    errors, spreads, covers, means = [], [], [], []
    for name in names:
        own = [record for record in records if record.benchmark == name]
        by_row = [np.mean([abs(each.error) for each in own if each.row == row]) for row in {each.row for each in own}]
        errors.append(100 * float(np.mean([abs(each.error) for each in own])))
        spreads.append(100 * float(np.std(by_row, ddof=1) / len(by_row) ** 0.5) if len(by_row) > 1 else 0.0)
        covers.append(100 * float(np.mean([abs(each.error) <= 1.96 * each.standard_error + 1e-12 for each in own])))
        means.append(100 * float(np.mean([each.mean_error for each in own])))
    spread = float(np.linalg.norm(spreads) / len(names))
    return Cell(
        float(np.mean(errors)),
        spread,
        float(np.mean(covers)),
        float(np.mean(means)),
        dict(zip(names, errors, strict=True)),
    )


def _by_size(records: Sequence[Record], sizes: Sequence[int]) -> dict[str, dict[str, object]]:
    """Return the summary at each size that has records."""
    own = {size: [each for each in records if each.items == size] for size in sizes}
    return {str(size): asdict(summarise(found)) for size, found in own.items() if found}


def accuracy(benchmarks: Sequence[Benchmark], draws: int, sizes: Sequence[int]) -> dict[str, list[Record]]:
    """Return the records of each way to learn: label to records."""
    everything = cases(benchmarks, draws)
    found: dict[str, list[Record]] = {"learnt from the other half": [], "learnt from the other benchmarks": []}
    as_published = {"": CHANGES["as published"]}
    for side in (0, 1):
        learnt = learn_from(benchmarks, (draws,), lambda *merge, side=side: half(*merge) != side)
        with using(learnt):
            tested = [case for case in everything if half(case.benchmark, case.parents) == side]
            found["learnt from the other half"] += measure(tested, sizes, as_published)[""]
    for benchmark in benchmarks:
        learnt = learn_from([each for each in benchmarks if each is not benchmark], (draws,))
        with using(learnt):
            tested = [case for case in everything if case.benchmark is benchmark]
            found["learnt from the other benchmarks"] += measure(tested, sizes, as_published)[""]
    found["as shipped, learnt from all"] = measure(everything, sizes, as_published)[""]
    return found


def robustness(benchmarks: Sequence[Benchmark], draws: int, sizes: Sequence[int]) -> dict[str, list[Record]]:
    """Return the records of each kind of candidate, with priors learnt from the other half."""
    everything = cases(benchmarks, draws)
    found: dict[str, list[Record]] = {name: [] for name in (*CHANGES, WRONG_PARENTS)}
    found.update(measure_graded(everything, sizes))
    for side in (0, 1):
        with using(learn_from(benchmarks, (draws,), lambda *merge, side=side: half(*merge) != side)):
            tested = [case for case in everything if half(case.benchmark, case.parents) == side]
            for name, records in measure(tested, sizes, CHANGES).items():
                found[name] += records
            wrong = measure(tested, sizes, {WRONG_PARENTS: CHANGES["as published"]}, wrong=True)
            found[WRONG_PARENTS] += wrong[WRONG_PARENTS]
    return found


def tables(results: Results) -> list[str]:
    """Return the tables of accuracy, one row for each way to learn and list of merges, of floors and of robustness."""
    sizes = [str(size) for size in results["sizes"]]
    lines = ["| prior | merges | benchmark | " + " | ".join(f"n={size}" for size in sizes) + " |"]
    lines.append("|---" * (3 + len(sizes)) + "|")
    for label, lists in results["accuracy"].items():
        for which, cells in lists.items():
            shown = [cells[size] for size in sizes]
            all_of = " | ".join(
                f"{cell['error']:.2f} ± {cell['spread']:.2f}, {cell['coverage']:.0f} %" for cell in shown
            )
            lines.append(f"| {label} | {which} | average | {all_of} |")
            for name in shown[0]["by_benchmark"]:
                each = " | ".join(f"{cell['by_benchmark'].get(name, float('nan')):.2f}" for cell in shown)
                lines.append(f"| | | {name} | {each} |")
    floor = ["| benchmark | " + " | ".join(f"n={size}" for size in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
    known: Mapping[str, Mapping[str, float]] = results["floors"]
    for name, by_size in known.items():
        floor.append(f"| {name} | " + " | ".join(f"{by_size[size]:.2f}" for size in sizes) + " |")
    average = [sum(by_size[size] for by_size in known.values()) / len(known) for size in sizes]
    floor.append("| average | " + " | ".join(f"{error:.2f}" for error in average) + " |")
    robust = ["| candidates | " + " | ".join(f"n={size}" for size in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
    for name, by_size in results["robustness"].items():
        robust.append(f"| {name} | " + " | ".join(_beside_mean(by_size[size]) for size in sizes) + " |")
    return ["\n".join(lines), "\n".join(floor), "\n".join(robust)]


def _beside_mean(cell: Mapping[str, float]) -> str:
    """Return an error, the mean's, their ratio and the coverage."""
    error, mean = cell["error"], cell["mean_error"]
    ratio = f"{error / mean:.2f}" if mean > 0 else "–"
    return f"{error:.2f} ({mean:.2f}), {ratio}, {cell['coverage']:.0f} %"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="one draw; simulated responses unless --responses is given")
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    parser.add_argument("--draws", type=int, default=4, help="calibrations per merge")
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    benchmarks = load(given.responses) if given.responses else simulate(SEED)
    draws, sizes = (1, (20,)) if given.quick else (given.draws, SIZES)
    out, start = EXPERIMENT.destination(given), time.perf_counter()
    found = accuracy(benchmarks, draws, sizes)
    robust = robustness(benchmarks, draws, sizes)
    floor = floors(cases(benchmarks, 1), sizes)
    results: Results = {
        "draws": draws,
        "sizes": list(sizes),
        "merges": {
            b.name: {"listed": len(b.merges), "named": len(b.named), "items": b.scores.shape[1]} for b in benchmarks
        },
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "accuracy": {
            label: {
                which: _by_size(own, sizes)
                for which, own in (
                    ("listed", [each for each in records if each.listed]),
                    ("named", [each for each in records if not each.listed]),
                )
                if own
            }
            for label, records in found.items()
        },
        "floors": {name: {str(size): error for size, error in by_size.items()} for name, by_size in floor.items()},
        "robustness": {name: _by_size(records, sizes) for name, records in robust.items()},
    }
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, module="validation", file="validation.json", marker="validation")

if __name__ == "__main__":
    main()
