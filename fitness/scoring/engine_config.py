"""The `fitness.engine` section of a search file: which program reads prompts and writes answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from fitness.tasks.config import Section

Quantization: TypeAlias = Literal["int8", "int4"]
"""What weights are rounded to."""


class TransformersEngine(Section):
    """The merged model answers in the worker's process."""

    kind: Literal["transformers"] = "transformers"
    quantization: Quantization | None = None
    """Score candidates, and sources during the search, with the weights of linear layers rounded after each merge.
    int8: weights and the layers' inputs have 8 bits. int4: weights have 4 bits. Held-out answers, and with them the
    final table, always come from unquantised models. None: the search does as well."""

    def identity(self) -> dict[str, Any] | None:
        """Return what numbers follow from; None for the defaults, as in runs from before there was another engine."""
        return None if self == TransformersEngine() else self.model_dump(mode="json")


class VllmEngine(Section):
    """vLLM answers, in a separate process and environment; merged weights are copied to it through memory."""

    quantization: ClassVar[None] = None
    kind: Literal["vllm"] = "vllm"
    python: str | None = None
    """Python of the environment that has vLLM: a path, relative to the search file. None: the one that runs the
    search."""
    kv_memory: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False)
    """GiB for the keys and values of running sequences, on each GPU. None: as many as `batch_size` sequences need, at
    most what is free."""
    compiled: bool = True
    """Whether vLLM captures CUDA graphs and compiles the model when it starts, on a GPU; false: it starts faster and
    generates more slowly."""
    allow_untested: bool = False
    """Accept a version of vLLM that evomerge was not tested with."""

    def identity(self) -> dict[str, Any]:
        """Return what numbers follow from: all but where vLLM is, how much memory it has, and what is accepted."""
        return self.model_dump(mode="json", exclude={"python", "kv_memory", "allow_untested"})


def _engine_section(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "transformers"} | value if isinstance(value, dict) else value


AnyEngine: TypeAlias = Annotated[
    Annotated[TransformersEngine | VllmEngine, Field(discriminator="kind")], BeforeValidator(_engine_section)
]
"""Any engine, as a section with its `kind`, or as that word alone."""
