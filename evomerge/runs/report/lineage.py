"""The ancestors of the best child: the parents that the log has recorded, theirs, and so on."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.runs.report.contents import Contents

MOST_ANCESTORS = 300


@dataclass(frozen=True)
class Ancestor:
    """A candidate that the best one descends from, or the best one itself.

    `distance` counts the generations between them; `score` is None for a gradient step.
    """

    candidate: int
    kind: str
    distance: int
    score: float | None
    parents: tuple[int, ...]


def lineage(contents: Contents) -> list[Ancestor]:
    """Return the best candidate that has parents and its ancestors, nearest first; at most `MOST_ANCESTORS`.

    Where none has parents, the best candidate alone.
    """
    history = contents.history
    ranking = history.ranking()
    best = next((identity for identity in ranking if history.asked[identity].candidate.parents), history.best)
    if best is None:
        return []
    found: dict[int, Ancestor] = {}
    level, distance = [best], 0
    while level and len(found) < MOST_ANCESTORS:
        parents: list[int] = []
        for identity in level:
            if identity in found or identity not in history.asked:
                continue
            found[identity] = _ancestor(contents, identity, distance)
            parents += found[identity].parents
        level, distance = list(dict.fromkeys(parents)), distance + 1
    return list(found.values())


def _ancestor(contents: Contents, identity: int, distance: int) -> Ancestor:
    history, candidate = contents.history, contents.history.asked[identity].candidate
    told = history.told.get(identity)
    scored = told is not None and told.evaluation.status == "ok"
    score = history.evaluation(identity).value if scored else None
    return Ancestor(identity, candidate.kind, distance, score, candidate.parents)
