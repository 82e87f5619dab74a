"""The mixture space: tables of weights, positions × sources, over the parameter order.

The space of M2N2 (arXiv:2508.16204), of soups over many checkpoints and of LoRAHub's signed sums. A genotype is a
table: the parameter order is divided into C chunks, which may end within tensors, with T weights for each chunk, one
per source. Crossover is spherical interpolation with a split point, as in M2N2:

    child_k = sin((1 − t_k)ω)/sin ω · A_k + sin(t_k ω)/sin ω · B_k,    t_k = w before the split, 1 − w after it.

A and B are weighted sums of the sources, so the child is one too, and its weights follow from theirs. The angle ω
needs only inner products, ⟨A, B⟩ = Σ_c a_cᵀ G_c b_c with the T × T Gram matrix G_c of the sources on chunk c. So only
tables are stored, and every individual is a recipe over the original sources. Relative to the base, A and B are sums of
task vectors, and G_c has the task vectors' inner products.

Deviations from M2N2: split points are between chunks (more `chunks` make them finer). Noise is a seeded term of the
recipe; there are at most `noise.terms` of them, a new one replaces the weakest, and noise is treated as orthogonal to
the sources and to other noise (correct up to 1/√n for n entries).

Legend: C chunks, T sources, M noises, G = C·(T + M) + M genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice, Source
from search_spaces.recipes.mixture_table import MAX_SEED, Mixture, Piece
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve, weighted_sum
from search_spaces.spaces.chunks import Chunking, chunking
from search_spaces.spaces.context import Gram, SpaceContext
from search_spaces.spaces.genes import Integer, Real, low_and_high, to_shares
from search_spaces.spaces.registry import register_space
from search_spaces.spaces.space import Genotype, SearchSpace, cosine

Parametrisation = Literal["direct", "simplex", "softmax", "signed"]
Interpolation = Literal["slerp", "slerp_per_segment", "linear"]

_BOUNDS: dict[str, tuple[float, float]] = {
    "direct": (0.0, 1.5),  # contains spherical children of sources for angles up to 120 degrees
    "simplex": (0.0, 1.0),
    "softmax": (-6.0, 6.0),
    "signed": (-1.5, 1.5),  # LoRAHub's
}


class WeightRange(BaseModel):
    """Range of the genes of weights; `[low, high]` for short."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    low: float = Field(ge=-1000, le=1000, allow_inf_nan=False)
    """Smallest value."""
    high: float = Field(ge=-1000, le=1000, allow_inf_nan=False)
    """Largest value, above `low`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return low_and_high(value)

    @model_validator(mode="after")
    def _ordered(self) -> WeightRange:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        return self


class NoiseConfig(BaseModel):
    """Seeded noise as a mutation; off by default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    terms: int = Field(default=0, ge=0, le=16)
    """Largest number of noise terms in a recipe; a further one replaces the weakest. 0: mutation changes weights
    instead."""
    sigma: float = Field(default=0.01, gt=0, le=1000, allow_inf_nan=False)
    """Standard deviation of a mutation, in units of the models' weights. M2N2 uses 0.01 (for training from scratch),
    GENOME 0.001."""

    @property
    def largest(self) -> float:
        """Bound of a noise's deviation, which crossover may scale."""
        return 2 * self.sigma


@register_space
class MixtureConfig(BaseModel):
    """Weights of the models in chunks of the parameter order, with crossover between the models (M2N2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["mixture"] = "mixture"
    """Which space this is."""
    chunks: int | Literal["tensors", "layers"] = 32
    """Parts of the parameter order with separate weights: about this many of equal size, which may begin and end within
    tensors; or one per tensor (`tensors`) or layer (`layers`)."""
    chromosomes: tuple[Literal["attention", "mlp"], ...] = ()
    """Parts of the layers that crossover treats as separate chromosomes, each with its own split point and angle; the
    rest of the model is one more. If empty, the whole model is one chromosome."""
    weights: Parametrisation = "direct"
    """Meaning of the genes. `direct`: the sources' weights. `simplex`, `softmax`: shares that sum to one. `signed`: the
    experts' weights; the base gets one minus their sum."""
    relative_to: Literal["base"] | None = None
    """`base`: the genes weigh the experts' task vectors (their differences from the base), and so do children: the base
    gets one minus the sum of the weights, which may add up to more than one, as in task arithmetic. Founders are the
    base, the experts, their average, and the sum of all task vectors. By default the genes weigh whole models, the base
    among them."""
    weight: WeightRange | None = None
    """Range of the genes. None: [0, 1.5] for direct, [0, 1] for simplex, [-6, 6] for softmax, [-1.5, 1.5] for
    signed."""
    crossover: Literal["auto", "slerp", "slerp_per_segment", "linear"] = "auto"
    """Interpolation between parents: `slerp` with one angle for the whole chromosome (as in M2N2's code),
    `slerp_per_segment` with one angle for each side of the split point (as in its paper), or `linear`. `auto`: slerp
    for direct weights, linear otherwise."""
    split: bool = True
    """Whether the parents' shares are exchanged at a random split point."""
    noise: NoiseConfig = NoiseConfig()
    """Mutation by seeded noise."""

    @model_validator(mode="after")
    def _consistent(self) -> MixtureConfig:
        if isinstance(self.chunks, int) and not 1 <= self.chunks <= 4096:
            raise ValueError(
                f"chunks: {self.chunks} is outside 1 to 4096; write a number in that range, tensors or layers"
            )
        if self.weights != "direct" and self.crossover in ("slerp", "slerp_per_segment"):
            raise ValueError(f"crossover: {self.weights} weights would not keep their sum; write crossover: linear")
        if self.relative_to == "base" and self.weights != "direct":
            raise ValueError(
                f"relative_to: {self.weights} weights are not factors of task vectors; write weights: direct "
                "(weight: [-1.5, 1.5] allows negative ones)"
            )
        twice = next((name for name in self.chromosomes if self.chromosomes.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"chromosomes: {twice} is named twice; name each once")
        if self.weights == "simplex" and self.bounds[0] < 0:
            raise ValueError("weight: simplex weights are divided by their sum and begin at zero; write low: 0")
        return self

    @property
    def interpolation(self) -> Interpolation:
        """The crossover, with `auto` resolved."""
        if self.crossover == "auto":
            return "slerp" if self.weights == "direct" else "linear"
        return self.crossover

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the genes."""
        return _BOUNDS[self.weights] if self.weight is None else (self.weight.low, self.weight.high)

    def codec(self, sources: int) -> Codec:
        """Return the codec between genes and the weights of that many sources."""
        return Codec("signed" if self.relative_to == "base" else self.weights, sources, *self.bounds)

    def build(self, context: SpaceContext) -> MixtureSpace:
        """Return the space over these models."""
        return MixtureSpace(self, context)


Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Codec:
    """Genes of one chunk to weights of T sources, and back."""

    kind: Parametrisation
    sources: int
    low: float
    high: float

    def decode(self, genes: Vector) -> Vector:
        """Return the weights float64[T]."""
        if self.kind == "simplex":
            return to_shares(genes)
        if self.kind == "softmax":
            return to_shares(np.exp(genes - genes.max()))
        if self.kind == "signed":
            return np.concatenate([[1.0 - genes.sum()], genes])
        return genes

    def encode(self, weights: Vector) -> Vector:
        """Return genes inside the box for the weights, or for the nearest possible ones."""
        if self.kind == "simplex":
            positive = np.clip(weights, 0.0, None)
            positive = positive if positive.any() else np.ones(self.sources)
            genes = positive * min(1.0, self.high / positive.max())
        elif self.kind == "softmax":
            smallest = weights.max() * np.exp(self.low - self.high) if weights.max() > 0 else 1.0
            logs = np.log(np.clip(weights, smallest, None))
            genes = logs - logs.max() + self.high
        else:
            genes = weights[1:] if self.kind == "signed" else weights
        inside: Vector = np.clip(genes, self.low, self.high)
        return inside


Table = npt.NDArray[np.float64]

PARALLEL = 1e-6  # largest sin ω at which vectors are interpolated linearly; the authors' bound


class MixtureSpace(SearchSpace):
    """Recipes with weights of the sources for each chunk.

    Parameters
    ----------
    config
        Chunks, parametrisation, crossover and noise.
    context
        The models. Without `context.gram`, spherical crossover raises.

    Raises
    ------
    RecipeError
        If there are fewer than two models, or more chunks than entries.
    """

    def __init__(self, config: MixtureConfig, context: SpaceContext) -> None:
        self.config = config
        self.context = context
        self.models = dict(context.models)
        if len(self.models) < 2:
            raise RecipeError("models: a mixture needs at least two; add models")
        if len(set(self.models.values())) < len(self.models):
            raise RecipeError("models: two names stand for one model; keep one")
        self.chunking: Chunking = chunking(config.chunks, config.chromosomes, context.layout, context.sizes)
        self._noises = config.noise.terms
        self._codec = config.codec(len(self.models))
        self.genes = (*self._weight_genes(), *self._seed_genes())

    def _weight_genes(self) -> list[Real]:
        low, high = self.config.bounds
        start = self._codec.encode(self._average())
        deviation = self.config.noise.largest
        names = list(self.models)[len(self.models) - len(start) :]  # none for the base if its weight is the rest
        genes = []
        for label in self.chunking.labels:
            genes += [
                Real(f"{name}[{label}]", low, high, float(np.clip(value, low, high)))
                for name, value in zip(names, start, strict=True)
            ]
            genes += [Real(f"noise {index}[{label}]", -deviation, deviation, 0.0) for index in range(self._noises)]
        return genes

    def _average(self) -> Vector:
        """Return the weights of the average of all models, or of the experts if weights are of task vectors."""
        experts = len(self.models) - 1
        if self.config.relative_to == "base":
            return np.array([0.0, *[1 / experts] * experts])
        return np.full(len(self.models), 1 / len(self.models))

    def _seed_genes(self) -> list[Integer]:
        return [Integer(f"seed {index}", 0, MAX_SEED - 1, index) for index in range(self._noises)]

    # --- genotype and table ---

    def _split(self, point: Genotype) -> tuple[Table, Table, npt.NDArray[np.int64]]:
        """Return the genes of weights [C, genes], the noises' deviations [C, M] and their seeds [M]."""
        count = self.dimension - self._noises
        table = point[:count].reshape(len(self.chunking.chunks), -1)
        columns = table.shape[1] - self._noises
        return table[:, :columns], table[:, columns:], _distinct(np.floor(point[count:] + 0.5).astype(np.int64))

    def _join(self, genes: Table, deviations: Table, seeds: npt.NDArray[np.int64]) -> Genotype:
        point = np.concatenate([np.hstack([genes, deviations]).ravel(), seeds.astype(np.float64)])
        inside: Genotype = np.clip(point, self.low, self.high)
        return inside

    def weights(self, genotype: Genotype) -> Table:
        """Return the sources' weights in the recipe of `genotype`, float64[C, T]."""
        genes, _, _ = self._split(self._checked(genotype))
        return np.array([self._codec.decode(row) for row in genes])

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of `genotype`: linear, with a table of weights."""
        point = self._checked(genotype)
        _, deviations, seeds = self._split(point)
        rows = np.hstack([self.weights(point), deviations])
        table = Mixture(
            tuple(tuple(row) for row in rows.tolist()), self.chunking.tensors, tuple(int(seed) for seed in seeds)
        )
        layers = (0, self.context.layout.num_layers)
        recipe = Recipe(
            merge_method="linear",
            slices=(Slice(tuple(Source(reference, layers) for reference in self.models.values())),),
            base_model=next(iter(self.models.values())),
            dtype=self.context.dtype,
            out_dtype=self.context.out_dtype,
            mixture=table,
        )
        return recipe.canonical()

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`: a mixture, or any linear merge, task arithmetic or single model.

        If the recipe's weights change within a chunk, their mean over its entries is taken.

        Raises
        ------
        RecipeError
            If the recipe is not a weighted sum of the space's models, moves layers, or has more noises than the space.
        """
        foreign = [model for model in recipe.models if model not in self.models.values()]
        if foreign:
            raise RecipeError(
                f"the recipe's model '{foreign[0]}' is not in the space; use only {', '.join(self.models.values())}"
            )
        plans = {plan.name: plan for plan in resolve(recipe, self.context.layout)}
        if set(plans) != set(self.context.layout.tensors()):
            raise RecipeError("the recipe has another depth than the models; give one that keeps the number of layers")
        pieces = {name: self._pieces(plan) for name, plan in plans.items()}
        seeds = sorted({noise.seed for parts in pieces.values() for part in parts for noise in part.noises})
        if len(seeds) > self._noises:
            raise RecipeError(f"the recipe has {len(seeds)} noises; set space.noise.terms to that at least")
        seeds += [seed for seed in range(self._noises) if seed not in seeds][: self._noises - len(seeds)]
        rows = self.chunking.means(pieces, seeds)
        weights, deviations = rows[:, : len(self.models)], rows[:, len(self.models) :]
        genes = np.array([self._codec.encode(row) for row in weights])
        return self._join(genes, deviations, np.array(seeds, dtype=np.int64))

    def _pieces(self, plan: TensorPlan) -> tuple[Piece, ...]:
        """Return the pieces of a tensor, with a weight for each of the space's models."""
        size, places = self.context.sizes[plan.name], {r: at for at, r in enumerate(self.models.values())}
        if any(part.tensor != plan.name for part in plan.contributions):
            raise RecipeError(f"the recipe moves layers at {plan.name}; give one that keeps them in place")
        if plan.pieces:
            if plan.pieces[-1].end != size:
                raise RecipeError(f"the recipe's table is for models of another size at {plan.name}; give another")
            order = [places[part.model] for part in plan.contributions]
            return tuple(Piece(p.end, _placed(order, p.weights, len(places)), p.noises) for p in plan.pieces)
        row = [0.0] * len(places)
        weights = weighted_sum(plan)
        if weights is None:
            raise RecipeError(
                f"the recipe's {plan.method} is not a weighted sum of models; give linear or task_arithmetic"
            )
        for model, weight in weights.items():
            row[places[model]] += weight
        return (Piece(size, tuple(row)),)

    # --- variation ---

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return the genotypes of the single sources, the base first.

        Relative to the base, their average and the sum of all task vectors follow: interpolation keeps lengths, so that
        without the sum no child is longer than one task vector. The base has no task vector to turn: its children with
        others interpolate length alone.
        """
        founders = [*np.eye(len(self.models))]
        if self.config.relative_to == "base":
            founders += [self._average(), np.ones(len(self.models))]
        points = []
        for row in founders:
            genes = np.tile(self._codec.encode(row), (len(self.chunking.chunks), 1))
            noise = np.zeros((len(genes), self._noises))
            points.append(self._join(genes, noise, np.arange(self._noises)))
        return tuple(points)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child by interpolation between `a` and `b` with a split point, as the config says.

        One ratio w ~ U(0, 1) and one split point, uniform over the chunks, for each chromosome.

        Raises
        ------
        RecipeError
            If angles are needed and there is no Gram matrix.
        """
        seeds, rows_a, rows_b = self._aligned(a, b)
        child = np.empty_like(rows_a)
        for members in self.chunking.chromosomes:
            ratio = rng.random()  # ~ U(0, 1)
            split = int(rng.integers(len(members))) if self.config.split else len(members)
            for part, t in ((members[:split], ratio), (members[split:], 1 - ratio)):
                if len(part):
                    angle_over = part if self.config.interpolation == "slerp_per_segment" else members
                    left, right = self._factors(rows_a, rows_b, angle_over, seeds, t)
                    child[part] = left * rows_a[part] + right * rows_b[part]
        if np.array_equal(rows_a, rows_b):  # rounding would make another recipe of it
            child = rows_a
        columns = child.shape[1] - len(seeds)
        return self._strongest(child[:, :columns], child[:, columns:], seeds)

    def recombine(
        self, point: Genotype, donors: Sequence[Genotype], shares: Sequence[float], rng: np.random.Generator
    ) -> Genotype:
        """Return `point` with the noise of one of `donors`, drawn with the probabilities `shares`.

        Seeds and deviations come from one donor together: a deviation says how much there is of its own seed's noise.
        """
        if not self._noises:
            return super().recombine(point, donors, shares, rng)
        genes, _, _ = self._split(self.settled(point))
        _, deviations, seeds = self._split(donors[int(rng.choice(len(donors), p=shares))])
        return self._join(genes, deviations, seeds)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` with noise of deviation `noise.sigma` on all weights, as a new seeded term.

        Without noise terms it is the general operator, normal steps of a few genes.
        """
        if not self._noises:
            return super().mutate(a, rng)
        genes, deviations, seeds = self._split(a)
        fresh = int(rng.integers(MAX_SEED))
        column = np.full((len(genes), 1), self.config.noise.sigma)
        return self._strongest(genes, np.hstack([deviations, column]), np.append(seeds, fresh))

    def similarity(self, a: Genotype, b: Genotype) -> float:
        """Return the cosine of the task vectors of two mixtures, without their noise; needs the models' weights."""
        if self.context.gram is None:
            return super().similarity(a, b)
        base = np.eye(len(self.models))[0]  # the first model
        x, y = (self.weights(point) - base for point in (a, b))
        products = [float(np.einsum("ci,cij,cj->", one, self._gram, two)) for one, two in ((x, y), (x, x), (y, y))]
        return cosine(*products)

    def _aligned(self, a: Genotype, b: Genotype) -> tuple[npt.NDArray[np.int64], Table, Table]:
        """Return the seeds of both, and for each the rows [C, genes + seeds] over the union of their noises."""
        genes_a, noise_a, seeds_a = self._split(a)
        genes_b, noise_b, seeds_b = self._split(b)
        seeds = np.unique(np.concatenate([seeds_a, seeds_b]))

        def rows(genes: Table, deviations: Table, own: npt.NDArray[np.int64]) -> Table:
            noise = np.zeros((len(genes), len(seeds)))
            np.add.at(noise.T, np.searchsorted(seeds, own), deviations.T)
            return np.hstack([genes, noise])

        return seeds, rows(genes_a, noise_a, seeds_a), rows(genes_b, noise_b, seeds_b)

    def _factors(
        self, a: Table, b: Table, members: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64], t: float
    ) -> tuple[float, float]:
        """Return the factors of `a` and `b` at position t, from their angle over the chunks `members`."""
        if self.config.interpolation == "linear":
            return 1 - t, t

        def inner(x: Table, y: Table) -> float:
            return float(np.einsum("ci,cij,cj->", x[members], self._metric(len(seeds))[members], y[members]))

        norms = np.sqrt(max(inner(a, a), 0.0) * max(inner(b, b), 0.0))
        omega = np.arccos(np.clip(inner(a, b) / norms, -1.0, 1.0)) if norms else 0.0
        sine = np.sin(omega)
        if sine <= PARALLEL:
            return 1 - t, t
        return float(np.sin((1 - t) * omega) / sine), float(np.sin(t * omega) / sine)  # (eq. 2)

    def _metric(self, noises: int) -> Table:
        """Return inner products of what the genes weigh on each chunk, float64[C, genes + noises, genes + noises]."""
        vectors = self._gram
        if self.config.relative_to == "base":  # ⟨a − b, c − b⟩ from the models' own inner products
            base = vectors[:, :1, 1:]
            vectors = vectors[:, 1:, 1:] - base - base.transpose(0, 2, 1) + vectors[:, :1, :1]
        count = vectors.shape[1]
        metric = np.zeros((len(self.chunking.chunks), count + noises, count + noises))
        metric[:, :count, :count] = vectors
        diagonal = np.arange(count, count + noises)
        metric[:, diagonal, diagonal] = self.chunking.entries[:, None]
        return metric

    @cached_property
    def _gram(self) -> Gram:
        if self.context.gram is None:
            raise RecipeError("space.crossover: angles need the models' weights; write crossover: linear")
        return self.context.gram(self.chunking.chunks)

    def _strongest(self, genes: Table, deviations: Table, seeds: npt.NDArray[np.int64]) -> Genotype:
        """Return the genotype with only the strongest noises, by sum of squares, in their order."""
        missing = max(0, self._noises - len(seeds))
        unused = [seed for seed in range(len(seeds) + missing) if seed not in seeds][:missing]
        deviations = np.hstack([deviations, np.zeros((len(genes), missing))])
        seeds = np.append(seeds, np.array(unused, dtype=np.int64))
        energy = (deviations**2).sum(axis=0)
        kept = np.sort(np.argsort(-energy, kind="stable")[: self._noises])
        return self._join(genes, deviations[:, kept], seeds[kept])


def _distinct(seeds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return seeds with each repeat moved to the next free one: equal noises would add up beyond the box."""
    taken: list[int] = []
    for seed in np.clip(seeds, 0, MAX_SEED - 1).tolist():
        while seed in taken:
            seed = (seed + 1) % MAX_SEED  # noqa: PLW2901
        taken.append(seed)
    return np.array(taken, dtype=np.int64)


def _placed(order: list[int], weights: tuple[float, ...], count: int) -> tuple[float, ...]:
    row = [0.0] * count
    for place, weight in zip(order, weights, strict=True):
        row[place] += weight
    return tuple(row)
