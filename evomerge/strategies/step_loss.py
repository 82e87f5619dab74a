"""What a gradient search minimises: a loss of the model's outputs, and penalties.

Labelled: `right_answer`. Label-free: `entropy` of the outputs (AdaMerging, Yang et al. 2024, arXiv 2310.02575), `js`
and `kl`, divergences from the experts' predictions of a text (DivMerge; Expert Merging).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self


class LossConfig(BaseModel):
    """What the steps minimise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["right_answer", "entropy", "js", "kl"] = "right_answer"
    """right_answer: the cross-entropy of the right choice, or the loss of the right answer per token. entropy: that of
    the choices, or of each token of the model's own answer; needs no right answers. js, kl: the divergence
    (Jensen-Shannon, Kullback-Leibler) of the merged model's predictions from each expert's on `text`; needs no tasks'
    answers either."""
    text: str | dict[str, str] | None = None
    """UTF-8 text file for js and kl: one for all experts, or a file for each expert by name."""
    window: int = Field(default=128, ge=8, le=1_048_576)
    """Tokens of the text that are read together; the strategy's `items` counts such windows per expert."""
    l1: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Penalty: times the mean distance of the genes from `towards`, as fractions of their ranges."""
    l2: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Penalty: times the mean squared distance, likewise."""
    towards: Literal["start", "zero"] = "start"
    """Where `l1` and `l2` pull the genes."""
    distance_to_base: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Penalty: times the squared distance of the merged weights from the base's, over the mean of the experts'."""

    @model_validator(mode="after")
    def _has_its_text(self) -> Self:
        if self.reads_text and not self.text:
            raise ValueError(f"loss {self.kind} compares predictions of a text; write text: FILE, or loss: entropy")
        if self.text is not None and not self.reads_text:
            raise ValueError(f"loss {self.kind} reads no text; remove text, or write kind: js")
        return self

    @property
    def reads_text(self) -> bool:
        """Whether steps are asked windows of a text instead of items of the tasks."""
        return self.kind in ("js", "kl")
