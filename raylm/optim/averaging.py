"""When the weights are averaged, and where the averages are among an optimizer's slots. Without TensorFlow.

Averaged SGD (Polyak and Juditsky 1992) evaluates the mean of the weights that its updates went through. NT-ASGD
(Merity, Keskar and Socher 2017, arXiv:1708.02182, algorithm 1) begins with it once the validation loss stops falling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

Value = TypeVar("Value")

COUNT = "averaged"
"""The slot that counts the updates in the mean."""
PREFIX = "average/"
"""What stands before a weight's name in the name of its mean's slot."""


def stopped_falling(losses: Sequence[float], patience: int) -> bool:
    """Whether any of the losses, oldest first, is above the lowest of all but the last `patience` before it."""
    lowest_before = accumulate(losses, min)
    return any(loss > lowest for lowest, loss in zip(lowest_before, losses[patience + 1 :], strict=False))


def of_layer(name: str) -> bool:
    """Whether a weight is an LSTM layer's."""
    return name.startswith("lstm")


def averages(slots: Mapping[str, Value]) -> dict[str, Value]:
    """The means among an optimizer's slots, by their weights' names, perhaps not of all weights; nothing before the
    first update of them."""
    if not float(slots.get(COUNT, 0.0)) > 0:  # type: ignore[arg-type]
        return {}
    return {name.removeprefix(PREFIX): mean for name, mean in slots.items() if name.startswith(PREFIX)}
