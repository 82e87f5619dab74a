"""Which models were right on which items, from the files people have, and item banks from that.

Three sources: lm-eval's sample logs (`lm_eval --log_samples` writes `OUT/MODEL/samples_TASK_TIME.jsonl`), a
responses matrix in an `.npz`, and the per-item scores of a run of our own. None of them is ever unpickled.

Letters: J models, I items.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import ItemBank, ItemPriors, check_scores, fit_2pl, fit_mirt
from fitness.items import positions_by_task

Array = npt.NDArray[np.float64]

SAMPLES = re.compile(r"samples_(?P<task>.+?)_\d{4}-\d{2}-\d{2}T[\d.:\-]+\.jsonl$")
SAMPLES_UNDATED = re.compile(r"samples_(?P<task>.+)\.jsonl$")
ITEM_BANKS_FORMAT = "evomerge item banks 1"
BANK_ARRAYS = ("discrimination", "difficulty", "abilities")
FEWEST_MODELS = 2
MODELS_PER_DIMENSION = 10  # fewer cannot tell the dimensions apart
DIMENSIONS = 5  # tinyBenchmarks chooses between 5 and 10


@dataclass(frozen=True, eq=False)
class Responses:
    """Scores of models on items.

    Attributes
    ----------
    models, items
        Names, J and I of them, each once.
    scores
        float64[J, I] in [0, 1]; NaN where a model was not asked.
    """

    models: tuple[str, ...]
    items: tuple[str, ...]
    scores: Array

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.models), len(self.items)):
            raise ValueError(
                f"responses have shape {self.scores.shape} for {len(self.models)} models and {len(self.items)} items: "
                "give one row per model and one column per item"
            )
        check_scores(self.scores, missing=True)
        for kind, names in (("model", self.models), ("item", self.items)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{kind} {twice!r} occurs twice in the responses: keep one")


def read_matrix(path: str | os.PathLike[str]) -> Responses:
    """Read a responses matrix from an `.npz`.

    Arrays: `responses`, either numbers [J, I] in [0, 1] or bits packed along the items (`numpy.packbits(x, axis=1)`)
    with their `shape`; `models` and `items`, names or numbers, which may be left out.

    Raises
    ------
    ValueError
        The file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            response = arrays["responses"]
            if "shape" in arrays.files:
                models, items = (int(n) for n in arrays["shape"])
                if response.dtype != np.uint8 or response.shape != (models, -(-items // 8)):
                    raise ValueError(f"responses {response.shape} do not hold {models} × {items} bits")
                response = np.unpackbits(response, axis=1, count=items)
            if response.ndim != 2:
                raise ValueError(f"responses have shape {response.shape}")
            names = [
                tuple(map(str, arrays[key])) if key in arrays.files else tuple(map(str, range(size)))
                for key, size in zip(("models", "items"), response.shape, strict=True)
            ]
            return Responses(names[0], names[1], response.astype(np.float64))
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises half a dozen kinds for damaged files
        raise ValueError(
            f"{path}: not a responses matrix ({error}): give an .npz with `responses` [models, items], "
            "`models` and `items`"
        ) from error


def read_csv(path: str | os.PathLike[str]) -> Responses:
    """Read a responses matrix from a CSV file: a header of item names, then one row per model, its name first.

    An empty cell is a missing answer.

    Raises
    ------
    ValueError
        A row of another length than the header, or a cell that is no number in [0, 1].
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{path}: no responses matrix: give a header `model,item,...` and one row per model")
    header, *body = rows
    scores = np.full((len(body), len(header) - 1), math.nan)
    for at, row in enumerate(body):
        if len(row) != len(header):
            raise ValueError(f"{path}, model {row[0]!r}: {len(row)} cells, the header has {len(header)}: fill them up")
        for column, cell in enumerate(row[1:]):
            try:
                scores[at, column] = float(cell) if cell.strip() else math.nan
            except ValueError:
                raise ValueError(
                    f"{path}, model {row[0]!r}, item {header[column + 1]!r}: {cell!r} is no number: give 0 to 1"
                ) from None
    try:
        return Responses(tuple(row[0] for row in body), tuple(header[1:]), scores)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def by_task(responses: Responses, task: str | None = None, split: str = "test") -> dict[str, Responses]:
    """Split a matrix into those of its tasks.

    Parameters
    ----------
    responses
        Items are named `task/split/index`, as in a run; or anything else, such as the document's number in its split,
        where `task` is given.
    task, split
        What `task/split/` to put before the names of the items; all of one task, then.

    Raises
    ------
    ValueError
        Items of another name, and no task.
    """
    if task is not None:
        items = tuple(f"{task}/{split}/{item}" for item in responses.items)
        return {task: Responses(responses.models, items, responses.scores)}
    unnamed = next((item for item in responses.items if item.count("/") < 2), None)
    if unnamed is not None:
        raise ValueError(
            f"item {unnamed!r} does not say its task: name it task/split/index, or give --task and --split"
        )
    found = {}
    for name, where in positions_by_task(responses.items).items():
        scores = responses.scores[:, where]
        asked = np.flatnonzero(~np.isnan(scores).all(axis=1))  # the others tell nothing of this task
        models = tuple(responses.models[at] for at in asked)
        found[name] = Responses(models, tuple(responses.items[at] for at in where), scores[asked])
    return found


def read_samples(
    paths: Iterable[str | os.PathLike[str]],
    metric: str | None = None,
    filter_name: str | None = None,
    split: str = "test",
) -> dict[str, Responses]:
    """Read lm-eval's sample logs.

    A model is named by the folder that its log lies in, as lm-eval writes it; of several logs of one model and task
    the last by name, the newest, counts. Items are named `task/split/doc_id`, as in a run.

    Parameters
    ----------
    paths
        `samples_*.jsonl` files, and folders that are searched for them.
    metric
        Key of the score in each line; by default the first of the line's `metrics`.
    filter_name
        lm-eval's filter (a task with two writes each item twice); by default that of the file's first line.
    split
        Split that the logs were made on; logs do not say.

    Returns
    -------
    responses
        Task name to its matrix: the models and items of any log, NaN where a model has no answer.

    Raises
    ------
    ValueError
        No logs, or a line that cannot be read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError("no samples_*.jsonl found: run lm_eval with --log_samples and give its output folder")
    logs: dict[str, dict[str, dict[int, float]]] = {}  # task, model, document
    for file in sorted(files):
        match = SAMPLES.search(file.name) or SAMPLES_UNDATED.search(file.name)
        if match is None:
            raise ValueError(f"{file}: not named samples_TASK_TIME.jsonl: give lm-eval's sample logs")
        logs.setdefault(match["task"], {})[file.resolve().parent.name] = _read_log(file, metric, filter_name)
    return {task: _matrix(task, split, models) for task, models in logs.items()}


def _matrix(task: str, split: str, models: Mapping[str, Mapping[int, float]]) -> Responses:
    documents = sorted(set().union(*models.values()))
    scores = [[answers.get(document, math.nan) for document in documents] for answers in models.values()]
    items = tuple(f"{task}/{split}/{document}" for document in documents)
    return Responses(tuple(models), items, np.array(scores, np.float64).reshape(len(models), len(documents)))


def _read_log(file: Path, metric: str | None, filter_name: str | None) -> dict[int, float]:
    """Document number to score."""
    answers: dict[int, float] = {}
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                sample = json.loads(line)
                document, kind = int(sample["doc_id"]), sample.get("filter")
            except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{place}: not a sample of lm-eval ({error}): log with --log_samples") from error
            filter_name = kind if filter_name is None else filter_name
            if kind != filter_name:
                continue
            answers[document] = _score(sample, metric, place)
    if not answers:
        raise ValueError(f"{file}: no samples with filter {filter_name!r}: name one that the file has")
    return answers


def _score(sample: Mapping[str, object], metric: str | None, place: str) -> float:
    if metric is None:
        metrics = sample.get("metrics")
        if not isinstance(metrics, list) or not metrics:
            raise ValueError(f"{place}: lists no metrics: name the metric, such as acc")
        metric = str(metrics[0])
    value = sample.get(metric)
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{place}: metric {metric!r} is {value!r}: name one with a score from 0 to 1")
    return float(value)


def from_run(evaluations: Mapping[str, tuple[Sequence[str], npt.ArrayLike]]) -> Responses:
    """Responses from a run's own scores.

    Parameters
    ----------
    evaluations
        Model or candidate name to its (item ids, float[] scores); they need not have been asked the same items.
    """
    if not evaluations:
        raise ValueError("there are no evaluations to calibrate on: let the first generation answer all items")
    items = tuple(dict.fromkeys(item for ids, _ in evaluations.values() for item in ids))
    column = {item: index for index, item in enumerate(items)}
    score_JI = np.full((len(evaluations), len(items)), np.nan)
    for row, (name, (ids, scores)) in enumerate(evaluations.items()):
        values = np.asarray(scores, np.float64).ravel()
        if values.size != len(ids):
            raise ValueError(f"{name!r} has {values.size} scores for {len(ids)} items: give one score per item")
        score_JI[row, [column[item] for item in ids]] = values
    return Responses(tuple(evaluations), items, score_JI)


@dataclass(frozen=True, eq=False)
class ItemBanks:
    """What other models tell of the items of one or several tasks.

    Attributes
    ----------
    responses
        Task name to the scores of other models.
    banks
        Task name to the item parameters fitted to them.
    """

    responses: Mapping[str, Responses]
    banks: Mapping[str, tuple[ItemBank, ...]]

    def of(self, task: str, items: Sequence[str]) -> tuple[tuple[ItemBank, ...], Array | None]:
        """Banks and other models' scores float64[J, I] of these items, in this order.

        The scores are None unless every model answered every item.

        Raises
        ------
        ValueError
            If the task or one of the items is not in it.
        """
        if task not in self.banks:
            raise ValueError(
                f"there is no item bank for task {task!r}, only for {', '.join(self.banks)}: fit its items too"
            )
        banks = tuple(bank.select(items) for bank in self.banks[task])
        known = self.responses[task]
        column = {item: at for at, item in enumerate(known.items)}
        score_JI = known.scores[:, [column[item] for item in items]]
        return banks, None if np.isnan(score_JI).any() else score_JI

    def save(self, file: BinaryIO) -> None:
        """Write it as one `.npz` (arrays, and the rest as JSON) into a file opened for writing."""
        header: dict[str, Any] = {"format": ITEM_BANKS_FORMAT, "tasks": {}}
        arrays: dict[str, Any] = {}
        for number, (task, responses) in enumerate(self.responses.items()):
            arrays[f"{number}.responses"] = responses.scores.astype(np.float32)
            facts = []
            for index, bank in enumerate(self.banks[task]):
                facts.append(dict(bank.facts))
                arrays |= {f"{number}.{index}.{name}": getattr(bank, name) for name in BANK_ARRAYS}
            header["tasks"][task] = {"models": responses.models, "items": responses.items, "banks": facts}
        arrays["header"] = np.frombuffer(json.dumps(header, ensure_ascii=False).encode(), np.uint8)
        np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ItemBanks:
        """Read what `save` wrote; nothing is ever unpickled.

        Raises
        ------
        ValueError
            The file is missing, or something else.
        """
        responses, banks = {}, {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes().decode())
                if header["format"] != ITEM_BANKS_FORMAT:
                    raise KeyError(header["format"])
                for number, (task, part) in enumerate(header["tasks"].items()):
                    items = tuple(map(str, part["items"]))
                    scores = arrays[f"{number}.responses"].astype(np.float64)
                    responses[task] = Responses(tuple(map(str, part["models"])), items, scores)
                    banks[task] = tuple(
                        _bank(items, {name: arrays[f"{number}.{index}.{name}"] for name in BANK_ARRAYS}, facts)
                        for index, facts in enumerate(part["banks"])
                    )
        except Exception as error:  # numpy, zipfile and json raise half a dozen kinds for damaged files
            raise ValueError(
                f"{path}: not a file of item banks ({type(error).__name__}: {error}): "
                "write one with `evomerge fit-items`"
            ) from error
        return cls(responses, banks)


def _bank(items: tuple[str, ...], arrays: Mapping[str, Array], facts: Mapping[str, object]) -> ItemBank:
    return ItemBank(items, arrays["discrimination"], arrays["difficulty"], arrays["abilities"], dict(facts))


def fit_item_banks(
    responses: Responses, priors: ItemPriors | None = None, dimensions: int | None = None
) -> tuple[ItemBank, ...]:
    """Item banks for the default estimator: 2PL and, with enough models, the multidimensional model.

    Parameters
    ----------
    dimensions
        D of the second bank; 1 leaves it out. By default 5, or as many as there are tens of models.

    Raises
    ------
    ValueError
        Fewer than 2 models, or an item that no model was asked.
    """
    models = len(responses.models)
    if models < FEWEST_MODELS:
        raise ValueError(f"{models} model: fitting items needs at least {FEWEST_MODELS}, and tens to be of use")
    unasked = np.isnan(responses.scores).all(0)
    if unasked.any():
        item = responses.items[int(unasked.argmax())]
        raise ValueError(f"item {item!r} was asked of no model: leave it out of the responses")
    if dimensions is None:
        dimensions = min(DIMENSIONS, models // MODELS_PER_DIMENSION, len(responses.items))
    banks = [fit_2pl(responses.scores, responses.items, priors)]
    if dimensions > 1:
        banks.append(fit_mirt(responses.scores, dimensions, responses.items, priors))
    return tuple(banks)
