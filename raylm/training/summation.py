"""Sums whose order is fixed, so that the last bit does not depend on the replicas, the threads or the compiler."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from raylm.model.types import Tensor

_ROW = 1024


def tree_sum(values: Sequence[Tensor]) -> Tensor:
    """The sum of as many tensors as a power of two, in the order of a balanced binary tree: (a + b) + (c + d).

    The sum of an aligned block of a power of two of them is a node of the tree: whoever holds the block sums it alone.
    """
    level = list(map(_apart, values)) if len(values) > 1 else list(values)
    while len(level) > 1:
        level = [_apart(left + right) for left, right in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def fixed_global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """`raylm.optim.clipping.global_norm`, whose order of summation hangs on the number of threads, in a fixed order."""
    squares = [tf.square(gradient) for gradient in gradients]
    rows = [tf.reduce_sum(square, -1) if square.shape.rank > 1 else square for square in squares]
    values = tf.concat([tf.reshape(row, [-1]) for row in rows], 0)
    while values.shape[0] > 1:
        padded = tf.pad(values, [[0, -values.shape[0] % _ROW]])
        values = tf.reduce_sum(tf.reshape(padded, [-1, _ROW]), -1)
    return tf.sqrt(values[0])


def _apart(value: Tensor) -> Tensor:
    """The value itself, through an operation that TensorFlow's graph optimizer takes for an input: it would turn
    additions of additions into one that adds from left to right."""
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=value.shape)
