"""Simulated workers under the real driver, event log and strategy, on a clock that only the driver's own work advances.

A worker scores a recipe in a random time (log-normal, with stragglers and failures). Nothing sleeps: the clock is the
driver's processor time plus the waiting that was skipped, so the numbers also hold on a busy machine. Waiting for the
disk is left out; the log waits for it at checkpoints only (`synchronous=NORMAL`).
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

import numpy as np

from evomerge.workers.base import Request
from fitness.results import Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig

ITEMS = tuple(f"simulated/test/{index}" for index in range(30))
WEIGHTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Load:
    """How long evaluations take, in seconds, and how often they fail."""

    median: float
    sigma: float = 0.5
    """Of the logarithm."""
    stragglers: float = 0.01
    """Share that takes `slower` times as long."""
    slower: float = 10.0
    failures: float = 0.02

    def mean(self) -> float:
        """Return the mean time."""
        return self.median * float(np.exp(self.sigma**2 / 2)) * (1 + self.stragglers * (self.slower - 1))


def space(layers: int = 32) -> CoefficientSpace:
    """Return a space of two experts over a model of that depth: one weight per expert and layer."""
    names = tuple(f"{name}.weight" for name in (*WEIGHTS, *MLP, "input_layernorm", "post_attention_layernorm"))
    layout = ModelLayout(
        embeddings=("model.embed_tokens.weight",),
        layers=(names,) * layers,
        layer_prefix="model.layers.{}.",
        final=("model.norm.weight", "lm_head.weight"),
        head="lm_head.weight",
        attention="self_attn",
        mlp="mlp",
    )
    models = {name: f"/models/{name}" for name in ("base", "one", "two")}
    return CoefficientSpace(CoefficientConfig(), models, layout)


class SimulatedPool:
    """A pool of `count` workers on a simulated clock; see the module's docstring.

    Attributes
    ----------
    scored
        Evaluations submitted so far.
    """

    def __init__(self, count: int, load: Load, seed: int) -> None:
        self.count, self.load = count, load
        self.rng = np.random.default_rng(seed)
        self.scored = 0
        self._running: list[tuple[float, int, float]] = []  # end, tag, seconds
        self._idle_since = [0.0] * count  # of the workers that are idle now
        self._idle = 0.0
        self._last, self._scored_before = 0.0, 0  # when the last recipe was handed out
        self._skipped = 0.0
        self._began = time.process_time()

    def now(self) -> float:
        """Return the simulated time, in seconds."""
        return time.process_time() - self._began + self._skipped

    @property
    def free(self) -> int:
        """Idle workers."""
        return len(self._idle_since)

    def submit(self, tag: int, request: Request) -> None:
        """Start scoring a recipe."""
        now = self.now()
        self._idle += now - self._idle_since.pop()
        self._last, self._scored_before = now, self.scored
        seconds = self._duration()
        heapq.heappush(self._running, (now + seconds, tag, seconds))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Advance the clock to the next evaluation that ends; return all that have ended."""
        self._skipped += max(0.0, self._running[0][0] - self.now())
        done = []
        while self._running and self._running[0][0] <= self.now():
            end, tag, seconds = heapq.heappop(self._running)
            self._idle_since.append(end)  # it waits for the driver from then on
            self.scored += 1
            done.append((tag, self.evaluation(seconds)))
        return done

    def close(self) -> None:
        """Do nothing: no process was started."""

    def idle_share(self) -> float:
        """Return the share of all workers' time that was spent idle, up to the last recipe that was submitted."""
        idle = self._idle + sum(max(0.0, self._last - since) for since in self._idle_since)
        return idle / (self.count * self._last)

    def rate(self) -> float:
        """Return evaluations per second up to the last recipe that was submitted."""
        return self._scored_before / self._last

    def _duration(self) -> float:
        seconds = self.load.median * float(np.exp(self.load.sigma * self.rng.standard_normal()))
        return seconds * (self.load.slower if self.rng.random() < self.load.stragglers else 1.0)

    def evaluation(self, seconds: float) -> Evaluation:
        """Return an evaluation of this length: random scores, or a failure."""
        spent = {"merge": 0.1 * seconds, "score": 0.9 * seconds, "wait": 0.0}
        if self.rng.random() < self.load.failures:
            return Evaluation.failed("out of memory (simulated)", spent)
        scores = (self.rng.random(len(ITEMS)) < 0.5).astype(np.float32)
        value = float(scores.mean())
        error = float(scores.std(ddof=1) / np.sqrt(len(ITEMS)))
        return Evaluation("ok", (value,), (error,), ITEMS, scores, spent)
