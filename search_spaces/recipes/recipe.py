"""The recipe: which models to merge, where and how. A point of every search space.

A recipe says nothing about how it was found. Its YAML is mergekit's dialect (see ``dialect``), its meaning
mergekit 0.1.5's (see ``resolve``); two spellings of one merge are equal and share a hash (see ``canonical``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import MethodSpec, method_spec
from search_spaces.recipes.mixture_table import Mixture
from search_spaces.recipes.parameter_values import Condition, Parameters, Setting
from search_spaces.recipes.path_layer import Stop
from search_spaces.recipes.token_rules import TokenRules
from search_spaces.recipes.validation import validate

__all__ = ["Condition", "Parameters", "Recipe", "RecipeError", "Setting", "Slice", "Source", "Stop"]

VOCABULARIES = ("union", "base", "first", "pad")
"""Values of `Recipe.tokenizer_source` that are no model."""


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
        """Layers the source gives; 0 when it is not sliced yet."""
        return 0 if self.layer_range is None else self.layer_range[1] - self.layer_range[0]


@dataclass(frozen=True)
class Slice:
    """A run of output layers and the sources it is merged from.

    A slice without layers (``[k, k]``) says where the embeddings come from when it is the first, and the
    final norm and the head when it is the last. One with a method of its own (ours, mergekit has one for a recipe)
    takes no parameters from the recipe.
    """

    sources: tuple[Source, ...]
    parameters: Parameters = ()
    base_model: str | None = None
    merge_method: str | None = None

    @property
    def num_layers(self) -> int:
        """Layers of the output that the slice makes."""
        return self.sources[0].num_layers if self.sources else 0


@dataclass(frozen=True, eq=False)
class Recipe:
    """What to merge and how; immutable, validated at construction, equal to every other spelling of itself.

    Attributes
    ----------
    merge_method
        A key of ``METHODS``; of all slices that name none.
    slices
        Output slices in order. mergekit's `models:` form is one slice whose sources have no `layer_range`.
    base_model
        The base where the method has one, and the donor of config and tokenizer.
    parameters
        Settings for all slices, sorted by name; overridden by a slice's, and those by a source's.
    dtype, out_dtype
        Precision of the arithmetic and of the result; None: the sources' own, and `dtype`.
    tokenizer_source
        Whose vocabulary the result has: ``union``, ``base``, a model, or (ours) ``first``, the first model's that
        is not the base, and ``pad``, which compares rows by id; None copies the base's, and all must be equal.
    tokens
        Whose rows single tokens have, and the number of rows; needs `tokenizer_source`.
    chat_template
        ``auto``, the name of a template or a Jinja string.
    seed
        Decides the random masks of stochastic methods (None: 0). Ours: mergekit has no such key.
    calibration
        The text file that models are measured on, for parameters that need it (`aim`); ours, too.
    adapters
        ``core``: merge LoRA adapters in their core space; None: as full weights. Ours.
    mixture
        Weights that change within tensors, for ``linear`` alone, in place of its parameters; used as they are and not
        divided by their sum. Its sources are those of the single slice, which holds all layers. Ours, too.
    path
        Layers of the result in order, of the merge that all else describes and of further models. None: the merge as it
        is. Ours as well; what needs no merge is written as passthrough slices.

    Raises
    ------
    RecipeError
        If the method is unknown, a parameter is not one of its own or has an impossible value, the number of
        sources does not fit the method, or sources of a slice differ in their number of layers.
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
    calibration: str | None = None
    adapters: Literal["core"] | None = None
    mixture: Mixture | None = None
    path: tuple[Stop, ...] | None = None
    tokens: TokenRules | None = None

    def __post_init__(self) -> None:
        validate(self)

    # --- in and out ---

    @classmethod
    def from_yaml(cls, text: str, origin: str = "recipe") -> Recipe:
        """Read a recipe in mergekit's dialect; errors start with `origin` and name the place in the document.

        Raises
        ------
        RecipeError
            If the text is not YAML, is too large, or is not a valid recipe.
        """
        from search_spaces.recipes import mergekit_yaml

        return mergekit_yaml.parse(text, origin)

    @classmethod
    def from_dict(cls, data: Any, origin: str = "recipe") -> Recipe:
        """Read a recipe from plain mappings, lists and scalars, as `to_dict` gives them.

        Raises
        ------
        RecipeError
            If it is not a valid recipe.
        """
        from search_spaces.recipes import mergekit_yaml

        return mergekit_yaml.build(data, origin)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises
        ------
        RecipeError
            If the file cannot be read or holds no valid recipe.
        """
        from search_spaces.recipes import mergekit_yaml

        return mergekit_yaml.read(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain mappings, lists and scalars in mergekit's mergekit_yaml."""
        from search_spaces.recipes import mergekit_yaml

        return mergekit_yaml.as_dict(self)

    def to_yaml(self, header: str = "") -> str:
        """Return the recipe as YAML, one source per line, below `header` as a comment."""
        from search_spaces.recipes import mergekit_yaml

        return mergekit_yaml.dump(self, header)

    # --- what it speaks of ---

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
        """False for the `models:` form, whose number of layers only the models know."""
        return self.slices[0].sources[0].layer_range is not None

    @property
    def num_layers(self) -> int | None:
        """Layers of the output; None in the `models:` form."""
        if self.path is not None:
            return len(self.path)
        return sum(part.num_layers for part in self.slices) if self.is_sliced else None

    @property
    def models(self) -> tuple[str, ...]:
        """All references in order of first use: the sources', then bases that are no source, then the path's."""
        sources = [source.model for part in self.slices for source in part.sources]
        bases = [base for base in (self.base_model, *(part.base_model for part in self.slices)) if base]
        stops = [stop.model for stop in self.path or () if stop.model is not None]
        return tuple(dict.fromkeys(sources + bases + stops))

    @property
    def donor(self) -> str:
        """The model that config and tokenizer come from: the base, else the first source."""
        return self.base_model or self.slices[0].sources[0].model

    def base_of(self, part: Slice) -> str | None:
        """Return the base of `part`: its own, else the recipe's."""
        return part.base_model or self.base_model

    # --- other forms ---

    def with_models(self, mapping: Mapping[str, str]) -> Recipe:
        """Return the recipe with every reference that is a key of `mapping` replaced; others stay."""

        def renamed(reference: str | None) -> str | None:
            return reference if reference is None else mapping.get(reference, reference)

        tokenizer = self.tokenizer_source
        slices = tuple(
            replace(
                part,
                sources=tuple(replace(s, model=mapping.get(s.model, s.model)) for s in part.sources),
                base_model=renamed(part.base_model),
            )
            for part in self.slices
        )
        return replace(
            self,
            slices=slices,
            base_model=renamed(self.base_model),
            tokenizer_source=tokenizer if tokenizer in VOCABULARIES else renamed(tokenizer),
            tokens=self.tokens and self.tokens.with_models(mapping),
            path=self.path and tuple(replace(stop, model=renamed(stop.model)) for stop in self.path),
        )

    def expanded(self, num_layers: int) -> Recipe:
        """Return the sliced form: the `models:` form becomes one slice over all `num_layers` layers.

        As in mergekit, a base that is not among the models becomes the last source. A sliced recipe is
        returned as it is.
        """
        if self.is_sliced:
            return self
        (part,) = self.slices
        sources = tuple(replace(source, layer_range=(0, num_layers)) for source in self.with_base(part))
        return replace(self, slices=(replace(part, sources=sources),))

    def with_base(self, part: Slice) -> tuple[Source, ...]:
        """Return the sources of `part`, with the base as the last where the `models:` form leaves it out."""
        base = self.base_of(part)
        if self.is_sliced or base is None or any(source.model == base for source in part.sources):
            return part.sources
        return (*part.sources, Source(base, None))

    def canonical(self) -> Recipe:
        """Return the one spelling that all recipes for this merge share.

        Sliced recipes become one slice per layer between a head and a tail slice without layers, every value
        written where it applies. The `models:` form keeps its shape: call `expanded` first to compare it with
        sliced ones.
        """
        return self._canonical

    @cached_property
    def _canonical(self) -> Recipe:
        from search_spaces.recipes.canonical import canonical_form

        form = canonical_form(self)
        form.__dict__["_canonical"] = form  # so that nothing computes the canonical form of a canonical form
        return form

    @cached_property
    def _canonical_json(self) -> str:
        from search_spaces.recipes.canonical import canonical_json

        return canonical_json(self._canonical)

    @cached_property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical form."""
        from search_spaces.recipes.canonical import digest

        return digest(self._canonical_json)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self._canonical_json == other._canonical_json

    def __hash__(self) -> int:
        return hash(self._canonical_json)

    # --- mergekit ---

    def mergekit_obstacles(self) -> tuple[str, ...]:
        """Return why mergekit 0.1.5 cannot rebuild the same weights; nothing when it can."""
        from search_spaces.recipes import mergekit_export

        return mergekit_export.obstacles(self)

    def rounded_for_mergekit(self) -> tuple[Recipe, tuple[str, ...]]:
        """Return the nearest recipe without our extensions, and a sentence for each thing given up."""
        from search_spaces.recipes import mergekit_export

        return mergekit_export.rounded(self)
