"""The suite of merge methods fails for methods that break a property."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods import PerModel, Real, merge_method
from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.registry import WholeTensorState
from evomerge.testing.merge_methods import TENSORS, MergeMethodSuite, coefficients
from search_spaces.registry import registering

Weight = Annotated[PerModel, Real(0.0, 1.0, 0.5, "Factor of the task vector.")]


class Broken(MergeMethodSuite):
    """Its name does not begin with Test, so pytest does not collect it."""

    method = "broken"
    parameters = coefficients(weight=[0.4, 0.7, 0.2])
    one_model = coefficients(weight=1.0)


@pytest.fixture(autouse=True)
def registration() -> Iterator[None]:
    """Takes back what the tests register."""
    with pytest.raises(InterruptedError), registering("tests"):
        yield
        raise InterruptedError


def test_a_parameter_that_is_ignored() -> None:
    @merge_method("broken")
    def broken(block: Block, *, weight: Weight) -> None:
        """The base plus all task vectors."""
        base_E, deltas = block.deltas()
        block.out.copy_(torch.stack(deltas).sum(0).add_(base_E))

    with pytest.raises(AssertionError, match="weight: ignored, or the suite sets no second value"):
        Broken().test_every_parameter_has_an_effect()
    Broken().test_one_model_gives_that_model()


def test_the_order_of_models() -> None:
    @merge_method("broken")
    def broken(block: Block, *, weight: Weight) -> None:
        """The base plus the first task vector."""
        base_E, deltas = block.deltas()
        block.out.copy_(deltas[0].mul_(weight[0]).add_(base_E))

    for info in (TENSORS["matrix"], TENSORS["vector"]):
        with pytest.raises(AssertionError):
            Broken().test_order_of_models(info)


def test_prepared_state_of_the_first_coefficients() -> None:
    class Kept(WholeTensorState):
        first: Tensor | None = None

    @merge_method("broken", prepare_all=lambda group: Kept())
    def broken(block: Block, *, weight: Weight) -> None:
        """Task arithmetic with the weights that it is first called with."""
        base_E, deltas = block.deltas()
        if block.shared.first is None:
            block.shared.first = torch.tensor(list(weight))
        for delta_E, w in zip(deltas, block.shared.first.tolist(), strict=True):
            base_E.add_(delta_E, alpha=w)
        block.out.copy_(base_E)

    class Others(Broken):
        others = coefficients(weight=1.0)

    with pytest.raises(AssertionError):
        Others().test_prepared_once_serves_all_coefficients(TENSORS["matrix"])
