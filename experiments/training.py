"""One training loop for the models that experiments make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

IGNORE = -100
"""Label of a token that the loss leaves out."""


def descend(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Mapping[str, torch.Tensor]],
    learning_rate: Callable[[int], float],
) -> Iterator[float]:
    """Take one step of the optimizer for each batch, with gradients clipped at norm 1; yield each step's loss.

    Parameters
    ----------
    model
        Returns its loss for a batch; trained in place.
    optimizer
        Of the model's trained weights. A group may have a `scale`, which its learning rate is multiplied by.
    batches
        Arguments of the model.
    learning_rate
        Step, from 0, to learning rate.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * learning_rate(step)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        yield loss.item()
