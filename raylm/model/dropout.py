"""Dropout whose masks are a pure function of (seed, position, place): a resumed run draws the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from raylm.model.types import Tensor


@dataclass(frozen=True)
class Masks:
    """Where masks come from in one window on one replica.

    key: int32 [2], from the run's seed, the window's position and the replica's first lane.
    """

    key: Tensor

    def drop(self, values: Tensor, rate: float, place: int, locked: bool = False) -> Tensor:
        """Values with a share `rate` set to zero and the rest scaled by 1 / (1 - rate) (Srivastava et al. 2014).

        `place` tells the sites of one window apart; the same place draws the same mask. locked: one mask for all of the
        first axis (Gal and Ghahramani 2016, arXiv:1512.05287).
        """
        shape = tf.shape(values)
        return self._drop(values, rate, place, tf.concat([[1], shape[1:]], 0) if locked else shape)

    def drop_words(self, rows: Tensor, ids: Tensor, words: int, rate: float, place: int) -> Tensor:
        """Rows [..., H] of ids below `words`, those of a share `rate` of all words set to zero wherever they stand (Gal
        and Ghahramani 2016, section 4.2), the rest scaled."""
        if rate == 0:
            return rows
        scales = self._drop(tf.ones([words], rows.dtype), rate, place, [words])
        scales = tf.gather(scales, ids)[..., None]
        return tf.where(scales > 0, rows * scales, tf.zeros_like(rows))

    def _drop(self, values: Tensor, rate: float, place: int, shape: Any) -> Tensor:
        if rate == 0:
            return values
        key = tf.random.experimental.stateless_fold_in(self.key, place)
        kept = tf.random.stateless_uniform(shape, key, dtype=values.dtype, alg="philox") >= rate
        return tf.where(kept, values / (1 - rate), tf.zeros_like(values))


def mask_key(seed: int, position: Tensor, first_lane: Tensor) -> Tensor:
    """The key of one window's masks: int32 [2]."""
    key = tf.stack([tf.constant(seed & 0x7FFFFFFF, tf.int32), tf.cast(position, tf.int32)])
    if seed >> 31:
        key = tf.random.experimental.stateless_fold_in(key, tf.constant(seed >> 31, tf.int64))
    return tf.random.experimental.stateless_fold_in(key, tf.cast(first_lane, tf.int32))
