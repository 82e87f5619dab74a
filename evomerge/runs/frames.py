"""A run as tables for pandas: its candidates, its items and their answers; in and out of CSV and Parquet.

What each column holds is in `COLUMNS`. Texts have pandas' type `string`, in which a missing one is `<NA>`; whole
numbers that may be missing have `Int64`, other numbers `float64`, where a missing one is NaN. Lists are lists in
Parquet and JSON in CSV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from evomerge.runs.environment import Environment, GeneRecord
from evomerge.runs.event_rows import Asked, Event, ReferenceScore, Told
from evomerge.runs.held_out import HeldOut
from fitness.items import positions_by_task, task_of
from fitness.results import Evaluation

if TYPE_CHECKING:
    import pandas as pd

Name: TypeAlias = Literal["candidates", "items", "answers"]
NAMES: tuple[Name, ...] = get_args(Name)

COLUMNS: dict[Name, dict[str, tuple[str, str]]] = {
    "candidates": {
        "candidate": ("int64", "its number, from 0, in the order in which candidates were proposed"),
        "generation": ("int64", "the generation of the strategy"),
        "kind": ("string", "sample, mean, gradient, founder or again"),
        "parents": ("list", "candidates that it was made of"),
        "recipe": ("string", "hash of the recipe; equal recipes are scored once"),
        "status": ("string", "ok, failed, stopped, step, or open: not scored yet"),
        "repeated": ("boolean", "whether an equal recipe had been scored before"),
        "error": ("string", "why it failed"),
        "fitness": ("float64", "what the strategy maximises; far below 0 where a minimum score is missed"),
        "score": ("float64", "the same without the minimum scores; minus the loss for a gradient step"),
        "standard_error": ("float64", "of the score"),
        "violation": ("float64", "by how much minimum scores are missed"),
        "items": ("Int64", "how many items it was asked"),
        "asked_at": ("float64", "seconds since the epoch when it was proposed"),
        "told_at": ("float64", "seconds since the epoch when it was scored"),
        "elapsed": ("float64", "seconds of searching up to then, all sessions together"),
        "seconds.": ("float64", "seconds by stage: merge, score, wait"),
        "objective.": ("float64", "by number, from 1"),
        "task.": ("float64", "mean score on the items of a task that it was asked"),
        "gene.": ("gene", "value of a gene: float64, Int64 or string"),
    },
    "items": {
        "item": ("string", "task/split/index"),
        "task": ("string", "name of the task"),
        "split": ("string", "train, validation or test"),
        "index": ("int64", "place in the split"),
        "side": ("string", "search or held_out"),
        "question_hash": ("string", "hash of the question; items with the same question share it"),
        "document_hash": ("string", "hash of the whole document"),
        "answer_hash": ("string", "hash of the right answer and the choices"),
        "prompt_hash": ("string", "hash of the prompt as it is asked"),
        "question": ("string", "the question; of held-out items, once the search has ended"),
        "targets": ("list", "the right answers, as the question"),
        "choices": ("list", "the choices, as the question"),
    },
    "answers": {
        "purpose": (
            "string",
            "candidate; step (a gradient step); parent: a source on the search items; confirm; held_out; vote",
        ),
        "candidate": ("Int64", "number of the candidate or step; missing for other purposes"),
        "recipe": ("string", "hash of the recipe"),
        "rows": ("list", "rows of the final table with this recipe"),
        "repeated": ("boolean", "whether these are the answers of an equal recipe before"),
        "item": ("string", "task/split/index"),
        "score": ("float32", "of the answer; minus the loss for a step"),
        "answer": ("string", "the text, or the position of the choice; kept for held-out items"),
    },
}
"""Columns by frame, with their types and meanings; a name that ends in a dot stands for several."""

Timed: TypeAlias = tuple[float, Event]
"""An event, and the seconds since the epoch when it happened."""


def candidates(events: Iterable[Timed], genes: Sequence[GeneRecord]) -> pd.DataFrame:
    """Return one row per candidate, in the order of their numbers; see `COLUMNS`.

    Parameters
    ----------
    events
        Of a run, in order.
    genes
        Of its space; empty: they are not known, and `gene.NUMBER` holds coordinates.
    """
    rows: dict[int, dict[str, Any]] = {}
    read: list[Callable[[float], Any]] = [gene.gene().value for gene in genes]
    for at, event in events:
        if isinstance(event, Asked):
            one = event.candidate
            rows[one.id] = {
                "candidate": one.id,
                "generation": one.generation,
                "kind": one.kind,
                "parents": list(one.parents),
                "recipe": event.recipe,
                "status": "open",
                "asked_at": at,
            }
            names = [gene.name for gene in genes] or [str(number) for number in range(len(one.genotype))]
            readers = read or [float] * len(names)
            values = [to(x) for to, x in zip(readers, one.genotype.tolist(), strict=True)]
            rows[one.id] |= {f"gene.{name}": value for name, value in zip(names, values, strict=True)}
        elif isinstance(event, Told):
            rows[event.candidate] |= {"told_at": at} | _told(event)
    types = {f"gene.{gene.name}": _GENE_TYPES[gene.kind] for gene in genes}
    return _frame("candidates", list(rows.values()), types)


def items(environment: Environment, held_out: HeldOut | None) -> pd.DataFrame:
    """Return one row per item that the search or the final table may ask; see `COLUMNS`.

    Parameters
    ----------
    environment
        Of a run.
    held_out
        The held-out items as texts, where they are known.
    """
    return _frame("items", list(_item_rows(environment, held_out.items if held_out is not None else {})))


def answers(events: Iterable[Timed], held_out: HeldOut | None) -> pd.DataFrame:
    """Return one row per item that a recipe was asked, in the order of the events; see `COLUMNS`."""
    rows: dict[str, list[str]] = {}
    for name, hashes in held_out.rows.items() if held_out is not None else ():
        for recipe in hashes:
            rows.setdefault(recipe, []).append(name)
    recipes: dict[int, str] = {}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS["answers"]}
    for _, event in events:
        if isinstance(event, Asked):
            recipes[event.candidate.id] = event.recipe
            continue
        evaluation = event.evaluation
        same: dict[str, Any]
        if isinstance(event, ReferenceScore):
            same = {"purpose": event.purpose, "candidate": None, "recipe": event.recipe, "repeated": False}
        else:
            purpose = "step" if evaluation.status == "step" else "candidate"
            same = {"purpose": purpose, "candidate": event.candidate, "recipe": recipes[event.candidate]}
            same["repeated"] = event.cached
        same["rows"] = rows.get(same["recipe"], [])
        for name, value in same.items():
            columns[name] += [value] * len(evaluation.items)
        columns["item"] += evaluation.items
        columns["score"] += evaluation.scores.tolist()
        columns["answer"] += [text or None for text in evaluation.answers] or [None] * len(evaluation.items)
    return _typed("answers", columns, {})


def write(frame: pd.DataFrame, file: Path, kind: Literal["csv", "parquet"]) -> None:
    """Write a frame to a file."""
    if kind == "parquet":
        frame.to_parquet(file, index=False)
        return
    texts = frame.copy()
    for name in frame.columns:
        if frame[name].dtype == object:
            texts[name] = [json.dumps(value, ensure_ascii=False) for value in frame[name]]
    texts.to_csv(file, index=False, lineterminator="\n")


def read(file: str | Path, of: Name) -> pd.DataFrame:
    """Read back what `write` wrote to a `.csv` or a `.parquet` file: the same columns, types and values.

    Parameters
    ----------
    file
        The file.
    of
        Which frame it holds.
    """
    import pandas as pd

    file = Path(file)
    if file.suffix == ".parquet":
        frame = pd.read_parquet(file)
        for name in frame.columns:
            if _type(of, name) == "list":
                frame[name] = pd.Series([list(value) for value in frame[name]], dtype="object")
        return frame
    head = pd.read_csv(file, nrows=0)
    types = {name: _type(of, name) for name in head.columns}
    plain = {name: "string" if kind == "list" else kind for name, kind in types.items() if kind != "gene"}
    frame = pd.read_csv(file, dtype=plain, keep_default_na=False, na_values=[""], float_precision="round_trip")
    for name, kind in types.items():
        if kind == "list":
            frame[name] = pd.Series([json.loads(value) for value in frame[name]], dtype="object")
        elif kind == "gene":
            whole = pd.api.types.is_integer_dtype(frame[name])
            number = pd.api.types.is_numeric_dtype(frame[name])
            frame[name] = frame[name].astype("Int64" if whole else "float64" if number else "string")
    return frame


def _told(event: Told) -> dict[str, Any]:
    """Return the columns of an evaluation."""
    evaluation = event.evaluation
    row: dict[str, Any] = {
        "status": evaluation.status,
        "repeated": event.cached,
        "error": evaluation.reason or None,
        "items": len(evaluation.items),
        "elapsed": event.elapsed,
    }
    row |= {f"seconds.{stage}": seconds for stage, seconds in evaluation.seconds.items()}
    if evaluation.objectives:
        row |= {"fitness": evaluation.fitness, "score": evaluation.value, "violation": evaluation.violation}
        row["standard_error"] = evaluation.standard_error
        row |= {f"objective.{number}": value for number, value in enumerate(evaluation.objectives, start=1)}
    return row | {f"task.{task}": score for task, score in task_scores(evaluation).items()}


def task_scores(evaluation: Evaluation) -> dict[str, float]:
    """Return the mean score on the items of each task that were asked; none for a step, which has losses."""
    if not evaluation.has_scores:
        return {}
    places = positions_by_task(evaluation.items)
    return {task: float(evaluation.scores[at].mean()) for task, at in places.items()}


def objective_names(tasks: Sequence[str], objectives: int) -> tuple[str, ...]:
    """Return a name for each objective: its task, or "score" for the weighted sum of several."""
    if len(tasks) == objectives:
        return tuple(tasks)
    return ("score",) if objectives == 1 else tuple(f"objective {number}" for number in range(1, objectives + 1))


def _item_rows(environment: Environment, texts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, identity in environment.items.items():
        for side, listed in (("search", identity.search), ("held_out", identity.held_out)):
            words = (listed.ids, listed.keys, listed.documents, listed.answers, listed.prompts)
            for place, key, document, answer, prompt in zip(*(text.split() for text in words), strict=True):
                name, text = f"{task}/{place}", texts.get(f"{task}/{place}")
                split, index = place.rsplit("/", 1)
                yield {
                    "item": name,
                    "task": task_of(name),
                    "split": split,
                    "index": int(index),
                    "side": side,
                    "question_hash": key,
                    "document_hash": document,
                    "answer_hash": answer,
                    "prompt_hash": prompt,
                    "question": None if text is None else text.question,
                    "targets": [] if text is None else list(text.targets),
                    "choices": [] if text is None else list(text.choices),
                }


def _frame(of: Name, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str] = {}) -> pd.DataFrame:
    """Return rows as a frame: first the columns that every run has, then those that this one has."""
    fixed = [name for name in COLUMNS[of] if not name.endswith(".")]
    found = dict.fromkeys(name for row in rows for name in row)
    groups = [name for name in COLUMNS[of] if name.endswith(".")]
    several = [name for group in groups for name in found if name.startswith(group)]
    return _typed(of, {name: [row.get(name) for row in rows] for name in (*fixed, *several)}, types)


def _typed(of: Name, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> pd.DataFrame:
    """Return columns as a frame with their types; `types` are those of genes."""
    import pandas as pd

    series = {}
    for name, values in columns.items():
        kind = types.get(name, _type(of, name))
        make = _MAKERS.get(kind)
        held = values if make is None else [make(value) for value in values]
        series[name] = pd.Series(held, dtype=_DTYPES.get(kind, kind))
    return pd.DataFrame(series)


def _type(of: Name, column: str) -> str:
    """Return the type of a column."""
    known = COLUMNS[of]
    group = next((name for name in known if name.endswith(".") and column.startswith(name)), column)
    return known.get(column, known.get(group, ("string", "")))[0]


def _text(value: str | None) -> str | None:
    """Return a text as files can hold it: what is no Unicode character becomes a question mark."""
    return None if value is None else value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "string": _text,
    "float64": _number,
    "gene": _number,
    "list": lambda value: [_text(each) if isinstance(each, str) else each for each in value],
}
_GENE_TYPES = {"real": "float64", "integer": "Int64", "choice": "string"}
_DTYPES = {"list": "object", "gene": "float64"}
