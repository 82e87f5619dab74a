"""The history of a run, from its events: counts, times, the best so far, and scores by recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evomerge.runs.run import OF_HELD_OUT_ITEMS, Asked, Event, Purpose, ReferenceScore, Told
from evomerge.strategies.base import CandidateKind
from fitness.pareto import front
from fitness.results import Evaluation, no_seconds

EXTRA = ("founder", "again")
"""Kinds of candidates that do not count for the budget."""

STAGES = ("sources", "founders", "steps", "candidates", "finalists", "held-out")
"""The stages of a search, in order. `candidates` holds those asked again, `held-out` the votes of an ensemble."""
STAGE_OF_KIND: Mapping[CandidateKind, str] = {
    "founder": "founders",
    "gradient": "steps",
    "sample": "candidates",
    "mean": "candidates",
    "again": "candidates",
}
STAGE_OF_PURPOSE: Mapping[Purpose, str] = {
    "parent": "sources",
    "confirm": "finalists",
    "held_out": "held-out",
    "vote": "held-out",
}


@dataclass
class StageCost:
    """What one stage of a search has cost so far.

    Attributes
    ----------
    requests
        Models built and scored, or gradient steps; those with known scores do not count.
    answers
        Items asked, over all these models.
    merge, score, wait
        Seconds of merging, scoring and waiting for a worker, summed over all workers.
    """

    requests: int = 0
    answers: int = 0
    merge: float = 0.0
    score: float = 0.0
    wait: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of merging and scoring, summed over all workers."""
        return self.merge + self.score

    def add(self, answers: int, seconds: Mapping[str, float]) -> None:
        """Add one model's answers."""
        self.requests += 1
        self.answers += answers
        self.merge += seconds.get("merge", 0.0)
        self.score += seconds.get("score", 0.0)
        self.wait += seconds.get("wait", 0.0)


class RunHistory:
    """Running totals over events, the same while searching, on resuming and for `evomerge status`.

    Parameters
    ----------
    events
        In the order in which they happened.

    Attributes
    ----------
    asked, told
        Events by candidate id.
    reference_scores
        What was scored beside the candidates, by purpose and the recipe's hash.
    by_recipe
        The first evaluation of each scored recipe, by its hash; where it was asked again, that with all its answers.
    best
        Id of the best candidate; None before the first is scored.
    failed, cached
        Candidates that failed, and that had a recipe scored before.
    extra
        Founders, and candidates asked again, which do not count for the budget.
    evaluations
        Candidates told, these left aside.
    stages
        What each of `STAGES` has cost.
    stage
        The stage of the last event; None before the first.
    elapsed
        Seconds of searching, summed over all sessions.
    earlier_looks
        How often held-out items were scored, each time before the search went on.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.asked: dict[int, Asked] = {}
        self.told: dict[int, Told] = {}
        self.reference_scores: dict[tuple[str, str], Evaluation] = {}
        self.by_recipe: dict[str, Evaluation] = {}
        self.best: int | None = None
        self.failed = 0
        self.cached = 0
        self.extra = 0
        self.evaluations = 0
        self._spellings: dict[str, set[str]] = {}  # by recipe: others that give the same model
        self.stages = {name: StageCost() for name in STAGES}
        self.stage: str | None = None
        self.elapsed = 0.0
        self.earlier_looks = 0
        self._looking = False  # since the last candidate, held-out items were scored
        self._seconds = no_seconds()
        self._open: dict[int, Asked] = {}
        self._generations: dict[int, list[int]] = {}  # ids by generation
        self._missing: dict[int, int] = {}  # by generation: asked and not told
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Add one event."""
        if isinstance(event, Asked):
            self._add_asked(event)
        elif isinstance(event, Told):
            self._add_told(event)
        else:
            self._add_reference(event)

    def enter(self, stage: str) -> None:
        """Count what is left from this stage on; its first event may be minutes away."""
        self.stage = stage

    @property
    def open(self) -> list[Asked]:
        """Candidates that were asked and not yet told, oldest first."""
        return list(self._open.values())

    def spelt_alike(self, recipes: Mapping[str, str]) -> None:
        """Take the answers of recipes for each other's: of the one with each hash, and that which it is mapped to."""
        for one, other in recipes.items():
            group = {one, other} | self._spellings.get(one, set()) | self._spellings.get(other, set())
            self._spellings |= dict.fromkeys(group, group)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of searching by activity; `overhead` is everything but merging, scoring and waiting."""
        overhead = max(0.0, self.elapsed - sum(self._seconds.values()))
        return self._seconds | {"overhead": overhead}

    @property
    def item_evaluations(self) -> int:
        """Items asked in all."""
        return sum(cost.answers for cost in self.stages.values())

    @property
    def search_items(self) -> int:
        """How many items were asked before the held-out ones: of sources, candidates, steps and finalists."""
        return self.item_evaluations - self.stages["held-out"].answers

    def evaluation(self, candidate: int) -> Evaluation:
        """Return the evaluation that was told for a candidate; where it was asked again, that with all its answers."""
        told = self.told[candidate].evaluation
        return self.by_recipe.get(self.asked[candidate].recipe, told) if told.status == "ok" else told

    def answers(self, recipe: str, *, confirmed: bool = True) -> dict[str, float]:
        """Return a recipe's score on each search item that it was asked, as a source, a candidate or a finalist.

        Parameters
        ----------
        recipe
            Its hash.
        confirmed
            Whether what it was asked as a finalist counts.
        """
        names = sorted(self._spellings.get(recipe, {recipe}))
        parts = [
            part
            for name in names
            for part in (
                self.reference_scores.get(("parent", name)),
                self.by_recipe.get(name),
                self.reference_scores.get(("confirm", name)) if confirmed else None,
            )
        ]
        return {
            item: score
            for part in parts
            if part is not None
            for item, score in zip(part.items, part.scores.tolist(), strict=True)
        }

    def scored(self) -> list[int]:
        """Return ids of the candidates that were scored, in the order in which they were told."""
        return [identity for identity, told in self.told.items() if told.evaluation.status == "ok"]

    def ranking(self, judged: Mapping[int, Evaluation] | None = None) -> list[int]:
        """Return ids of scored candidates with distinct recipes, best first; the earlier one wins a tie.

        Parameters
        ----------
        judged
            Id to a later estimate, of all scored candidates; None: as they were told.
        """
        of = self.evaluation if judged is None else judged.__getitem__
        distinct: dict[str, int] = {}
        for identity in sorted(self.scored(), key=lambda identity: (-of(identity).fitness, identity)):
            distinct.setdefault(self.asked[identity].recipe, identity)
        return list(distinct.values())

    def front(self) -> list[int]:
        """Return ids of scored candidates that are not dominated, by their first objective; one per recipe.

        With one objective that is the best alone. Candidates that violate a minimum are on the front only if all do.
        """
        candidates = self.ranking()
        if not candidates:
            return []
        evaluations = [self.evaluation(identity) for identity in candidates]
        best = front([one.objectives for one in evaluations], [one.violation for one in evaluations])
        members = [identity for identity, on in zip(candidates, best, strict=True) if on]
        return sorted(members, key=lambda identity: self.evaluation(identity).objectives, reverse=True)

    def in_flight(self, generation: int) -> bool:
        """Return whether a generation has candidates that are asked and not told."""
        return self._missing.get(generation, 0) > 0

    def results(self, generation: int) -> list[Told]:
        """Return what was told about a generation, by candidate id."""
        return [self.told[identity] for identity in self._generations.get(generation, ()) if identity in self.told]

    def _add_asked(self, event: Asked) -> None:
        self.earlier_looks += self._looking
        self._looking = False
        identity, generation = event.candidate.id, event.candidate.generation
        self.asked[identity] = self._open[identity] = event
        self.stage = STAGE_OF_KIND[event.candidate.kind]
        self.extra += event.candidate.kind in EXTRA
        self._generations.setdefault(generation, []).append(identity)
        self._missing[generation] = self._missing.get(generation, 0) + 1

    def _add_told(self, event: Told) -> None:
        evaluation = event.evaluation
        self.told[event.candidate] = event
        candidate = self.asked[event.candidate]
        again = self.by_recipe.get(candidate.recipe) if candidate.candidate.kind == "again" else None
        self.evaluations += candidate.candidate.kind not in EXTRA
        self._missing[self._open.pop(event.candidate).candidate.generation] -= 1
        self.elapsed = event.elapsed
        if evaluation.status == "failed":
            self.failed += 1
        if event.cached:
            self.cached += 1
        else:
            new = len(evaluation.items) - (0 if again is None else len(again.items))
            self.stages[STAGE_OF_KIND[candidate.candidate.kind]].add(new, evaluation.seconds)
            for name in self._seconds:
                self._seconds[name] += evaluation.seconds[name]
        if evaluation.status == "ok" and again is not None:
            self.by_recipe[candidate.recipe] = evaluation
            self.best = self.ranking()[0]
        elif evaluation.status == "ok":
            self.by_recipe.setdefault(candidate.recipe, evaluation)
            if self._better(event):
                self.best = event.candidate

    def _better(self, event: Told) -> bool:
        """Return whether a scored candidate beats the best so far; the one asked earlier wins a tie."""
        if self.best is None:
            return True
        best = self.evaluation(self.best).fitness
        return (event.evaluation.fitness, -event.candidate) > (best, -self.best)

    def _add_reference(self, event: ReferenceScore) -> None:
        key = event.purpose, event.recipe
        self._looking |= event.purpose in OF_HELD_OUT_ITEMS
        known = (
            self.reference_scores.get(key) if event.purpose == "confirm" else None
        )  # a finalist's answers come in rounds
        self.reference_scores[key] = event.evaluation if known is None else known.with_more(event.evaluation)
        self.stage = STAGE_OF_PURPOSE[event.purpose]
        self.stages[self.stage].add(len(event.evaluation.items), event.evaluation.seconds)
