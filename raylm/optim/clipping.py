"""Clipping by the global norm (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf

from raylm.config import OptimizerConfig
from raylm.model.types import Tensor
from raylm.optim.averaging import of_layer
from raylm.optim.rows import Gradient, RowGradient


def which_clipped(config: OptimizerConfig, names: Iterable[str]) -> list[bool]:
    """Of the weights of these names, whose gradients are clipped."""
    return [config.clip_of == "all" or of_layer(name) for name in names]


def clip_factor(norm: Tensor, clip_norm: float | None) -> Tensor:
    """The factor in (0, 1] that brings a gradient of this global norm to at most `clip_norm`; 1 where it is None."""
    if clip_norm is None:
        return tf.ones_like(norm)
    return clip_norm / tf.maximum(norm, clip_norm)


def global_norm(gradients: Sequence[Gradient]) -> Tensor:
    """The Euclidean norm of all gradients taken as one vector; a scalar, non-finite if any of them is.

    Each id of a gradient in rows must stand once (`summed_by_row`).
    """
    values = [gradient.rows if isinstance(gradient, RowGradient) else gradient for gradient in gradients]
    return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(value) for value in values]))
