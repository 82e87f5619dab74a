"""The `fitness` part of a search file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Split = Literal["train", "validation", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskConfig(_Frozen):
    """One lm-eval task that counts."""

    task: str = Field(min_length=1)
    """Name of an lm-eval task, as in its YAML file's `task:` key; not of a group or a tag."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of this task in the objective, relative to the other tasks' weights; > 0, no unit."""
    floor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Lowest score that is good enough, as a share of the best source's: 0.9 keeps 90 % of it. A candidate that misses
    a floor is worse than any that misses none. None: no floor."""
    metric: str | None = None
    """Metric to maximise, `name` or lm-eval's `name,filter`. None: the first of the task's metrics that has a
    value for each single item, after the task's first filter."""
    search_split: Literal["auto"] | Split = "auto"
    """Split that the search items come from. auto: validation if the task has one, else test
    (which needs `allow_test_split`)."""


class SubsetConfig(_Frozen):
    """Which of the search items a candidate is asked."""

    items: Annotated[int, Field(ge=1, strict=True)] | Literal["all"] = "all"
    """Search items per task and candidate; >= 1."""
    estimator: Literal["mean", "inherited"] = "mean"
    """How the score on all search items follows from those asked. mean: all candidates are asked the same random
    items, and their mean counts. inherited: each generation is asked other items, those that tell most; the experts'
    answers to all search items (they are scored once) and those of earlier candidates fill in the rest."""


class FitnessConfig(_Frozen):
    """What makes a model good, and how it is measured."""

    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    """The tasks, each named once."""
    include_path: tuple[str, ...] = ()
    """Folders with lm-eval task YAMLs, searched before lm-eval's own tasks."""
    subset: SubsetConfig = SubsetConfig()
    """Which of the search items a candidate is asked."""
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

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        names = [task.task for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task {name!r} is listed twice: keep one entry and set its weight instead")
        return tasks
