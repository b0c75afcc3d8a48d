"""Clipping by the global norm (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from raylm.model.types import Tensor


def clip_factor(norm: Tensor, clip_norm: float | None) -> Tensor:
    """The factor in (0, 1] that brings a gradient of this global norm to at most `clip_norm`; 1 where it is None."""
    if clip_norm is None:
        return tf.ones_like(norm)
    return clip_norm / tf.maximum(norm, clip_norm)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients taken as one vector; a scalar, non-finite if any of them is."""
    return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
