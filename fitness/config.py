"""The `fitness` section of a search file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from fitness.estimation import ESTIMATORS
from fitness.objectives import Objectives
from fitness.results import Evaluation, ItemScores
from fitness.scoring.engine_config import AnyEngine, TransformersEngine
from fitness.tasks.config import Section, Split, TaskConfig, TasksConfig

__all__ = ["EstimatorName", "FitnessConfig", "RacingConfig", "Split", "SubsetConfig", "TaskConfig"]


@dataclass(frozen=True)
class EstimatorName:
    """Annotation of a field that names a registered estimator, or `auto`."""

    @property
    def choices(self) -> tuple[str, ...]:
        """All words that may stand there, those of other packages included."""
        return ("auto", *ESTIMATORS)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return a choice of all names."""
        return {"enum": list(self.choices)}


class SubsetConfig(Section):
    """How many of the search items each candidate is asked, and how its full score is estimated from them."""

    items: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | Literal["all"] = "all"
    """Search items per task and candidate, at least 1; or all."""
    estimator: Annotated[str, EstimatorName()] = "auto"
    """How the score on all search items is estimated from the answers. mean: their mean. inherited: the answers of the
    experts (each is scored once on all search items) and of earlier candidates predict the items not asked. auto:
    inherited where scores are in [0, 1], else mean. The others are published estimators and variants; most need an
    `item_bank`."""
    rotate: bool | None = None
    """Whether each generation gets new items. None: yes, unless the estimator is mean."""
    ids: str | None = None
    """Text file with the ids of the search items that candidates are asked, one a line (task/split/index, as
    `evomerge evaluate --json` gives them), in place of `items` drawn with the seed; every task needs one."""
    item_bank: str | None = None
    """File written by `evomerge fit-items`: other models' answers to the same items, and the item parameters fitted to
    them."""

    @field_validator("estimator")
    @classmethod
    def _known_estimator(cls, name: str) -> str:
        if name != "auto" and name not in ESTIMATORS:
            raise PydanticCustomError("unknown_estimator", "{text}", {"text": ESTIMATORS.unknown(name)})
        return name

    @model_validator(mode="after")
    def _has_what_its_estimator_needs(self) -> "SubsetConfig":
        needs = frozenset() if self.estimator == "auto" else ESTIMATORS[self.estimator].needs
        if self.item_bank is None and needs & {"item_bank", "other_models"}:
            raise ValueError(
                f"estimator {self.estimator} needs `item_bank`, a file that `evomerge fit-items` writes; "
                "or set estimator: auto"
            )
        return self

    @model_validator(mode="after")
    def _listed_or_drawn(self) -> "SubsetConfig":
        if self.ids is not None and (self.items != "all" or self.rotate or self.estimator not in ("auto", "mean")):
            raise ValueError("ids lists the items: remove items, rotate and estimator")
        return self

    @property
    def needs_parents(self) -> bool:
        """Whether the estimator may need the sources' scores on all search items."""
        if self.ids is not None:
            return False
        return self.estimator == "auto" or "parents" in ESTIMATORS[self.estimator].needs

    def rotates(self, estimator: str | None = None) -> bool:
        """Return whether each generation is asked other items.

        Parameters
        ----------
        estimator
            What `auto` has turned out to mean; None: the one in the file, where `auto` counts as rotating.
        """
        if self.ids is not None:
            return False
        name = estimator or self.estimator
        return (name == "auto" or ESTIMATORS[name].rotates) if self.rotate is None else self.rotate


class RacingConfig(Section):
    """When to stop evaluating a candidate early."""

    error: float = Field(default=0.05, gt=0, lt=1)
    """With test posterior, the accepted share of stopped candidates that would have been among the best `keep` in the
    end; with the other tests, the accepted probability of stopping a given one of these; in (0, 1). For strategies with
    an archive (m2n2, map_elites): the accepted share of stopped candidates that would have entered it."""
    indifference: float = Field(default=0.02, ge=0, le=1_000_000, allow_inf_nan=False)
    """With test posterior: what a race may be expected to cost of the best candidate's score and of the mean score of
    the best `keep`, in the objective's unit; at least 0. Of the candidates that are probably not among these, those
    are stopped whose further answers are worth less, in addition to those that `error` stops. 0: only the latter."""
    block: int = Field(default=8, ge=1, le=1_000_000)
    """Items per task between two checks; at least 1. The candidate's model is merged again for each block."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Fraction of a generation that the strategy uses: CMA-ES updates from the better half. Strategies with an archive
    ignore it. With halving and hyperband the fraction that continues after each check, below 1."""
    test: Literal["posterior", "auto", "exact", "sprt", "t", "wilcoxon", "halving", "hyperband"] = "posterior"
    """posterior compares estimates by their standard errors. The other tests compare answers to common items and need
    many of them: exact and sprt for 0/1 scores, t and wilcoxon for other scores, auto chooses exact or t. halving is no
    test: after `block` items, and each time their number has grown by 1 / `keep`, the best `keep` continue, whatever
    the noise (successive halving; `error` is ignored). hyperband: the same, but generations begin in turn with
    fewer or more items."""

    @model_validator(mode="after")
    def _halving_drops_somebody(self) -> "RacingConfig":
        if self.halves and self.keep == 1:
            raise ValueError(f"test: {self.test} keeps a fraction at each check; write keep below 1, such as 0.5")
        return self

    @property
    def halves(self) -> bool:
        """Whether a fixed fraction continues after each check, whatever the tests say."""
        return self.test in ("halving", "hyperband")


def _subset_section(value: Any) -> Any:
    short = isinstance(value, int | float | str) and not isinstance(value, bool)
    return {"items": value} if short else value


_OF_TASKS: dict[str, Any] = {
    "include_path": (),
    "allow_test_split": False,
    "allow_code": False,
    "num_fewshot": None,
    "apply_chat_template": False,
    "max_length": None,
    "engine": TransformersEngine(),
}
"""Keys without a meaning for own functions, and their defaults."""


class FitnessConfig(TasksConfig):
    """The tasks that define a good model, and how candidates are evaluated on them."""

    kind: Literal["lm_eval", "python"] = "lm_eval"
    """What scores a model. lm_eval: the tasks. python: `function`; the tasks are then the names of the scores that it
    returns."""
    function: str | None = None
    """For kind python: `FILE.py:NAME`, relative to the search file, or `module:NAME`. Called with the model and its
    tokenizer, and with `function_items` where there are some; returns a number, or one per item; or a mapping from the
    tasks' names to these. A score with a negative weight is better when lower."""
    function_items: str | None = None
    """For kind python: what the function scores one by one: `NAME` in the function's file, `FILE.py:NAME`,
    `module:NAME`, or `FILE.jsonl` with one JSON value per line. A list, a mapping from splits (validation, test) to
    lists, or a function that returns one of these. None: the function scores the model as a whole, and nothing is held
    out."""

    subset: Annotated[SubsetConfig, BeforeValidator(_subset_section)] = SubsetConfig()
    """How many of the search items each candidate is asked; a number alone sets `items`."""
    racing: RacingConfig | None = None
    """Ask a generation's candidates in blocks of items, and stop those that are clearly not among the best. None: no
    candidate is stopped early."""
    finalists: int = Field(default=15, ge=1, le=10_000)
    """Number of candidates, those with the best search scores, from which the result is chosen, besides the strategy's
    own guess, the sources, the baselines and the space's start; at least 1. Where candidates are asked only some items,
    the finalists answer further ones in rounds; each round drops the worse half and those that are clearly worse, and
    the last two answer all search items (sequential halving)."""
    objectives: Literal["weighted_sum", "per_task"] = "weighted_sum"
    """What strategies maximise. weighted_sum: one number. per_task: one objective per task, for multi-objective
    strategies; other strategies use the weighted sum."""
    normalize: Literal["none", "best_source"] = "none"
    """best_source: divide each task's score by the best source's score on it before weighting."""
    batch_size: int = Field(default=64, ge=1, le=100_000)
    """Sequences per forward pass; at least 1."""
    max_length: int | None = Field(default=None, ge=2, le=100_000_000)
    """Longest sequence in tokens; longer prompts are cut at the left. None: what the model allows."""
    engine: AnyEngine = TransformersEngine()
    """What computes the models' answers, held-out ones included; a word alone is its `kind`."""

    @model_validator(mode="before")
    @classmethod
    def _scores_of_a_function(cls, values: Any) -> Any:
        """Take `function` alone for kind python, and the function's name for that of its only score."""
        if not isinstance(values, dict) or not isinstance(values.get("function"), str):
            return values
        values = {"kind": "python"} | values
        name = values["function"].rpartition(":")[2].rpartition(".")[2]
        return values if values.get("tasks") or values["kind"] != "python" else values | {"tasks": [name or "score"]}

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> "FitnessConfig":
        if self.kind == "lm_eval":
            for key in ("function", "function_items"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} belongs to kind: python; write kind: python, or remove {key}")
            return self
        if self.function is None:
            raise ValueError("function is missing: name what scores a model, such as function: score.py:score")
        for key, without in _OF_TASKS.items():
            if getattr(self, key) != without:
                raise ValueError(f"{key} belongs to lm-eval's tasks, and kind is python; remove {key}")
        for task in self.tasks:
            if task.metric is not None:
                raise ValueError(f"tasks: {task.task} is a score of your function and has no metric; remove metric")
        if self.function_items is None and (self.racing is not None or self.subset != SubsetConfig()):
            key = "subset" if self.racing is None else "racing"
            raise ValueError(
                f"{key} needs items, and the function scores a model as a whole; name function_items, or remove {key}"
            )
        return self

    @model_validator(mode="after")
    def _racing_needs_one_objective(self) -> "FitnessConfig":
        if self.racing is not None and self.objectives == "per_task":
            raise ValueError("racing ranks by one objective: remove `racing`, or set objectives: weighted_sum")
        return self

    @property
    def compares_with_sources(self) -> bool:
        """Whether the objectives depend on the sources' scores."""
        constrained = any(task.min_share_of_best_source is not None for task in self.tasks)
        return constrained or self.normalize == "best_source"

    def objectives_for(
        self, sources: Sequence[ItemScores | Evaluation] = (), tasks: Sequence[TaskConfig] | None = None
    ) -> Objectives:
        """Return how the tasks' scores become objectives.

        Parameters
        ----------
        sources
            Scores of the models that are merged, on all search items; needed where `compares_with_sources`.
        tasks
            The entries of all tasks, with groups resolved (`TaskSuite.entries`); None: the file's own.

        Raises
        ------
        TaskError
            See `Objectives.of`.
        """
        return Objectives.of(
            self.tasks if tasks is None else tasks,
            sources,
            normalize=self.normalize == "best_source",
            apart=self.objectives == "per_task",
        )
