"""PPO: a policy that chooses one gene after another learns from the score of the whole.

Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), as Reinforced Model Merging uses it over the
layers of models (RMM, arXiv:2503.21272). An episode is a genotype: in step t the policy sees what the space shows of
the genes before (`SearchSpace.observation`) and draws the next active gene's value; the only reward is the score at the
end. With the return G_t = γ^(T-1-t) · R, R the score standardised over the generation, V the value network, and
A_t = G_t - V(s_t), K epochs of Adam minimise the mean over all steps of

    -min(r A, clip(r, 1 - ε, 1 + ε) A) + ½ (V - G)² - β H,    r = π(a | s) / π_old(a | s)      (eq. 7 and 9)

Policy and value are networks of two layers of 64 tanh units, as RMM's; their sizes, ε, γ, K and the entropy's β are
RMM's. Both are written here in numpy and not taken from stable-baselines3 or torch: a search is resumed by replaying
its results, so all state must follow from the seed and the results, and a strategy needs no torch.

Deviations: with `start_probability`, the search's start is likelier at first than chance has it. The learning rates are
3 and 10 times RMM's, whose runs have thousands of episodes (chosen on planted paths, `tests/strategies/test_ppo.py`).
Returns are standardised by the generation's scores.

Legend: P episodes, N steps of all, F features, n values of a gene, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.discrete import countable, first_probabilities, seen_probabilities
from evomerge.strategies.generation import Sampling, default_population, resolved_number
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Array = NDArray[np.float64]

UNITS = 64
"""Units of each hidden layer."""
FEWEST_GENERATIONS = 20


@register_strategy
class PpoConfig(StrategyConfig):
    """A policy that chooses one gene after another (RMM); for sequences of choices, such as `layer_actions`."""

    warm_start_type = WarmStartPopulation

    kind: Literal["ppo"] = "ppo"
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Episodes per update, at least 4. `auto`: from the number of genes and the budget."""
    epochs: int = Field(default=40, ge=1, le=1000)
    """Steps of Adam per update."""
    clip: float = Field(default=0.2, gt=0, le=1)
    """How far a probability may move from that of the last update, as a ratio, before its gradient stops."""
    discount: float = Field(default=0.99, gt=0, le=1)
    """Discount factor: how much less the final score counts for each earlier step."""
    entropy: float = Field(default=1e-4, ge=0, le=10)
    """Weight of the policy's entropy, which keeps it from settling early."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Adam's learning rate of the policy."""
    value_rate: float = Field(default=1e-2, gt=0, le=1)
    """Adam's learning rate of the value network."""
    start_probability: float = Field(default=0.0, ge=0, lt=1)
    """Initial probability of each gene's start value beyond its equal share. 0: random choices at first, as in RMM."""
    score_mean_every: int = Field(default=5, ge=1, le=10_000)
    """Score the policy's likeliest choices as a candidate every this many generations."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates give the initial probabilities. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced.

        Raises
        ------
        ValueError
            If a gene of the space is not a choice.
        """
        numbers = [gene.name for gene, chosen in zip(space.genes, countable(space), strict=True) if not chosen]
        if numbers:
            raise ValueError(
                f"strategy.kind ppo chooses among options, and {numbers[0]} is a number; write space.kind "
                "layer_actions, data_flow with scales: none, or strategy.kind eda"
            )
        if self.population != "auto":
            return self
        wanted = 2 * default_population(space.dimension)
        return self.model_copy(update={"population": max(8, min(wanted, evaluations // FEWEST_GENERATIONS))})

    def build(self, space: SearchSpace, seed: int) -> Ppo:
        """Build the strategy; the settings must be resolved."""
        return Ppo(space, seed, self)


class Ppo(Strategy):
    """Synchronous: it learns from a generation of episodes when all their results are in."""

    guess = "policy's choices"

    def __init__(self, space: SearchSpace, seed: int, config: PpoConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._counts = np.rint(space.high - space.low).astype(int)
        self._prior = self._first_logits()
        features = len(space.observation(np.full(space.dimension, np.nan)))
        self._policy = Network((features, UNITS, UNITS, self._prior.shape[1]), config.learning_rate, self.rng)
        self._value = Network((features, UNITS, UNITS, 1), config.value_rate, self.rng)
        self._sampling = Sampling(self._samples, self.recommend, config.score_mean_every, self._update)

    def recommend(self) -> Genotype:
        """Return the episode of the likeliest choices."""
        return self._episode(lambda probabilities: int(np.argmax(probabilities)))

    def _propose(self, n: int) -> list[Proposal]:
        return self._sampling.take(n, self._asked)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._sampling.put(candidate, evaluation)

    def _first_logits(self) -> Array:
        """Return the logarithms of each gene's first probabilities, float64[G, n]; -inf beyond its values."""
        warm_start = self.config.warm_start
        points = None if warm_start is None else np.array(warm_start.points(self.space))
        logits = np.full((self.space.dimension, int(self._counts.max())), -np.inf)
        for at, gene in enumerate(self.space.genes):
            first = first_probabilities(gene, self.config.start_probability)
            if points is not None:
                first = seen_probabilities(gene, points[:, at], first)
            logits[at, : len(first)] = np.log(np.maximum(first, 1e-12))
        return logits

    # --- episodes ---

    def _samples(self) -> list[Genotype]:
        def draw(probabilities: Array) -> int:
            return min(int(np.searchsorted(np.cumsum(probabilities), self.rng.random())), len(probabilities) - 1)

        return [self._episode(draw) for _ in range(self.population)]

    def _episode(self, choose: Callable[[Array], int]) -> Genotype:
        """Return a genotype, each active gene chosen from its probabilities, float64[n]; others stay at the start."""
        point = self.space.start.copy()
        for gene, seen in self._steps(point):
            logits = self._policy.outputs(seen[None])[0] + self._prior[gene]
            count = self._counts[gene]
            point[gene] = self.space.low[gene] + choose(softmax(logits[:count])) + 0.5
        return self.space.settled(point)

    def _steps(self, point: Genotype) -> Iterator[tuple[int, Array]]:
        """Yield each gene that is active given those before it, and what is seen there, float64[F].

        `point` may change between steps: only what is decided is read.
        """
        for gene in range(self.space.dimension):
            known = self.space.start.copy()
            known[:gene] = point[:gene]
            if self.space.active(known)[gene]:
                known[gene:] = np.nan
                yield gene, self.space.observation(known)

    # --- learning ---

    def _update(self, samples: Array, fitness: Array) -> None:
        """Learn from P episodes, float64[P, G], with their scores, float64[P]."""
        scores = (fitness - fitness.mean()) / (fitness.std() + 1e-7)
        genes, seen, returns = [], [], []
        chosen: list[int] = []
        for point, score in zip(samples, scores, strict=True):
            steps = list(self._steps(point))
            genes += [gene for gene, _ in steps]
            seen += [features for _, features in steps]
            chosen += [int(point[gene] - self.space.low[gene]) for gene, _ in steps]
            returns += [score * self.config.discount ** (len(steps) - 1 - at) for at in range(len(steps))]
        self._train(np.array(seen), self._prior[genes], np.array(chosen), np.array(returns))

    def _train(self, seen_NF: Array, prior_Nn: Array, chosen_N: NDArray[np.int64], return_N: Array) -> None:
        """Take the epochs' steps from N choices, their probabilities before the first step being those of π_old."""
        rows = np.arange(len(chosen_N))
        taken_Nn = np.zeros_like(prior_Nn)
        taken_Nn[rows, chosen_N] = 1.0
        old_N = softmax(self._policy.outputs(seen_NF) + prior_Nn)[rows, chosen_N]
        for _ in range(self.config.epochs):
            value_N = self._value.outputs(seen_NF)[:, 0]
            advantage_N = return_N - value_N
            p_Nn = softmax(self._policy.outputs(seen_NF) + prior_Nn)
            ratio_N = p_Nn[rows, chosen_N] / old_N
            bound_N = np.where(advantage_N > 0, ratio_N < 1 + self.config.clip, ratio_N > 1 - self.config.clip)
            # d/dz of -r A is -r A (1[taken] - p); 0 where the clipped term is the smaller
            slope_Nn = -(advantage_N * ratio_N * bound_N)[:, None] * (taken_Nn - p_Nn)
            log_Nn = np.log(np.maximum(p_Nn, 1e-300))
            entropy_N = -(p_Nn * log_Nn).sum(axis=1)
            slope_Nn += self.config.entropy * p_Nn * (log_Nn + entropy_N[:, None])  # d/dz of -H
            self._policy.step(slope_Nn / len(rows))
            self._value.step((value_N - return_N)[:, None] / len(rows))


class Network:
    """Layers of tanh units and a linear output, trained by Adam (Kingma and Ba, arXiv:1412.6980).

    Parameters
    ----------
    sizes
        Inputs, hidden units, outputs.
    rate
        Adam's learning rate.
    rng
        Draws the first weights, ~ N(0, 1 / inputs); those of the output are 0.
    """

    def __init__(self, sizes: Sequence[int], rate: float, rng: np.random.Generator) -> None:
        self._rate, self._time = rate, 0
        self._weights = [rng.normal(0, fan_in**-0.5, (fan_in, out)) for fan_in, out in pairwise(sizes)]
        self._weights[-1][:] = 0.0
        self._weights += [np.zeros(out) for out in sizes[1:]]
        self._first = [np.zeros_like(weight) for weight in self._weights]
        self._second = [np.zeros_like(weight) for weight in self._weights]
        self._layers = len(sizes) - 1
        self._activations: list[Array] = []

    def outputs(self, inputs: Array) -> Array:
        """Return the outputs, float64[N, out], for inputs float64[N, in]; `step` refers to the last call."""
        self._activations = [inputs]
        for layer in range(self._layers):
            sums = self._activations[-1] @ self._weights[layer] + self._weights[self._layers + layer]
            self._activations.append(np.tanh(sums) if layer < self._layers - 1 else sums)
        return self._activations[-1]

    def step(self, slopes: Array) -> None:
        """Move the weights against the loss, whose derivatives by the outputs are `slopes`, float64[N, out]."""
        gradients: list[Array] = [np.empty(0)] * len(self._weights)
        for layer in reversed(range(self._layers)):
            below = self._activations[layer]
            gradients[layer], gradients[self._layers + layer] = below.T @ slopes, slopes.sum(axis=0)
            slopes = (slopes @ self._weights[layer].T) * (1 - below**2)
        self._time += 1
        for at, gradient in enumerate(gradients):
            self._first[at] += 0.1 * (gradient - self._first[at])
            self._second[at] += 0.001 * (gradient**2 - self._second[at])
            mean = self._first[at] / (1 - 0.9**self._time)
            spread = np.sqrt(self._second[at] / (1 - 0.999**self._time))
            self._weights[at] -= self._rate * mean / (spread + 1e-8)


def softmax(logits: Array) -> Array:
    """Return the probabilities, float64[..., n]."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities
