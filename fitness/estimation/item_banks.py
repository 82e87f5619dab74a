"""Item banks: reading other models' answers to a task's items, and fitting item parameters to them.

Answers come from lm-eval's sample logs (`lm_eval --log_samples` writes `OUT/MODEL/samples_TASK_TIME.jsonl`), from a
matrix of responses in an `.npz` or CSV file, or from the scores of one of our runs. Nothing is unpickled.

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

from fitness.estimation.arrays import MOST_ENTRIES, check_regular, open_arrays
from fitness.estimation.irt import ItemBank, ItemPriors, check_scores, fit_2pl, fit_mirt
from fitness.items import positions_by_task

Array = npt.NDArray[np.float64]

SAMPLES = re.compile(r"samples_(?P<task>.+?)_\d{4}-\d{2}-\d{2}T[\d.:\-]+\.jsonl$")
SAMPLES_UNDATED = re.compile(r"samples_(?P<task>.+)\.jsonl$")
ITEM_BANKS_FORMAT = "evomerge item banks 1"
BANK_ARRAYS = ("discrimination", "difficulty", "abilities")
FEWEST_MODELS = 2
MODELS_PER_DIMENSION = 10  # with fewer models, dimensions cannot be distinguished
DIMENSIONS = 5  # tinyBenchmarks chooses between 5 and 10


@dataclass(frozen=True, eq=False)
class Responses:
    """Scores of models on items.

    Attributes
    ----------
    models, items
        Distinct names, J and I of them.
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
                raise ValueError(f"{kind} {twice!r} occurs twice in the responses: keep one of them")


def read_matrix(path: str | os.PathLike[str]) -> Responses:
    """Read a responses matrix from an `.npz`.

    Arrays: `responses`, either numbers [J, I] in [0, 1] or bits packed along the items (`numpy.packbits(x, axis=1)`)
    with their `shape`; optionally `models` and `items`, names or numbers.

    Raises
    ------
    ValueError
        The file is not such a matrix.
    """
    try:
        with open_arrays(path) as arrays:
            response = arrays["responses"]
            if "shape" in arrays.files:
                models, items = (int(n) for n in arrays["shape"])
                if models * items > MOST_ENTRIES:
                    raise ValueError(f"{models} × {items} are more than {MOST_ENTRIES:,} answers")
                if response.dtype != np.uint8 or response.shape != (models, -(-items // 8)):
                    raise ValueError(f"responses {response.shape} do not contain {models} × {items} bits")
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
    except Exception as error:  # numpy raises many types for damaged files
        said = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path}: not a responses matrix ({said}): give an .npz with `responses` [models, items], "
            "`models` and `items`"
        ) from error


def read_csv(path: str | os.PathLike[str]) -> Responses:
    """Read a responses matrix from a CSV file: a header of item names, then one row per model, its name first.

    An empty cell is a missing answer.

    Raises
    ------
    ValueError
        A row differs in length from the header, or a cell is not a number in [0, 1].
    """
    check_regular(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{path}: not a matrix of responses: give a header `model,item,...` and one row per model")
    header, *body = rows
    scores = np.full((len(body), len(header) - 1), math.nan)
    for at, row in enumerate(body):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, model {row[0]!r}: {len(row)} cells, the header has {len(header)}: write one cell per item"
            )
        for column, cell in enumerate(row[1:]):
            try:
                scores[at, column] = float(cell) if cell.strip() else math.nan
            except ValueError:
                raise ValueError(
                    f"{path}, model {row[0]!r}, item {header[column + 1]!r}: {cell!r} is not a number: give 0 to 1"
                ) from None
    try:
        return Responses(tuple(row[0] for row in body), tuple(header[1:]), scores)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def by_task(responses: Responses, task: str | None = None, split: str = "test") -> dict[str, Responses]:
    """Split a matrix by task.

    Parameters
    ----------
    responses
        Items are named `task/split/index`, as in a run; or, with `task`, anything, such as the document's number in its
        split.
    task, split
        If given, all items belong to this task, and `task/split/` is put before their names.

    Raises
    ------
    ValueError
        Items are named differently, and `task` is not given.
    """
    if task is not None:
        items = tuple(f"{task}/{split}/{item}" for item in responses.items)
        return {task: Responses(responses.models, items, responses.scores)}
    unnamed = next((item for item in responses.items if item.count("/") < 2), None)
    if unnamed is not None:
        raise ValueError(
            f"item {unnamed!r} does not name its task: call it task/split/index, or give --task and --split"
        )
    found = {}
    for name, where in positions_by_task(responses.items).items():
        scores = responses.scores[:, where]
        asked = np.flatnonzero(~np.isnan(scores).all(axis=1))  # the others were asked no item of this task
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

    A model is named after the folder of its log, as lm-eval writes it; of several logs of one model and task, the last
    by name, which is the newest, is used. Items are named `task/split/doc_id`, as in a run.

    Parameters
    ----------
    paths
        `samples_*.jsonl` files, and folders to search for them.
    metric
        Key of the score in each line; by default the first of the line's `metrics`.
    filter_name
        lm-eval's filter (a task with two filters logs each item twice); by default that of the file's first line.
    split
        The split that the logs are about; logs do not contain it.

    Returns
    -------
    responses
        Task name to its matrix, with the models and items of all logs; NaN where a model has no answer.

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
    check_regular(file)
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
        raise ValueError(f"{file}: no samples with filter {filter_name!r}: name a filter of the file")
    return answers


def _score(sample: Mapping[str, object], metric: str | None, place: str) -> float:
    if metric is None:
        metrics = sample.get("metrics")
        if not isinstance(metrics, list) or not metrics:
            raise ValueError(f"{place}: no list of metrics: name the metric, such as acc")
        metric = str(metrics[0])
    value = sample.get(metric)
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{place}: metric {metric!r} is {value!r}: name a metric with scores from 0 to 1")
    return float(value)


def from_run(evaluations: Mapping[str, tuple[Sequence[str], npt.ArrayLike]]) -> Responses:
    """Return the responses in a run's scores.

    Parameters
    ----------
    evaluations
        Model or candidate name to its (item ids, float[] scores); the items may differ.
    """
    if not evaluations:
        raise ValueError("there are no evaluations to fit items to: use a run with scored candidates")
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
    """Other models' answers to the items of one or several tasks, and item parameters.

    Attributes
    ----------
    responses
        Task name to other models' scores.
    banks
        Task name to item parameters fitted to these scores.
    """

    responses: Mapping[str, Responses]
    banks: Mapping[str, tuple[ItemBank, ...]]

    def of(self, task: str, items: Sequence[str]) -> tuple[tuple[ItemBank, ...], Array | None]:
        """Return banks and other models' scores float64[J, I] of these items, in this order.

        The scores are None unless every model answered every item.

        Raises
        ------
        ValueError
            The task or one of the items is unknown.
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

    def missing_answers(self, task: str, items: Sequence[str]) -> int:
        """Return how many of the models' answers to these items are missing."""
        known = self.responses[task]
        column = {item: at for at, item in enumerate(known.items)}
        return int(np.isnan(known.scores[:, [column[item] for item in items]]).sum())

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
        """Read a file that `save` wrote; nothing is unpickled.

        Raises
        ------
        ValueError
            The file is missing, damaged or of another kind.
        """
        responses, banks = {}, {}
        try:
            with open_arrays(path) as arrays:
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
        except Exception as error:  # numpy, zipfile and json raise many types for damaged files
            said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{path}: not a file of item banks ({said}): write one with `evomerge fit-items`"
            ) from error
        return cls(responses, banks)


def _bank(items: tuple[str, ...], arrays: Mapping[str, Array], facts: Mapping[str, object]) -> ItemBank:
    return ItemBank(items, arrays["discrimination"], arrays["difficulty"], arrays["abilities"], dict(facts))


def fit_item_banks(
    responses: Responses, priors: ItemPriors | None = None, dimensions: int | None = None
) -> tuple[ItemBank, ...]:
    """Fit item banks: the 2PL model and, with enough models, the multidimensional model.

    Parameters
    ----------
    dimensions
        D of the second bank; 1: no second bank. By default one dimension per ten models, up to 5.

    Raises
    ------
    ValueError
        There are fewer than 2 models, or an item was asked of no model.
    """
    models = len(responses.models)
    if models < FEWEST_MODELS:
        raise ValueError(f"{models} model: fitting items needs at least {FEWEST_MODELS}, and tens to be useful")
    unasked = np.isnan(responses.scores).all(0)
    if unasked.any():
        item = responses.items[int(unasked.argmax())]
        raise ValueError(f"no model was asked item {item!r}: remove it from the responses")
    if dimensions is None:
        dimensions = min(DIMENSIONS, models // MODELS_PER_DIMENSION, len(responses.items))
    banks = [fit_2pl(responses.scores, responses.items, priors)]
    if dimensions > 1:
        banks.append(fit_mirt(responses.scores, dimensions, responses.items, priors))
    return tuple(banks)
