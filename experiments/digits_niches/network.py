"""The data and the network of the experiment: scikit-learn's digits, and a perceptron of 19,210 weights.

Both as in the authors' program: 1797 images of 8 x 8 pixels from 0 to 16, the first 80 % to train on, the last 360 to
test; 64-256-10 with ReLU; a flat vector holds W1 (row by row), b1, W2, b2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fitness.results import Evaluation

PIXELS, HIDDEN, DIGITS = 64, 256, 10
WEIGHTS = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * DIGITS
TRAINED = 1437
SPREAD = 0.01  # standard deviation of the first weights
STEPS, RATE = 10, 3e-3  # full-batch steps of Adam that the halves are trained for


@lru_cache(maxsize=1)
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the images, float32[1797, 64], and what they show, int64[1797]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32), labels.astype(np.int64)


class Exam:
    """Scores networks on images.

    Parameters
    ----------
    which
        Which images.
    """

    def __init__(self, which: slice) -> None:
        images, labels = (part[which] for part in digits())
        self._images = np.hstack([images, np.ones((len(images), 1), np.float32)])  # below W1 lies b1
        self._labels = labels
        # Memory for the layers, used again for each network. Ten columns take half as long again as sixteen, which are
        # one vector of AVX-512.
        self._hidden = np.empty((len(images), HIDDEN), np.float32)
        self._second = np.zeros((HIDDEN, 16), np.float32)
        self._activations = torch.from_numpy(self._hidden)  # the same memory
        self.items = tuple(
            f"{'odd' if label % 2 else 'even'}/digits/{index}" for index, label in enumerate(labels.tolist())
        )

    def right(self, weights: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which images a network classifies correctly, bool[I]."""
        flat = weights.astype(np.float32)
        below = (PIXELS + 1) * HIDDEN
        first, second, bias = flat[:below], flat[below:-DIGITS], flat[-DIGITS:]
        # Each by the library that is faster: numpy's products take less time than torch's, torch's maximum with zero a
        # seventh of numpy's.
        np.matmul(self._images, first.reshape(PIXELS + 1, HIDDEN), out=self._hidden)
        self._activations.relu_()
        self._second[:, :DIGITS] = second.reshape(HIDDEN, DIGITS)
        answers = ((self._hidden @ self._second)[:, :DIGITS] + bias).argmax(axis=1)
        right: NDArray[np.bool_] = answers == self._labels
        return right

    def accuracy(self, weights: NDArray[np.float64]) -> float:
        """Return the share of images that a network classifies correctly."""
        return _share(self.right(weights))

    def evaluate(self, weights: NDArray[np.float64]) -> Evaluation:
        """Return what a strategy is told: an item per image; the tasks are odd and even digits."""
        right = self.right(weights)
        return Evaluation("ok", (_share(right),), (0.0,), self.items, right.astype(np.float32))


def _share(right: NDArray[np.bool_]) -> float:
    return np.count_nonzero(right) / len(right)


def random_network(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return an untrained network, float64[19210]."""
    return rng.normal(0.0, SPREAD, WEIGHTS)


def trained_halves(pair: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two networks, trained a little on the digits 0 to 4 and on 5 to 9; `pair` seeds their first weights."""
    rng = np.random.default_rng(pair)
    images, labels = (torch.from_numpy(part[:TRAINED]) for part in digits())
    low, high = random_network(rng), random_network(rng)
    return _trained(low, images[labels < 5], labels[labels < 5]), _trained(
        high, images[labels >= 5], labels[labels >= 5]
    )


def _trained(weights: NDArray[np.float64], images: torch.Tensor, labels: torch.Tensor) -> NDArray[np.float64]:
    flat = torch.tensor(weights, dtype=torch.float32, requires_grad=True)
    adam = torch.optim.Adam([flat], lr=RATE)
    for _ in range(STEPS):
        first, bias1, second, bias2 = flat.split([PIXELS * HIDDEN, HIDDEN, HIDDEN * DIGITS, DIGITS])
        hidden = torch.relu(images @ first.view(PIXELS, HIDDEN) + bias1)
        loss = torch.nn.functional.cross_entropy(hidden @ second.view(HIDDEN, DIGITS) + bias2, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return flat.detach().double().numpy()
