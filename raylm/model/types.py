"""The type of a tensor, as mypy sees it: TensorFlow ships no types that could be checked.

Shapes stand as suffixes of names: T time steps, B lanes (batch), I inputs, H hidden units, V words, N = T·B rows.
"""

from collections.abc import Callable
from typing import Any

Tensor = Any

Touch = Callable[[str, Tensor], Tensor]
"""Sees each named tensor of a forward pass and returns what the pass goes on with: a trace looks, a drill injects.
Gates are there to be looked at: they are seen when the outputs that hang on them have been computed."""


def untouched(_: str, tensor: Tensor) -> Tensor:
    """The touch of every pass that is neither traced nor drilled."""
    return tensor
