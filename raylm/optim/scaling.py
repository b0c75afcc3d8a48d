"""The loss scale of float16: gradients too small for it are computed times a power of two (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2), which is found as the run goes.

A gradient that overflows halves the scale, and its update is left out; that is no fault. One that overflows at the
lowest scale is. The scale is part of the state, among the optimizer's slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tensorflow as tf

from raylm.config import ModelConfig
from raylm.model.types import Tensor

FIRST, LOWEST, HIGHEST = 2.0**12, 1.0, 2.0**24
_SOUND_UPDATES = 2000.0  # after which a scale twice as high is tried


class LossScale:
    """The scale and the updates made with it since it last changed; the same on every replica."""

    def __init__(self) -> None:
        self.slots: Mapping[str, tf.Variable] = {
            "loss_scale": tf.Variable(FIRST, trainable=False),
            "loss_scale/sound_updates": tf.Variable(0.0, trainable=False),
        }

    @property
    def value(self) -> Tensor:
        return self.slots["loss_scale"].read_value()

    def begin(self) -> None:
        """As before the first update."""
        self._become(tf.constant(FIRST), tf.zeros([]))

    def after_update(self) -> None:
        """A gradient was finite."""
        sound = self.slots["loss_scale/sound_updates"].read_value() + 1
        enough = sound >= _SOUND_UPDATES
        self._become(tf.where(enough, tf.minimum(self.value * 2, HIGHEST), self.value), tf.where(enough, 0.0, sound))

    def after_overflow(self) -> None:
        """A gradient was not finite."""
        self._become(tf.maximum(self.value / 2, LOWEST), tf.zeros([]))

    def _become(self, scale: Tensor, sound: Tensor) -> None:
        self.slots["loss_scale"].assign(scale)
        self.slots["loss_scale/sound_updates"].assign(sound)


def overflowed(loss_sum: float, applied: bool, scale: float) -> bool:
    """Whether an update was left out since the scale it was computed with was too high, and a lower one is left."""
    return not applied and math.isfinite(loss_sum) and scale > LOWEST


def make_loss_scale(config: ModelConfig) -> LossScale | None:
    """Of a model whose products are taken in float16; None for the others, whose numbers reach as far as float32's."""
    return LossScale() if config.precision == "float16" else None
