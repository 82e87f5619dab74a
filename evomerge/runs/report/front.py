"""The Pareto front of several objectives, numbered as `evomerge export --pareto` numbers it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from evomerge.runs.frames import objective_names
from evomerge.runs.report.contents import Contents
from evomerge.runs.report.convergence import MOST_POINTS
from fitness.pareto import hypervolume, reference_point
from search_spaces.recipes import mergekit_yaml

LONGEST_RECIPES = 1_500_000
"""Characters of recipes that the page holds; those of later members of the front are exported by the command."""


@dataclass(frozen=True)
class Member:
    """A candidate that no other dominates.

    `recipe` is its YAML; empty where the space is not known or the page would become too large.
    """

    number: int
    candidate: int
    values: tuple[float, ...]
    errors: tuple[float, ...]
    recipe: str


@dataclass(frozen=True)
class Front:
    """The front on the search items.

    Attributes
    ----------
    tasks
        Name of each objective.
    members
        By the first objective, best first.
    others
        Objectives of candidates that are dominated; of many, some.
    volume
        The front's hypervolume above `reference`.
    """

    tasks: tuple[str, ...]
    members: tuple[Member, ...]
    others: tuple[tuple[int, tuple[float, ...]], ...]
    volume: float
    reference: tuple[float, ...]


def front(contents: Contents) -> Front | None:
    """Return the front, which is the best candidate alone for one objective; None without a scored candidate."""
    history = contents.history
    numbers = history.front()
    if not numbers:
        return None
    scored = [history.evaluation(identity).objectives for identity in history.scored()]
    reference = reference_point(scored)
    members = tuple(_members(contents, numbers))
    dominated = [identity for identity in history.ranking() if identity not in set(numbers)]
    stride = -(-len(dominated) // MOST_POINTS) or 1
    names = objective_names(tuple(contents.weights), len(scored[0]))
    others = tuple((identity, history.evaluation(identity).objectives) for identity in dominated[::stride])
    return Front(names, members, others, hypervolume([one.values for one in members], reference), reference)


def index(found: Front) -> str:
    """Return the index of an exported front as JSON: hypervolume, and each recipe's file, candidate and scores."""
    members = [
        {
            "file": f"{one.number}.yaml",
            "candidate": one.candidate,
            "objectives": dict(zip(found.tasks, one.values, strict=True)),
            "standard_errors": dict(zip(found.tasks, one.errors, strict=True)),
        }
        for one in found.members
    ]
    reference = dict(zip(found.tasks, found.reference, strict=True))
    values = {"hypervolume": found.volume, "reference": reference, "recipes": members}
    return json.dumps(values, indent=1) + "\n"


def _members(contents: Contents, numbers: list[int]) -> list[Member]:
    members, length = [], 0
    for number, identity in enumerate(numbers, start=1):
        evaluation, recipe = contents.history.evaluation(identity), contents.decode(identity)
        text = ""
        if recipe is not None and length < LONGEST_RECIPES:
            text = mergekit_yaml.dump(recipe, f"front {number}, candidate {identity} of {contents.name}")
            length += len(text)
        kept = text if length <= LONGEST_RECIPES else ""
        members.append(Member(number, identity, evaluation.objectives, evaluation.standard_errors, kept))
    return members
