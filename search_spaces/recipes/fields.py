"""The plain data of a recipe: its sources, slices and path, their limits, and what follows from the fields alone.

`Recipe` adds the checks (in ``recipe``) and the equality (in ``canonical``); both are written in terms of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from search_spaces.recipes.methods import MethodSpec, method_spec
from search_spaces.recipes.mixture_table import Mixture
from search_spaces.recipes.parameter_values import Parameters
from search_spaces.recipes.token_rules import TokenRules

DTYPES = ("float32", "bfloat16", "float16", "float64")

# Limits of a recipe, checked before anything is allocated. The canonical form writes every condition of every
# source for every layer, so their product must stay small.
MAX_LAYERS = 1024
MAX_SLICES = MAX_LAYERS + 2
MAX_SOURCES = 64
MAX_GRADIENT = MAX_LAYERS
MAX_CONDITIONS = 64

VOCABULARIES = ("union", "base", "first", "pad")
"""Values of `RecipeFields.tokenizer_source` that do not name a model."""

CalibrationText: TypeAlias = str | tuple[tuple[str, str], ...]
"""A text file for all models, or one for each: pairs of a model's reference and its file, sorted."""

WRITERS = ("down_proj", "o_proj")
"""Parts of the names of tensors that add to the residual stream: a path layer's scale multiplies these."""


@dataclass(frozen=True)
class Source:
    """One model's part in a slice: its layers ``[start, end)``, or all of them (None: the `models:` form)."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters = ()

    @property
    def start(self) -> int:
        """First layer; 0 when it is not sliced yet."""
        return 0 if self.layer_range is None else self.layer_range[0]

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 when it is not sliced yet."""
        return 0 if self.layer_range is None else self.layer_range[1] - self.layer_range[0]


@dataclass(frozen=True)
class Slice:
    """A run of output layers and the sources it is merged from.

    A first slice without layers (``[k, k]``) gives the embeddings, a last one the final norm and the head. A slice with
    its own method takes no parameters from the recipe. (mergekit has one method per recipe; this is our extension.)
    """

    sources: tuple[Source, ...]
    parameters: Parameters = ()
    base_model: str | None = None
    merge_method: str | None = None

    @property
    def num_layers(self) -> int:
        """Layers of the output that the slice makes."""
        return self.sources[0].num_layers if self.sources else 0


@dataclass(frozen=True)
class PathLayer:
    """One layer of a path.

    Attributes
    ----------
    model
        Reference of the model that has it; None: the merge that the recipe describes.
    layer
        Which of its layers.
    scale
        Factor of its writers (`WRITERS`).
    """

    model: str | None
    layer: int
    scale: float = 1.0

    def scale_of(self, tensor: str) -> float:
        """Return the factor of the tensor with that name."""
        return self.scale if any(writer in tensor for writer in WRITERS) else 1.0


@dataclass(frozen=True, eq=False)
class RecipeFields:
    """The fields of a recipe and what follows from them, without the checks and the equality that `Recipe` adds.

    Attributes
    ----------
    merge_method
        A name in ``METHODS``, for all slices without their own.
    slices
        Output slices in order. mergekit's `models:` form is one slice whose sources have no `layer_range`.
    base_model
        The base if the method has one, and the donor of config and tokenizer.
    parameters
        Settings for all slices, sorted by name. A slice's settings override them, and a source's override both.
    dtype, out_dtype
        Precision of the arithmetic and of the result; None: the sources' precision, and `dtype`.
    tokenizer_source
        The result's vocabulary: ``union``, ``base``, a model, or one of our extensions: ``first``, that of the first
        model that is not the base, and ``pad``, which compares rows by id. None copies the base's; all must be equal.
    tokens
        Sources of single tokens' embeddings, and the number of rows; needs `tokenizer_source`.
    chat_template
        ``auto``, the name of a template or a Jinja string.
    seed
        Seed of the random masks of stochastic methods (None: 0). Our extension, like all fields below but `tokens`.
    calibration_text
        Text file for statistics of the models, for methods and parameters that need them (`activation_informed`); one
        for all models, or one for each.
    adapters
        ``core``: merge LoRA adapters in their core space; None: as full weights.
    mixture
        Weights that change within tensors, only for ``linear`` and in place of its parameters. They are not divided by
        their sum. Its sources are those of the only slice, which has all layers.
    path
        Layers of the result in order, from the merge that the other fields describe and from further models. None: the
        merge's own layers. Paths without a merge are written as passthrough slices instead.
    """

    merge_method: str
    slices: tuple[Slice, ...]
    base_model: str | None = None
    parameters: Parameters = ()
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    seed: int | None = None
    calibration_text: CalibrationText | None = None
    adapters: Literal["core"] | None = None
    mixture: Mixture | None = None
    path: tuple[PathLayer, ...] | None = None
    tokens: TokenRules | None = None

    @property
    def spec(self) -> MethodSpec:
        """What the merge method takes."""
        return method_spec(self.merge_method)

    def spec_of(self, part: Slice) -> MethodSpec:
        """Return what the merge method of `part` takes."""
        return method_spec(part.merge_method or self.merge_method)

    @property
    def specs(self) -> tuple[MethodSpec, ...]:
        """What each of the recipe's methods takes, in order of first use."""
        return tuple({spec.name: spec for spec in map(self.spec_of, self.slices)}.values())

    @property
    def methods(self) -> str:
        """The names of the recipe's methods, for messages."""
        return ", ".join(spec.name for spec in self.specs)

    def scopes_of(self, part: Slice) -> tuple[Parameters, ...]:
        """Return the parameters that apply to a slice, the narrowest first."""
        return (part.parameters, self.parameters) if part.merge_method is None else (part.parameters,)

    @property
    def is_sliced(self) -> bool:
        """False for the `models:` form, whose number of layers is only known from the models."""
        return self.slices[0].sources[0].layer_range is not None

    @property
    def num_layers(self) -> int | None:
        """Layers of the output; None in the `models:` form."""
        if self.path is not None:
            return len(self.path)
        return sum(part.num_layers for part in self.slices) if self.is_sliced else None

    @property
    def models(self) -> tuple[str, ...]:
        """All references in order of first use: sources, then bases that are not sources, then the path's models."""
        sources = [source.model for part in self.slices for source in part.sources]
        bases = [base for base in (self.base_model, *(part.base_model for part in self.slices)) if base]
        path = [layer.model for layer in self.path or () if layer.model is not None]
        return tuple(dict.fromkeys(sources + bases + path))

    @property
    def donor(self) -> str:
        """The model that gives config and tokenizer: the base, else the first source."""
        return self.base_model or self.slices[0].sources[0].model

    def base_of(self, part: Slice) -> str | None:
        """Return the base of `part`: its own, else the recipe's."""
        return part.base_model or self.base_model

    @property
    def needs_calibration(self) -> bool:
        """Whether a method, or a parameter that is set, uses what models do on a text."""
        return any(spec.statistics for spec in self.specs) or self._sets_after

    @property
    def _sets_after(self) -> bool:
        """Whether a parameter that uses the base's activations is set."""
        scopes = [self.parameters, *(part.parameters for part in self.slices)]
        needing = {
            parameter.name for spec in (self.spec, *self.specs) for parameter in spec.parameters if parameter.after
        }
        return any(name in needing for scope in scopes for name, _ in scope)

    @property
    def measured(self) -> tuple[str, ...]:
        """References of the models whose calibration texts are read, in order of first use."""
        found: dict[str, None] = {}
        for part in self.slices:
            spec, base = self.spec_of(part), self.base_of(part)
            apart = base if spec.base != "none" else None
            if spec.statistics:
                found.update(dict.fromkeys(source.model for source in self.with_base(part) if source.model != apart))
            if self._sets_after and base is not None:
                found[base] = None
        return tuple(found)

    def text_of(self, model: str) -> str | None:
        """Return the calibration text of a model; None if it has none."""
        text = self.calibration_text
        return text if text is None or isinstance(text, str) else dict(text).get(model)

    @property
    def calibration_files(self) -> tuple[str, ...]:
        """All calibration texts."""
        text = self.calibration_text
        files = () if text is None else (text,) if isinstance(text, str) else (file for _, file in text)
        return tuple(dict.fromkeys(files))

    def with_base(self, part: Slice) -> tuple[Source, ...]:
        """Return the sources of `part`, with the base last if the `models:` form leaves it out."""
        base = self.base_of(part)
        if self.is_sliced or base is None or any(source.model == base for source in part.sources):
            return part.sources
        return (*part.sources, Source(base, None))


def changed_text(text: CalibrationText | None, change: Callable[[str], str]) -> CalibrationText | None:
    """Return calibration texts with `change` applied to the name of each file."""
    if text is None or isinstance(text, str):
        return text if text is None else change(text)
    return tuple((model, change(file)) for model, file in text)
