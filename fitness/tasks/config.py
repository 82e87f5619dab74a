"""The keys of a search file's `fitness` section that say which items are asked, and how."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Split: TypeAlias = Literal["train", "validation", "test"]


def _task_section(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the search file; frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskConfig(Section):
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


class TasksConfig(Section):
    """The tasks, where their items come from, and how they are asked."""

    tasks: tuple[Annotated[TaskConfig, BeforeValidator(_task_section)], ...] = Field(min_length=1)
    """The tasks, each named once."""
    include_path: tuple[str, ...] = ()
    """Folders with lm-eval task YAMLs, searched before lm-eval's own tasks."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Split = 0.5
    """Items kept for the final table: a fraction of the search split's items, in (0, 1), or the name of
    another split, which is then used whole."""
    allow_test_split: bool = False
    """Acknowledges that search items come from a test split: a published score then means nothing."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each prompt, unless the task fixes their number at 0. None: the task's own."""
    apply_chat_template: bool = False
    """Put prompts into the tokenizer's chat template, few-shot examples as turns."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_task(cls, tasks: Any) -> Any:
        return [tasks] if isinstance(tasks, str) else tasks

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        names = [task.task for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task {name!r} is listed twice: keep one entry and set its weight instead")
        return tasks
