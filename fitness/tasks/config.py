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
    """One lm-eval task and its weight; a name alone is a task with the default settings."""

    task: str = Field(min_length=1)
    """Name of an lm-eval task, as in the `task:` key of its YAML file; or of a group or tag, whose tasks all get this
    entry's settings and share its weight: by their numbers of items in a group, unless its YAML says `weight_by_size:
    false`, else in equal parts."""
    weight: float = Field(default=1.0, ge=-1_000_000, le=1_000_000, allow_inf_nan=False)
    """Weight of this task in the objective, relative to the other tasks' weights; not 0, no unit. Below 0: lower scores
    are better, whatever the metric, and count with the weight's size."""
    min_share_of_best_source: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    """Constraint: the lowest acceptable score, as a share of the best source's score; 0.9 keeps 90 % of it. Candidates
    that violate a constraint rank behind all that violate none. None: no constraint."""
    metric: str | None = None
    """Metric to maximise, `name` or lm-eval's `name,filter`. None: the task's first metric with a value for each item,
    after the task's first filter. Metrics where lower is better are negated, ours included: answer_loss (negative
    log-likelihood of the right answer, nats), bits_per_byte (the same per byte), answer_length (characters). Ours
    for tasks with choices: choice_probability (of the right choice, 0 to 1); without right answers choice_certainty (1
    minus the choices' entropy over its largest value)."""
    search_split: Literal["auto"] | Split = "auto"
    """Split of the search items. auto: validation if the task has one, else test (which needs `allow_test_split`)."""

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("a weight of 0 removes the effect of the task: remove the task, or set another weight")
        return weight

    @property
    def lowered(self) -> bool:
        """Whether lower scores are better by the weight's sign, whatever the metric says."""
        return self.weight < 0


class TasksConfig(Section):
    """The tasks, where their items come from, and how they are asked."""

    tasks: tuple[Annotated[TaskConfig, BeforeValidator(_task_section)], ...] = Field(min_length=1)
    """The tasks, each listed once."""
    include_path: tuple[str, ...] = ()
    """Folders of lm-eval task YAML files; they take precedence over lm-eval's own tasks."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Split = 0.5
    """Items kept for the final table: a fraction of the search split's items, in (0, 1), or the name of another split,
    which is then used completely."""
    allow_test_split: bool = False
    """Allow a test split to be searched on; its published score is then meaningless."""
    allow_code: bool = False
    """Use tasks whose metric runs programs that the model writes (HumanEval, MBPP). They run in a sandbox without
    network, files or processes, which needs Linux and Debian's package `bubblewrap`."""
    num_fewshot: int | None = Field(default=None, ge=0, le=1000)
    """Few-shot examples before each prompt, unless the task fixes their number at 0. None: the task's own number."""
    apply_chat_template: bool = False
    """Format prompts with the tokenizer's chat template, few-shot examples as turns."""

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
                raise ValueError(f"task {name!r} is listed twice: keep one entry and set its weight")
        return tasks
