"""The type of a tensor, as mypy sees it: TensorFlow ships no types that could be checked.

Shapes stand as suffixes of names: T time steps, B lanes (batch), I inputs, H hidden units, V words, N = T·B rows.
"""

from typing import Any

Tensor = Any
