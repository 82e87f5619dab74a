"""The `fitness` part of a search file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fitness.estimation.estimators import NEEDS_BANK, NEEDS_OTHERS

Split = Literal["train", "validation", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskConfig(_Frozen):
    """One lm-eval task that counts."""

    task: str = Field(min_length=1)
    """Name of an lm-eval task, as in its YAML file's `task:` key; not of a group or a tag."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of this task in the objective, relative to the other tasks' weights; > 0, no unit."""
    min_share_of_best_source: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Constraint: the lowest acceptable score, as a share of the best source's score; 0.9 keeps 90 % of it. Candidates
    that violate a constraint rank behind all that violate none. None: no constraint."""
    metric: str | None = None
    """Metric to maximise, `name` or lm-eval's `name,filter`. None: the first of the task's metrics that has a
    value for each single item, after the task's first filter. One that is better when lower counts negatively, as
    do ours: answer_loss (of the right answer, nats), bits_per_byte (the same per byte), answer_length (characters)."""
    search_split: Literal["auto"] | Split = "auto"
    """Split that the search items come from. auto: validation if the task has one, else test
    (which needs `allow_test_split`)."""


class SubsetConfig(_Frozen):
    """Which of the search items a candidate is asked."""

    items: Annotated[int, Field(ge=1, strict=True)] | Literal["all"] = "all"
    """Search items per task and candidate; >= 1."""
    estimator: Literal[
        "auto",
        "inherited",
        "mean",
        "stratified_mean",
        "parent_post_stratification",
        "stratified_difference",
        "anchor_mean",
        "p_irt",
        "p_irt_map",
        "gp_irt",
        "mp_irt",
        "gmp_irt",
        "mp_irt_map",
        "ridge",
        "blup",
    ] = "auto"
    """How the score on all search items follows from those asked. inherited: the experts' answers to all search items
    (they are scored once) and those of earlier candidates fill in the rest. mean: the mean of the answers. auto:
    inherited where scores lie in [0, 1], else mean. The others are published ones and their parts, most of which need
    an `item_bank`."""
    rotate: bool | None = None
    """Whether each generation is asked other items. None: yes, unless the estimator is mean."""
    item_bank: str | None = None
    """What `evomerge fit-items` has written: other models' answers to the same items, and item parameters fitted to
    them. None: there is none."""

    @model_validator(mode="after")
    def _calibrated(self) -> "SubsetConfig":
        if self.item_bank is None and self.estimator in (*NEEDS_BANK, *NEEDS_OTHERS):
            raise ValueError(
                f"estimator {self.estimator} needs `item_bank`, a file that `evomerge fit-items` writes; "
                "or set estimator: auto"
            )
        return self


class RacingConfig(_Frozen):
    """When to stop asking a candidate."""

    error: float = Field(default=0.05, gt=0, lt=1)
    """Tolerated chance that one given candidate that matters is stopped, in (0, 1); for strategies with an archive
    (m2n2, map_elites), the share of those stopped that would have got into it."""
    block: int = Field(default=8, ge=1)
    """Items per task that are asked between two looks; >= 1. A candidate's model is built anew for each block."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of a generation that matters to the strategy: CMA-ES learns from the better half. Archives ignore it."""
    test: Literal["posterior", "auto", "exact", "sprt", "t", "wilcoxon"] = "posterior"
    """posterior: by the estimates and their standard errors. The others compare answers to common items, which needs
    many of them: exact and sprt for 0/1 scores, t and wilcoxon for others, auto the one that fits."""


class FitnessConfig(_Frozen):
    """What makes a model good, and how it is measured."""

    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    """The tasks, each named once."""
    include_path: tuple[str, ...] = ()
    """Folders with lm-eval task YAMLs, searched before lm-eval's own tasks."""
    subset: SubsetConfig = SubsetConfig()
    """Which of the search items a candidate is asked."""
    racing: RacingConfig | None = None
    """Ask a generation's candidates in blocks, and stop those that cannot matter any more. None: ask all alike."""
    finalists: int = Field(default=15, ge=1)
    """Candidates, best by search score, among which the result is chosen, beside the strategy's own guess; >= 1. Where
    candidates are asked few items, these answer the others in rounds; the worse half leaves after each, and the last
    two answer all search items."""
    objectives: Literal["weighted_sum", "per_task"] = "weighted_sum"
    """What strategies are told. weighted_sum: one number. per_task: one objective per task, for strategies that look
    for a front; the others go by the weighted sum."""
    normalize: Literal["none", "best_source"] = "none"
    """best_source: each task's score is divided by that of the source that is best at it, before weighting."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Split = 0.5
    """Items kept for the final table: a fraction of the search split's items, in (0, 1), or the name of
    another split, which is then used whole."""
    allow_test_split: bool = False
    """Acknowledges that search items come from a test split: a published score then means nothing."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each prompt, unless the task fixes their number at 0. None: the task's own."""
    apply_chat_template: bool = False
    """Put prompts into the tokenizer's chat template, few-shot examples as turns."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per forward pass; >= 1."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest sequence in tokens; longer prompts lose their beginning. None: what the model allows."""

    @model_validator(mode="after")
    def _racing_needs_one_objective(self) -> "FitnessConfig":
        if self.racing is not None and self.objectives == "per_task":
            raise ValueError("racing ranks by one objective: remove `racing`, or set objectives: weighted_sum")
        return self

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        names = [task.task for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task {name!r} is listed twice: keep one entry and set its weight instead")
        return tasks
